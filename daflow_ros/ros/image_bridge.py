# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``cv_bridge`` where no ROS distribution provides it.

The calls are those of ``cv_bridge.CvBridge`` that the package uses, with the same arguments and
error type. Which of the two is in force is decided in :mod:`daflow_ros.ros.conversions`.
"""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from daflow_ros.datasets.encodings import (
    EncodingError,
    decode_compressed,
    decode_image,
    image_array,
)

#: Encodings that can be asked for beside 'passthrough', and how each is made from RGB.
_FROM_RGB = {
    'rgb8': None,
    'bgr8': cv2.COLOR_RGB2BGR,
    'rgba8': cv2.COLOR_RGB2RGBA,
    'bgra8': cv2.COLOR_RGB2BGRA,
    'mono8': cv2.COLOR_RGB2GRAY,
}
_KINDS = {'u1': '8U', 'i1': '8S', 'u2': '16U', 'i2': '16S', 'i4': '32S', 'f4': '32F', 'f8': '64F'}


class CvBridgeError(TypeError):
    """A conversion that is not possible; ``__cause__`` says why."""


def byte_array(values: NDArray[Any]) -> array.array[int]:
    """Copy an array into what a ``uint8[]`` field takes without a second copy.

    Assigning the ndarray itself would make rclpy check every byte in Python.
    """
    data = array.array('B')
    if values.size:
        data.frombytes(memoryview(np.ascontiguousarray(values)).cast('B'))
    return data


class CvBridge:
    """Conversions between ``sensor_msgs`` images and arrays in OpenCV's layout."""

    def imgmsg_to_cv2(self, img_msg: Any, desired_encoding: str = 'passthrough') -> NDArray[Any]:
        """Pixels of a ``sensor_msgs/Image``.

        Args:
            img_msg: the message; ``step`` and ``is_bigendian`` are honoured.
            desired_encoding: 'passthrough', rgb8, bgr8, rgba8, bgra8 or mono8.

        Returns:
            (H, W) or (H, W, C); with 'passthrough' a view of the message where possible.

        Raises:
            CvBridgeError: malformed image, unknown encoding.
        """
        try:
            if desired_encoding in ('passthrough', img_msg.encoding):
                return image_array(img_msg)
            return _convert(decode_image(img_msg), desired_encoding)
        except EncodingError as error:
            raise CvBridgeError(str(error)) from error

    def compressed_imgmsg_to_cv2(
        self, cmprs_img_msg: Any, desired_encoding: str = 'passthrough'
    ) -> NDArray[Any]:
        """Pixels of a ``sensor_msgs/CompressedImage``; 'passthrough' gives bgr8.

        Raises:
            CvBridgeError: empty, corrupt or truncated data.
        """
        wanted = 'bgr8' if desired_encoding == 'passthrough' else desired_encoding
        try:
            return _convert(decode_compressed(cmprs_img_msg), wanted)
        except EncodingError as error:
            raise CvBridgeError(str(error)) from error

    def cv2_to_imgmsg(
        self, cvim: NDArray[Any], encoding: str = 'passthrough', header: Any = None
    ) -> Image:
        """Fill a ``sensor_msgs/Image``.

        Args:
            cvim: (H, W) or (H, W, C).
            encoding: 'passthrough' names it by its type, such as 32FC2.
            header: ``std_msgs/Header``, None for an empty one.

        Raises:
            CvBridgeError: an array that is not what ``encoding`` says.
            TypeError: not an array.
        """
        if not isinstance(cvim, np.ndarray):
            raise TypeError('your input type is not a numpy array')
        if cvim.ndim not in (2, 3) or cvim.size == 0:
            raise CvBridgeError(f'an image is (H, W) or (H, W, C), given {cvim.shape}')
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        kind = cvim.dtype.str[1:]
        if kind not in _KINDS:
            raise CvBridgeError(f'images have no samples of type {cvim.dtype}')
        message = Image()
        if header is not None:
            message.header = header
        message.height, message.width = cvim.shape[:2]
        message.encoding = f'{_KINDS[kind]}C{channels}' if encoding == 'passthrough' else encoding
        message.is_bigendian = int(cvim.dtype.byteorder == '>')
        message.step = message.width * channels * cvim.dtype.itemsize
        message.data = byte_array(cvim)
        try:
            pixels = image_array(message)
        except EncodingError as error:
            raise CvBridgeError(str(error)) from error
        if pixels.size != cvim.size or pixels.dtype != cvim.dtype.newbyteorder('='):
            raise CvBridgeError(
                f'{encoding} is not the encoding of {cvim.shape} samples of type {cvim.dtype}'
            )
        return message

    def cv2_to_compressed_imgmsg(
        self, cvim: NDArray[Any], dst_format: str = 'jpg'
    ) -> CompressedImage:
        """Compress a bgr8 or mono8 picture as OpenCV's ``imencode`` does.

        Raises:
            CvBridgeError: OpenCV cannot write that.
        """
        try:
            done, data = cv2.imencode('.' + dst_format, cvim)
        except cv2.error as error:
            raise CvBridgeError(error.err) from error
        if not done:
            raise CvBridgeError(f'cannot compress {cvim.shape} as {dst_format}')
        message = CompressedImage()
        message.format = dst_format
        message.data = byte_array(data)
        return message


def _convert(rgb: NDArray[np.uint8], encoding: str) -> NDArray[Any]:
    if encoding not in _FROM_RGB:
        raise CvBridgeError(f'cannot convert to {encoding!r}, only to {", ".join(_FROM_RGB)}')
    code = _FROM_RGB[encoding]
    return rgb if code is None else np.asarray(cv2.cvtColor(rgb, code))
