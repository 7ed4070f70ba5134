# SPDX-License-Identifier: Apache-2.0
"""Flow taken over from pixels around."""

from __future__ import annotations

import numpy as np
import torch

from daflow_ros.models.spatial_propagation import (
    DIRECTIONS,
    NEIGHBOURS,
    NUM_GUIDES,
    RINGS,
    propagate,
)


def guides_of(height: int, width: int, own: float = 0.0, rings: float = 0.0) -> torch.Tensor:
    guides = torch.zeros(1, NUM_GUIDES, height, width)
    guides[:, 0], guides[:, 1:-2] = own, rings
    return guides


def test_neighbours_lie_on_rings() -> None:
    assert NEIGHBOURS[0] == (0, 0, 0) and len(NEIGHBOURS) == 1 + DIRECTIONS * len(RINGS)
    for ring, radius in enumerate(RINGS, start=1):
        around = np.array([(dy, dx) for number, dy, dx in NEIGHBOURS if number == ring])
        assert len(np.unique(around, axis=0)) == DIRECTIONS
        assert np.abs(np.hypot(*around.T) - radius).max() <= 1
        assert np.abs(around.sum(axis=0)).max() <= 1


def test_a_pixel_keeps_its_own_flow_where_the_rings_say_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    flow, image = torch.randn((1, 2, 64, 96), generator=g), torch.rand((1, 3, 64, 96), generator=g)
    kept = propagate(flow, image, guides_of(32, 48, rings=-60.0))
    assert torch.allclose(kept, flow, atol=1e-6)


def test_the_mean_is_that_of_the_shifted_flows() -> None:
    """Against a second implementation, in numpy, with every share written out."""
    rng = np.random.default_rng(1)
    flow = rng.normal(size=(2, 160, 192)).astype(np.float32)
    image = np.full((3, 160, 192), -0.5, np.float32)
    image[:, :, 96:] = 0.25
    logits = rng.normal(size=1 + len(RINGS)).astype(np.float32)
    guides = guides_of(80, 96)
    guides[0, :-2] = torch.from_numpy(logits)[:, None, None]
    guides[:, -1] = np.log(2.0)
    found = propagate(
        torch.from_numpy(flow)[None], torch.from_numpy(image)[None], guides
    )[0].numpy()  # fmt: skip
    for row, column in ((70, 70), (81, 90), (90, 101), (75, 130)):
        total, expected = 0.0, np.zeros(2)
        for ring, dy, dx in NEIGHBOURS:
            y, x = row + 2 * dy, column + 2 * dx
            unlike = np.square(image[:, y, x] - image[:, row, column]).sum()
            weight = np.exp(logits[ring] - 2.0 * unlike)
            total += weight
            expected += weight * flow[:, y, x]
        assert np.allclose(found[:, row, column], expected / total, atol=1e-4)


def test_a_thin_thing_moves_as_what_it_hangs_on() -> None:
    image = torch.full((1, 3, 96, 96), 0.8)
    flow = torch.zeros(1, 2, 96, 96)
    image[..., 20:44, 24:72] = -0.9  # a seat
    flow[:, 0, 20:44, 24:72] = 9.0
    image[..., 44:76, 44:48] = -0.9  # and its leg, matched with the background
    guides = guides_of(48, 48)
    guides[:, -2] = 4.0
    guides[:, -2, 22:38, 22:24] = -12.0  # not sure of itself
    guides[:, -1] = 4.0
    found = propagate(flow, image, guides)
    assert found[0, 0, 48:70, 45:47].min() > 8.5
    assert found[0, 0, 48:70, :40].abs().max() < 0.5 and found[0, 0, :, 76:].abs().max() < 0.5
    assert found[0, 0, 26:38, 30:64].min() > 8.5 and found[0, 1].abs().max() < 1e-5


def test_borders_repeat_what_lies_on_them() -> None:
    flow = torch.full((2, 2, 32, 48), 3.0)
    guides = guides_of(16, 24, rings=2.0).expand(2, -1, -1, -1)
    assert torch.allclose(propagate(flow, torch.zeros(2, 3, 32, 48), guides), flow, atol=1e-5)
