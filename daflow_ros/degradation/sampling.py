# SPDX-License-Identifier: Apache-2.0
"""Random draws of one clip's degradation: parameters, walks through time, noise and fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar('T')


class Sampler:
    """Every random draw of one clip, from one seed.

    Parameters come from a generator on the CPU, so that they are the same on every device; large
    noise comes from generators on the clip's device. start is the clip's first frame within a
    longer one: with the same seed, walks go on and fields and particles keep their place, so a
    long recording may be degraded in pieces.
    """

    def __init__(self, seed: int, device: torch.device | str = 'cpu', start: int = 0) -> None:
        self.device = torch.device(device)
        self.start = start
        self._scalars = torch.Generator().manual_seed(seed)
        self._fixed = torch.Generator(self.device).manual_seed(seed ^ 0x5DEECE66D)
        self._frames = torch.Generator(self.device).manual_seed(seed + 0x9E3779B9 * (1 + start))

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

    def walk(self, frames: int, low: float, high: float, step: float = 0.15,
             history: bool = False) -> torch.Tensor:
        """(F,) random walk inside [low, high]; step is the largest move, as a part of the range.

        Moves are reflected at the ends, as parameters are in RealBasicVSR's degradations. With
        history the walk begins at frame 0: (start + F,).
        """
        # A generator of its own: what is drawn next must not depend on the clip's length.
        own = torch.Generator().manual_seed(self.integer(0, 2 ** 31))
        moves = torch.rand(self.start + frames, generator=own).tolist()
        position = moves[0]
        values = []
        for move in moves:
            values.append(low + (high - low) * position)
            position = abs(position + step * (2 * move - 1))
            position = 1 - abs(1 - position)
        return torch.tensor(values if history else values[self.start:], device=self.device)

    def times(self, frames: int) -> torch.Tensor:
        """(F,) frame numbers, from start on."""
        return torch.arange(self.start, self.start + frames, device=self.device,
                            dtype=torch.float32)

    def fixed_uniform(self, *size: int) -> torch.Tensor:
        """Uniform values in [0, 1), the same for every piece of a clip."""
        return torch.rand(size, generator=self._fixed, device=self.device)

    def fixed_normal(self, *size: int) -> torch.Tensor:
        """Standard normal values, the same for every piece of a clip."""
        return torch.randn(size, generator=self._fixed, device=self.device)

    def uniform_noise(self, *size: int) -> torch.Tensor:
        """Uniform values in [0, 1), new for every frame."""
        return torch.rand(size, generator=self._frames, device=self.device)

    def normal_noise(self, *size: int) -> torch.Tensor:
        """Standard normal values, new for every frame."""
        return torch.randn(size, generator=self._frames, device=self.device)


def at_severity(severity: float, mild: float, heavy: float) -> float:
    """Linear in severity: mild at 1, heavy at 5."""
    return mild + (heavy - mild) * (severity - 1) / 4
