# SPDX-License-Identifier: Apache-2.0
"""Folders of images as recordings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path

from daflow_ros.datasets.encodings import EncodingError, decode_compressed
from daflow_ros.datasets.recordings import (
    CompressedImageData,
    ImageData,
    Recording,
    RecordingError,
)

# As they are, these are valid contents of a CompressedImage.
_COMPRESSED = {'.jpg': 'jpeg', '.jpeg': 'jpeg', '.png': 'png'}
_OTHER = frozenset({'.bmp', '.tif', '.tiff', '.ppm', '.pgm', '.pnm', '.webp', '.jp2'})

FRAME_ID = 'camera_optical_frame'

# Zero stamps mean "no time" to many nodes, so that pictures without times start at one second.
START_NS = 1_000_000_000


def _natural(path: Path) -> list[tuple[int, str]]:
    """Key that sorts frame2 before frame10."""
    return [(int(part), '') if part.isdigit() else (-1, part)
            for part in re.split(r'(\d+)', path.name) if part]


def _read_times(path: Path, images: list[Path]) -> list[int]:
    """Read the stamp (ns) of each image.

    A line is ``Frame: 000001 Time: 1574859772.427742418`` (RADIATE), or a time in seconds alone,
    then in the order of the images. Empty lines and lines that begin with # are skipped.
    """
    named: dict[str, int] = {}
    listed: list[int] = []
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(path, str(error)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        match = re.fullmatch(r'\s*Frame:\s*(\S+)\s+Time:\s*(\S+)\s*', line)
        try:
            seconds = Decimal(match.group(2) if match else line.strip())
            if not 0 <= seconds < Decimal(2) ** 31:
                raise InvalidOperation
        except InvalidOperation:
            raise RecordingError(path, f'line {number} has no time: {line[:60]!r}') from None
        stamp_ns = int(seconds * 1_000_000_000)
        if match:
            named[match.group(1)] = stamp_ns
        else:
            listed.append(stamp_ns)
    if named:
        missing = [image.name for image in images
                   if image.stem not in named and image.name not in named]
        if missing:
            raise RecordingError(path, f'no time for {len(missing)} images, first {missing[0]}')
        return [named[image.stem] if image.stem in named else named[image.name]
                for image in images]
    if len(listed) != len(images):
        raise RecordingError(path, f'{len(listed)} times for {len(images)} images')
    return listed


def open_image_folder(path: Path, rate: float) -> Recording:
    """Open a folder of images, in the natural order of their names.

    Stamps come from ``times.txt`` in it, else from ``rate`` (Hz). JPEG and PNG files are played as
    they are, as compressed images; where a file is of another kind all are decoded.

    Raises:
        RecordingError: no images in it, or times that do not fit them.
    """
    images = sorted(
        (file for file in path.iterdir()
         if file.suffix.lower() in _COMPRESSED or file.suffix.lower() in _OTHER), key=_natural)
    if not images:
        raise RecordingError(path, 'neither a bag (metadata.yaml, .mcap, .db3) nor images in it')
    if (path / 'times.txt').exists():
        stamps = _read_times(path / 'times.txt', images)
    else:
        stamps = [START_NS + round(i * 1e9 / rate) for i in range(len(images))]
    compressed = all(image.suffix.lower() in _COMPRESSED for image in images)

    def messages() -> Iterator[ImageData | CompressedImageData]:
        for image, stamp_ns in zip(images, stamps, strict=True):
            try:
                data = image.read_bytes()
            except OSError as error:
                raise RecordingError(image, str(error)) from error
            picture = CompressedImageData(
                stamp_ns, stamp_ns, FRAME_ID, _COMPRESSED.get(image.suffix.lower(), ''), data)
            if compressed:
                yield picture
                continue
            try:
                rgb = decode_compressed(picture)
            except EncodingError as error:
                raise RecordingError(image, str(error)) from error
            height, width = rgb.shape[:2]
            yield ImageData(stamp_ns, stamp_ns, FRAME_ID, height, width, 'rgb8', 0, 3 * width,
                            rgb.reshape(-1))

    topic = '/image_raw/compressed' if compressed else '/image_raw'
    kind = 'sensor_msgs/msg/CompressedImage' if compressed else 'sensor_msgs/msg/Image'
    return Recording(path, topic, compressed, {topic: kind}, len(images), messages)
