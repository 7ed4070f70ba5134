# SPDX-License-Identifier: Apache-2.0
"""`daflow degrade`: a contact sheet of every degradation, to be looked at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

SEVERITIES = (1.0, 3.0, 5.0)
_SUFFIXES = {'.jpg', '.jpeg', '.png', '.webp', '.bmp'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument('input', type=Path, metavar='IMAGE_OR_FOLDER',
                        help='an image, or a folder whose sorted images are successive frames')
    parser.add_argument('--output', type=Path, default=Path('sheet.png'),
                        help='PNG or JPEG to write (default: %(default)s)')
    parser.add_argument('--names', help='comma-separated degradations (default: all)')
    parser.add_argument('--frames', type=int, default=2,
                        help='successive frames shown at severity 5 (default: %(default)s)')
    parser.add_argument('--width', type=int, default=256,
                        help='width of a tile in px (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')


def read_clip(path: Path, frames: int, width: int) -> np.ndarray:
    """uint8 (F, H, W, 3) of an image, repeated, or of a folder's first images.

    Raises ValueError or OSError where there is nothing to read.
    """
    from PIL import Image

    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)[:frames]
        if not paths:
            raise ValueError(f'{path}: no images')
    else:
        paths = [path]
    images = []
    for item in paths:
        image = Image.open(item).convert('RGB')
        # Degradations are defined at camera size: draw at twice the tile, then shrink.
        height = max(32, round(image.height * 2 * width / image.width))
        images.append(np.asarray(image.resize((2 * width, height), Image.Resampling.LANCZOS)))
    if len({image.shape for image in images}) > 1:
        raise ValueError(f'{path}: images differ in size')
    images += images[-1:] * (frames - len(images))
    return np.stack(images)


def draw_sheet(clip: np.ndarray, names: list[str], width: int, seed: int) -> np.ndarray:
    """uint8 sheet: a row for each degradation; severities 1, 3, 5, then successive frames at 5.

    More than ten rows are set in two columns.
    """
    from PIL import Image, ImageDraw

    from daflow_ros.degradation import degrade

    frames, full_height, full_width, _ = clip.shape
    height = round(full_height * width / full_width)
    columns = len(SEVERITIES) + frames - 1
    caption = 14
    blocks = 1 if len(names) < 10 else 2
    rows = -(-(len(names) + 1) // blocks)
    block_width = columns * (width + 2) + 8
    sheet = Image.new('RGB', (blocks * block_width - 8, rows * (height + caption)), 'white')
    pen = ImageDraw.Draw(sheet)

    def place(image: np.ndarray, row: int, column: int, text: str) -> None:
        left = row // rows * block_width + column * (width + 2)
        top = row % rows * (height + caption)
        tile = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
        sheet.paste(tile, (left, top + caption))
        pen.text((left + 2, top + 1), text, fill='black')

    place(clip[0], 0, 0, 'clean')
    for index in range(1, frames):
        place(clip[index], 0, len(SEVERITIES) - 1 + index, f'clean, frame {index + 1}')
    for row, name in enumerate(names, 1):
        for column, severity in enumerate(SEVERITIES):
            degraded = degrade(clip, name, severity, seed + row)
            place(degraded[0], row, column, f'{name} {severity:g}')
        for index in range(1, frames):
            place(degraded[index], row, len(SEVERITIES) - 1 + index,
                  f'{name} {SEVERITIES[-1]:g}, frame {index + 1}')
    return np.asarray(sheet)


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit status."""
    from PIL import Image

    from daflow_ros.degradation import DEGRADATIONS

    names = args.names.split(',') if args.names else list(DEGRADATIONS)
    unknown = [name for name in names if name not in DEGRADATIONS]
    if unknown:
        print(f'daflow degrade: unknown degradation {unknown[0]!r}; there are '
              f'{", ".join(DEGRADATIONS)}', file=sys.stderr)
        return 1
    if args.frames < 1 or args.width < 32:
        print('daflow degrade: --frames must be at least 1 and --width 32', file=sys.stderr)
        return 1
    try:
        clip = read_clip(args.input, args.frames, args.width)
        sheet = Image.fromarray(draw_sheet(clip, names, args.width, args.seed))
        sheet.save(args.output)
    except (OSError, ValueError) as error:
        print(f'daflow degrade: {error}', file=sys.stderr)
        return 1
    print(args.output)
    return 0
