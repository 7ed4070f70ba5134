# SPDX-License-Identifier: Apache-2.0
"""Decode what cameras put on the wire into RGB, without ROS.

The functions take any object that has the attributes of ``sensor_msgs/Image`` or
``sensor_msgs/CompressedImage``: a message of rclpy, one that was read from a recording, or a plain
stand-in. Encoding names are those of ``sensor_msgs/image_encodings.hpp``.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    'ENCODINGS', 'EncodingError', 'MalformedImageError', 'UnknownEncodingError',
    'decode_compressed', 'decode_image', 'image_array', 'to_rgb',
]

# A frame above this is taken for garbage in the header rather than for a camera's image.
MAX_PIXELS = 1 << 28


class EncodingError(ValueError):
    """An image that cannot be decoded."""


class MalformedImageError(EncodingError):
    """The sizes and the data of an image contradict each other, or its bytes are corrupt."""


class UnknownEncodingError(EncodingError):
    """An encoding that is unknown or has no meaning as a camera picture (depth, labels)."""


# Name: (dtype, channels, conversion to RGB). A conversion is an OpenCV code, or None where the
# channels are RGB already.
_PACKED: dict[str, tuple[str, int, int | None]] = {
    'rgb8': ('u1', 3, None),
    'rgba8': ('u1', 4, cv2.COLOR_RGBA2RGB),
    'rgb16': ('u2', 3, None),
    'rgba16': ('u2', 4, cv2.COLOR_RGBA2RGB),
    'bgr8': ('u1', 3, cv2.COLOR_BGR2RGB),
    'bgra8': ('u1', 4, cv2.COLOR_BGRA2RGB),
    'bgr16': ('u2', 3, cv2.COLOR_BGR2RGB),
    'bgra16': ('u2', 4, cv2.COLOR_BGRA2RGB),
    'mono8': ('u1', 1, cv2.COLOR_GRAY2RGB),
    'mono16': ('u2', 1, cv2.COLOR_GRAY2RGB),
    # The generic names come from tools that publish OpenCV matrices: BGR by OpenCV's custom.
    '8UC1': ('u1', 1, cv2.COLOR_GRAY2RGB),
    '8UC3': ('u1', 3, cv2.COLOR_BGR2RGB),
    '8UC4': ('u1', 4, cv2.COLOR_BGRA2RGB),
    '16UC1': ('u2', 1, cv2.COLOR_GRAY2RGB),
    '16UC3': ('u2', 3, cv2.COLOR_BGR2RGB),
    '16UC4': ('u2', 4, cv2.COLOR_BGRA2RGB),
    # OpenCV names a Bayer pattern by its second row, ROS by its first.
    'bayer_rggb8': ('u1', 1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr8': ('u1', 1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': ('u1', 1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg8': ('u1', 1, cv2.COLOR_BayerGB2RGB),
    'bayer_rggb16': ('u2', 1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr16': ('u2', 1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg16': ('u2', 1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg16': ('u2', 1, cv2.COLOR_BayerGB2RGB),
    'yuv422': ('u1', 2, cv2.COLOR_YUV2RGB_UYVY),
    'uyvy': ('u1', 2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': ('u1', 2, cv2.COLOR_YUV2RGB_YUY2),
    'yuyv': ('u1', 2, cv2.COLOR_YUV2RGB_YUY2),
}

# Name: (rows of the whole image per row of luma, as a fraction; OpenCV code).
_PLANAR: dict[str, tuple[int, int, int]] = {
    'nv12': (3, 2, cv2.COLOR_YUV2RGB_NV12),
    'nv21': (3, 2, cv2.COLOR_YUV2RGB_NV21),
    # 4:4:4, which OpenCV does not know: see to_rgb.
    'nv24': (3, 1, cv2.COLOR_YUV2RGB_NV12),
}

#: Matrices that are not pictures but can still be read as arrays.
_MATRIX_TYPES = {'8U': 'u1', '8S': 'i1', '16U': 'u2', '16S': 'i2', '32S': 'i4',
                 '32F': 'f4', '64F': 'f8'}

#: Encodings that :func:`to_rgb` converts.
ENCODINGS: tuple[str, ...] = (*_PACKED, *_PLANAR)


def _layout(encoding: str) -> tuple[np.dtype[Any], int]:
    """Type of a sample and number of channels of an encoding that is not planar."""
    if encoding in _PACKED:
        kind, channels, _ = _PACKED[encoding]
        return np.dtype(kind), channels
    depth, mark, count = encoding.partition('C')
    if mark and depth in _MATRIX_TYPES and count in ('1', '2', '3', '4'):
        return np.dtype(_MATRIX_TYPES[depth]), int(count)
    raise UnknownEncodingError(f'unknown image encoding {encoding!r}')


def image_array(message: Any) -> NDArray[Any]:
    """View the pixels of a ``sensor_msgs/Image`` in their own encoding.

    Padding at the end of rows is skipped and big-endian samples are brought to the byte order of
    this machine. No copy is made where none is needed: the result may be read-only.

    Returns:
        (H, W) or (H, W, C) of the encoding's type; the planar nv12 and nv21 as
        (H * 3 / 2, W), nv24 as (H * 3, W).

    Raises:
        MalformedImageError: zero or absurd size, row shorter than its pixels, short data.
        UnknownEncodingError: an encoding that is in no table.
    """
    height, width, step = int(message.height), int(message.width), int(message.step)
    encoding = str(message.encoding)
    if encoding in _PLANAR:
        numerator, denominator, _ = _PLANAR[encoding]
        dtype, channels = np.dtype('u1'), 1
        if denominator == 2 and (height % 2 or width % 2):
            raise MalformedImageError(f'{encoding} image of odd size {width}x{height}')
        rows = height * numerator // denominator
    else:
        dtype, channels = _layout(encoding)
        rows = height
    if height <= 0 or width <= 0 or height * width > MAX_PIXELS:
        raise MalformedImageError(f'image of size {width}x{height}')
    row_bytes = width * channels * dtype.itemsize
    if step < row_bytes:
        raise MalformedImageError(
            f'step of {step} bytes is less than a row of {width} {encoding} pixels'
            f' ({row_bytes} bytes)')
    data = np.frombuffer(message.data, dtype=np.uint8)
    # The last row may come without its padding.
    needed = step * (rows - 1) + row_bytes
    if data.size < needed:
        raise MalformedImageError(
            f'{data.size} bytes of data, a {width}x{height} {encoding} image with a step of'
            f' {step} has {needed}')
    samples: NDArray[Any] = np.lib.stride_tricks.as_strided(
        data, shape=(rows, row_bytes), strides=(step, 1), writeable=False)
    if step == row_bytes:
        samples = data[:needed].reshape(rows, row_bytes)
    if dtype.itemsize > 1:
        wire = dtype.newbyteorder('>' if message.is_bigendian else '<')
        samples = np.ascontiguousarray(samples).view(wire).astype(dtype, copy=False)
    if channels > 1:
        return samples.reshape(rows, width, channels)
    return samples


def to_rgb(array: NDArray[Any], encoding: str) -> NDArray[np.uint8]:
    """Convert an image from its own encoding to RGB.

    16-bit samples are scaled by the whole range of their type (65535 becomes 255), the same for
    every frame, so that brightness stays comparable across a pair. ``8UC3`` and its like are read
    as BGR, which is what OpenCV programs publish under that name. YUV is BT.601, video range.

    Args:
        array: as :func:`image_array` returns it.
        encoding: one of :data:`ENCODINGS`.

    Returns:
        uint8 (H, W, 3) RGB, a contiguous array of its own.

    Raises:
        UnknownEncodingError: an encoding without meaning as a picture, such as 32FC1.
        MalformedImageError: YUV 4:2:2 of odd width, Bayer below 2x2.
    """
    if encoding not in _PACKED and encoding not in _PLANAR:
        raise UnknownEncodingError(f'encoding {encoding!r} is not that of a camera picture')
    code = _PACKED[encoding][2] if encoding in _PACKED else _PLANAR[encoding][2]
    try:
        if code is None:
            rgb = np.array(array)
        elif encoding == 'nv24':
            # 4:4:4 is the 4:2:0 of an image of twice the size with every luma sample repeated.
            rows, width = array.shape
            height = rows // 3
            luma = array[:height].repeat(2, axis=0).repeat(2, axis=1)
            chroma = array[height:].reshape(height, 2 * width)
            rgb = cv2.cvtColor(np.concatenate([luma, chroma]), code)[::2, ::2]
        else:
            rgb = cv2.cvtColor(np.ascontiguousarray(array), code)
    except cv2.error as error:
        raise MalformedImageError(
            f'{encoding} image of shape {array.shape}: {error.err}') from error
    if rgb.dtype == np.uint16:
        rgb = cv2.convertScaleAbs(rgb, alpha=255.0 / 65535.0)
    return np.ascontiguousarray(rgb, dtype=np.uint8)


def decode_image(message: Any) -> NDArray[np.uint8]:
    """Decode a ``sensor_msgs/Image`` to uint8 (H, W, 3) RGB.

    Raises:
        MalformedImageError, UnknownEncodingError: see :func:`image_array`, :func:`to_rgb`.
    """
    encoding = str(message.encoding)
    if encoding not in _PACKED and encoding not in _PLANAR:
        _layout(encoding)
        raise UnknownEncodingError(f'encoding {encoding!r} is not that of a camera picture')
    return to_rgb(image_array(message), encoding)


def _ends_as_jpeg(data: NDArray[np.uint8]) -> bool:
    """Whether the end mark is there, padding behind it (as V4L2 buffers have) allowed."""
    return data.tobytes().rstrip(b'\0')[-16:].find(b'\xff\xd9') >= 0


def decode_compressed(message: Any) -> NDArray[np.uint8]:
    """Decode a ``sensor_msgs/CompressedImage`` (JPEG, PNG and what else OpenCV reads) to RGB.

    A Bayer or 16-bit picture keeps its meaning through the ``format`` that image_transport writes
    (``'bayer_rggb8; jpeg compressed'``).

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        MalformedImageError: empty or corrupt data.
    """
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size == 0:
        raise MalformedImageError('compressed image without data')
    if data[:2].tobytes() == b'\xff\xd8' and not _ends_as_jpeg(data):
        # libjpeg fills what is missing with grey and OpenCV reports success.
        raise MalformedImageError(f'JPEG of {data.size} bytes has no end: truncated')
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise MalformedImageError(f'compressed image: {error.err}') from error
    if picture is None:
        raise MalformedImageError(f'{data.size} bytes are not a picture that OpenCV reads')
    source = str(message.format).split(';')[0].strip()
    if source.startswith('bayer_') and picture.ndim == 2:
        depth = '16' if picture.dtype == np.uint16 else '8'
        pattern = source.rstrip('0123456789')
        if pattern + depth in _PACKED:
            return to_rgb(picture, pattern + depth)
    if picture.dtype not in (np.uint8, np.uint16):
        raise UnknownEncodingError(f'compressed image with samples of type {picture.dtype}')
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    bits = 8 if picture.dtype == np.uint8 else 16
    if channels not in (1, 3, 4):
        raise UnknownEncodingError(f'compressed image with {channels} channels')
    return to_rgb(picture, f'{bits}UC{channels}')
