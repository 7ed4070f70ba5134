# SPDX-License-Identifier: Apache-2.0
"""Random draws of one clip's degradation: parameters, walks through time, noise and fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch.nn import functional as F

T = TypeVar('T')


class Sampler:
    """Every random draw of one clip, from one seed.

    Parameters come from a generator on the CPU, so that they are the same on every device; large
    noise comes from a generator on the clip's device.
    """

    def __init__(self, seed: int, device: torch.device | str = 'cpu') -> None:
        self.device = torch.device(device)
        self._scalars = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(self.device).manual_seed(seed ^ 0x5DEECE66D)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self._scalars))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform(0, 1) < probability

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self._scalars))

    def choice(self, values: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the values, by weight."""
        w = torch.ones(len(values)) if weights is None else torch.tensor(weights)
        return values[int(torch.multinomial(w, 1, generator=self._scalars))]

    def walk(self, frames: int, low: float, high: float, step: float = 0.15) -> torch.Tensor:
        """(F,) random walk inside [low, high]; step is the largest move, as a part of the range.

        Moves are reflected at the ends, as parameters are in RealBasicVSR's degradations.
        """
        position = self.uniform(0, 1)
        values = []
        for _ in range(frames):
            values.append(low + (high - low) * position)
            position += self.uniform(-step, step)
            position = 1 - abs(1 - abs(position)) if position > 1 else abs(position)
        return torch.tensor(values, device=self.device)

    def rand(self, *size: int) -> torch.Tensor:
        """Uniform values in [0, 1) on the clip's device."""
        return torch.rand(size, generator=self._noise, device=self.device)

    def randn(self, *size: int) -> torch.Tensor:
        """Standard normal values on the clip's device."""
        return torch.randn(size, generator=self._noise, device=self.device)

    def field(self, height: int, width: int, cell: float, octaves: int = 3) -> torch.Tensor:
        """(H, W) smooth random field in [0, 1]: value noise, coarsest cell in px."""
        total = torch.zeros(1, 1, height, width, device=self.device)
        weight, norm = 1.0, 0.0
        for octave in range(octaves):
            size = max(2.0, cell / 2 ** octave)
            rows, columns = int(height / size) + 3, int(width / size) + 3
            noise = F.interpolate(self.rand(1, 1, rows, columns),
                                  size=(round(rows * size), round(columns * size)),
                                  mode='bicubic', align_corners=False)
            top, left = round(size * self.uniform(0.5, 1)), round(size * self.uniform(0.5, 1))
            total += weight * noise[..., top:top + height, left:left + width]
            norm += weight
            weight *= 0.5
        return (total[0, 0] / norm).clamp(0, 1)


def at_severity(severity: float, mild: float, heavy: float) -> float:
    """Linear in severity: mild at 1, heavy at 5."""
    return mild + (heavy - mild) * (severity - 1) / 4
