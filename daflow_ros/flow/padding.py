# SPDX-License-Identifier: Apache-2.0
"""Padding of images to the multiple that a network needs (RAFT's `InputPadder`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

MODES = ('centre', 'bottom')


class InputPadder:
    """Pads (B, C, H, W) tensors by replication so that `multiple` divides H and W.

    Args:
        height, width: size of the images in pixels, at least 1.
        multiple: what height and width shall be divisible by.
        mode: `centre` splits the rows over top and bottom (RAFT's for Sintel); `bottom` puts
            them all below, which keeps the sky of a driving scene in place (RAFT's for KITTI).
            Columns are split over left and right in both.

    Raises:
        ValueError: a size or a mode that makes no sense.

    """

    def __init__(self, height: int, width: int, multiple: int = 8, mode: str = 'centre') -> None:
        if height < 1 or width < 1 or multiple < 1:
            raise ValueError(f'cannot pad {height}x{width} to a multiple of {multiple}')
        if mode not in MODES:
            raise ValueError(f'padding mode {mode!r} is none of {", ".join(MODES)}')
        self.height, self.width = height, width
        rows, columns = -height % multiple, -width % multiple
        top = rows // 2 if mode == 'centre' else 0
        self.left, self.top = columns // 2, top
        self.right, self.bottom = columns - self.left, rows - top

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width after padding."""
        return (
            self.height + self.top + self.bottom,
            self.width + self.left + self.right,
        )

    def pad(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Pad each (B, C, H, W) tensor; returns a list, in the same order."""
        for tensor in tensors:
            if tensor.shape[-2:] != (self.height, self.width):
                raise ValueError(
                    f'padder made for {self.height}x{self.width}, given {tuple(tensor.shape)}'
                )
        edges = (self.left, self.right, self.top, self.bottom)
        if not any(edges):
            return list(tensors)
        return [F.pad(tensor, edges, mode='replicate') for tensor in tensors]

    def unpad(self, tensor: torch.Tensor) -> torch.Tensor:
        """Cut a padded (..., H', W') tensor back to (..., H, W)."""
        if tensor.shape[-2:] != self.padded_size:
            raise ValueError(f'expected {self.padded_size}, given {tuple(tensor.shape)}')
        return tensor[
            ..., self.top : self.top + self.height, self.left : self.left + self.width
        ]
