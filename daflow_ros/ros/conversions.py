# SPDX-License-Identifier: Apache-2.0
"""The one place that chooses between a distribution's conversions and the package's own.

``cv_bridge`` and ``sensor_msgs_py`` of a ROS distribution are used where they are there and work.
Compiled against another NumPy they may crash on import, some do not know every encoding, some read
byte order or corrupt JPEG wrongly: so each ability is tried once on tiny images with a known
answer, and what fails is done by :mod:`~daflow_ros.ros.image_bridge` and
:mod:`~daflow_ros.ros.point_cloud2` instead. ``daflow doctor`` tells the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from daflow_ros.datasets.encodings import (
    ENCODINGS,
    MalformedImageError,
    UnknownEncodingError,
    image_array,
)
from daflow_ros.ros import image_bridge

COMPRESSED, WRITING = 'compressed', 'writing'
_OWN = image_bridge.CvBridge()
_ABILITIES = (*ENCODINGS, COMPRESSED, WRITING)
#: Levels by which two implementations of YUV and Bayer may differ on a smooth picture.
_TOLERANCE = 6


@dataclass(frozen=True)
class BridgeChoice:
    """Which bridge does what.

    Attributes:
        bridge: the distribution's ``CvBridge``, or None.
        abilities: encodings, 'compressed' and 'writing' that it does right.
        reason: one line for people.
    """

    bridge: Any
    abilities: frozenset[str]
    reason: str

    def bridge_for(self, ability: str) -> Any:
        """The bridge for an encoding, 'compressed' or 'writing'."""
        return self.bridge if ability in self.abilities else _OWN


@cache
def bridge_choice() -> BridgeChoice:
    """Look for ``cv_bridge`` and try it; done once a process."""
    try:
        from cv_bridge import CvBridge
    except Exception as error:  # a build for another NumPy raises what it likes
        return BridgeChoice(None, frozenset(), f'own conversions (no cv_bridge: {error})')
    return try_bridge(CvBridge())


def try_bridge(bridge: Any) -> BridgeChoice:
    """Keep the abilities in which a bridge agrees with known answers."""
    abilities = frozenset(ability for ability in _ABILITIES if _is_right(bridge, ability))
    failed = [ability for ability in _ABILITIES if ability not in abilities]
    if not failed:
        return BridgeChoice(bridge, abilities, 'cv_bridge of the distribution')
    reason = f'cv_bridge of the distribution, own conversions for {", ".join(failed)}'
    return BridgeChoice(bridge if abilities else None, abilities, reason)


@cache
def point_cloud2() -> ModuleType:
    """``sensor_msgs_py.point_cloud2`` where it is there, else the stand-in."""
    try:
        from sensor_msgs_py import point_cloud2 as module
    except Exception:  # see bridge_choice
        from daflow_ros.ros import point_cloud2 as module
    return module


def image_to_rgb(message: Any) -> NDArray[np.uint8]:
    """Decode a ``sensor_msgs/Image``.

    Returns:
        uint8 (H, W, 3) RGB, an array of its own.

    Raises:
        MalformedImageError: sizes and data contradict each other.
        UnknownEncodingError: an encoding that is not a camera picture's.
    """
    encoding = str(message.encoding)
    if encoding not in ENCODINGS:
        raise UnknownEncodingError(f'encoding {encoding!r} is not that of a camera picture')
    pixels = image_array(message)  # checks the message, whichever bridge reads it
    bridge = bridge_choice().bridge_for(encoding)
    try:
        rgb = bridge.imgmsg_to_cv2(message, 'rgb8')
    except Exception as error:
        raise _cause(error, f'{encoding} image of shape {pixels.shape}') from error
    # rgb8 may come back as a view of the message, which the middleware owns.
    return np.array(rgb) if np.may_share_memory(rgb, pixels) else np.ascontiguousarray(rgb)


def compressed_to_rgb(message: Any) -> NDArray[np.uint8]:
    """Decode a ``sensor_msgs/CompressedImage`` to uint8 (H, W, 3) RGB.

    Raises:
        MalformedImageError: empty, corrupt or truncated data.
        UnknownEncodingError: a picture with samples that are not a camera's.
    """
    bridge = bridge_choice().bridge_for(COMPRESSED)
    try:
        return np.ascontiguousarray(bridge.compressed_imgmsg_to_cv2(message, 'rgb8'))
    except Exception as error:
        raise _cause(error, 'compressed image') from error


def array_to_image(values: NDArray[Any], encoding: str, header: Any) -> Image:
    """Fill a ``sensor_msgs/Image`` from (H, W) or (H, W, C) without a detour over lists."""
    return bridge_choice().bridge_for(WRITING).cv2_to_imgmsg(values, encoding, header)


def rgb_to_compressed(rgb: NDArray[np.uint8], header: Any, quality: int) -> CompressedImage:
    """JPEG of uint8 (H, W, 3) RGB.

    OpenCV directly, since ``cv_bridge`` has no argument for the quality (1 to 100).
    """
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return CompressedImage(
        header=header, format='rgb8; jpeg compressed bgr8', data=image_bridge.byte_array(data)
    )


def _cause(error: Exception, what: str) -> Exception:
    if isinstance(error.__cause__, UnknownEncodingError):
        return UnknownEncodingError(str(error))
    return MalformedImageError(f'{what}: {error}')


def _is_right(bridge: Any, ability: str) -> bool:
    """Whether a bridge does on a tiny picture what the package's own conversion does."""
    try:
        if ability == WRITING:
            flow = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
            message = bridge.cv2_to_imgmsg(flow, '32FC2', Image().header)
            return message.step == 32 and np.array_equal(image_array(message), flow)
        if ability == COMPRESSED:
            ramp = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 5
            picture = np.stack([ramp, ramp // 2, 255 - ramp], axis=-1)
            message = _OWN.cv2_to_compressed_imgmsg(picture)
            expected = _OWN.compressed_imgmsg_to_cv2(message, 'rgb8')
            result = bridge.compressed_imgmsg_to_cv2(message, 'rgb8')
            message.data = message.data[: len(message.data) // 2]
            return np.array_equal(result, expected) and _refuses(bridge, message)
        return all(_reads(bridge, message) for message in _samples(ability))
    except Exception:  # whatever it raises, it cannot do it
        return False


def _refuses(bridge: Any, truncated: CompressedImage) -> bool:
    try:
        bridge.compressed_imgmsg_to_cv2(truncated, 'rgb8')
    except Exception:
        return True
    return False


def _reads(bridge: Any, message: Image) -> bool:
    expected = _OWN.imgmsg_to_cv2(message, 'rgb8').astype(int)
    result = np.asarray(bridge.imgmsg_to_cv2(message, 'rgb8'))
    return (
        result.shape == expected.shape
        and result.dtype == np.uint8
        and int(np.abs(result - expected).max()) <= _TOLERANCE
    )


def _samples(encoding: str) -> list[Image]:
    """Smooth pictures of 8x8 with padded rows, in both byte orders where that matters."""
    planar = {'nv12': 12, 'nv21': 12, 'nv24': 24}.get(encoding)
    sixteen = '16' in encoding
    channels = 1 if planar else _channels(encoding)
    messages = []
    for big in (False, True) if sixteen else (False,):
        ramp = 40 + 8 * np.add.outer(np.arange(planar or 8), np.arange(8))[..., None]
        values = np.repeat(ramp, channels, axis=2) + 20 * np.arange(channels)
        # Not 257: both bytes would be equal, and their order would not show.
        values = (values * (250 if sixteen else 1)).reshape(len(ramp), -1)
        values = values.clip(0, 65535 if sixteen else 255)
        rows = values.astype(('>' if big else '<') + ('u2' if sixteen else 'u1')).view(np.uint8)
        padded = np.pad(rows, ((0, 0), (0, 0 if planar else 4 * channels)))
        messages.append(
            Image(
                height=8, width=8, encoding=encoding, is_bigendian=int(big),
                step=padded.shape[1], data=image_bridge.byte_array(padded),
            )
        )  # fmt: skip
    return messages


def _channels(encoding: str) -> int:
    if encoding.startswith('yu') or encoding == 'uyvy':
        return 2
    if encoding.endswith('C4') or 'a8' in encoding or 'a16' in encoding:
        return 4
    mono = encoding.endswith('C1') or encoding.startswith(('mono', 'bayer'))
    return 1 if mono else 3
