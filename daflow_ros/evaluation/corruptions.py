# SPDX-License-Identifier: Apache-2.0
"""Which corruptions are applied to a source, and the seeds that make them repeatable."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Corruptions of weather and light, `weather` on the command line.
WEATHER = ('rain', 'fog', 'snow', 'dust', 'night', 'glare', 'spatter')
DEFAULT_SEVERITY = 3.0


@dataclass(frozen=True)
class Corruption:
    """A degradation at a severity in [1, 5]; severity 0 of `clean` is the source as it is."""

    name: str
    severity: float

    @property
    def label(self) -> str:
        """As written on the command line: rain:3; clean alone."""
        return self.name if self.name == 'clean' else f'{self.name}:{self.severity:g}'


CLEAN = Corruption('clean', 0.0)


def parse_corruptions(text: str | None) -> list[Corruption]:
    """Read `rain:3,fog:4`; the source as it is always comes first.

    Args:
        text: names with or without `:severity` (default 3), separated by commas. `all` stands
            for every degradation, `weather` for those of weather and light; several
            severities are given as `rain:2+4`.

    Raises:
        ValueError: an unknown name or a severity outside of [1, 5].

    """
    from daflow_ros.degradation import DEGRADATIONS

    chosen = [CLEAN]
    for word in filter(None, (part.strip() for part in (text or '').split(','))):
        name, _, levels = word.partition(':')
        if name == 'all':
            names: tuple[str, ...] = tuple(DEGRADATIONS)
        elif name == 'weather':
            names = WEATHER
        elif name in DEGRADATIONS:
            names = (name,)
        elif name == 'clean':
            continue
        else:
            raise ValueError(
                f'unknown corruption {name!r}; there are all, weather, {", ".join(DEGRADATIONS)}'
            )
        for level in levels.split('+') if levels else [str(DEFAULT_SEVERITY)]:
            try:
                severity = float(level)
            except ValueError:
                severity = 0.0
            if not 1 <= severity <= 5:
                raise ValueError(f'severity of {word!r} is a number from 1 to 5')
            for name in names:
                corruption = Corruption(name, severity)
                if corruption not in chosen:
                    chosen.append(corruption)
    return chosen


def corruption_seed(clip: str, corruption: Corruption, seed: int) -> int:
    """Seed of a corrupted clip: the same whatever else runs beside it.

    The severity has no part in it: the same rain falls, only harder.
    """
    return zlib.crc32(f'{seed}|{clip}|{corruption.name}'.encode())


def corrupt_clip(
    frames: tuple[npt.NDArray[np.uint8], ...], clip: str, corruption: Corruption, seed: int
) -> tuple[npt.NDArray[np.uint8], ...]:
    """Degrade the frames of a clip together; `clean` gives them back as they are."""
    if corruption == CLEAN:
        return frames
    from daflow_ros.degradation import degrade

    degraded = degrade(
        np.stack(frames), corruption.name, corruption.severity,
        corruption_seed(clip, corruption, seed),
    )
    return tuple(np.ascontiguousarray(frame) for frame in degraded)
