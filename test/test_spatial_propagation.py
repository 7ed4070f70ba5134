# SPDX-License-Identifier: Apache-2.0
"""Flow taken over from pixels around."""

from __future__ import annotations

import numpy as np
import torch

from daflow_ros.models.cues import appearance
from daflow_ros.models.spatial_propagation import (
    DIRECTIONS,
    NEIGHBOURS,
    NUM_GUIDES,
    NUM_HELD,
    RINGS,
    Pictures,
    propagate,
)

#: Where among the guides surety and the likeness of colour are.
SURE, COUNTS = 1 + len(RINGS), 2 + len(RINGS)


def guides_of(height: int, width: int, own: float = 0.0, rings: float = 0.0) -> torch.Tensor:
    guides = torch.zeros(1, NUM_GUIDES, height, width)
    guides[:, 0], guides[:, 1 : 1 + len(RINGS)] = own, rings
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
    guides[0, :SURE] = torch.from_numpy(logits)[:, None, None]
    guides[:, COUNTS] = np.log(2.0)
    towards = rng.normal(size=len(NEIGHBOURS)).astype(np.float32)
    towards[0] = 0
    guides[0, COUNTS + 1 :] = torch.from_numpy(towards[1:])[:, None, None]
    found = propagate(
        torch.from_numpy(flow)[None], torch.from_numpy(image)[None], guides
    )[0].numpy()  # fmt: skip
    for row, column in ((70, 70), (81, 90), (90, 101), (75, 130)):
        total, expected = 0.0, np.zeros(2)
        for (ring, dy, dx), more in zip(NEIGHBOURS, towards, strict=True):
            y, x = row + 2 * dy, column + 2 * dx
            unlike = np.square(image[:, y, x] - image[:, row, column]).sum()
            weight = np.exp(logits[ring] - 2.0 * unlike + more)
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
    guides[:, SURE] = 4.0
    guides[:, SURE, 22:38, 22:24] = -12.0  # not sure of itself
    guides[:, COUNTS] = 4.0
    found = propagate(flow, image, guides)
    assert found[0, 0, 48:70, 45:47].min() > 8.5
    assert found[0, 0, 48:70, :40].abs().max() < 0.5 and found[0, 0, :, 76:].abs().max() < 0.5
    assert found[0, 0, 26:38, 30:64].min() > 8.5 and found[0, 1].abs().max() < 1e-5


def test_borders_repeat_what_lies_on_them() -> None:
    flow = torch.full((2, 2, 32, 48), 3.0)
    guides = guides_of(16, 24, rings=2.0).expand(2, -1, -1, -1)
    assert torch.allclose(propagate(flow, torch.zeros(2, 3, 32, 48), guides), flow, atol=1e-5)


def pictures_of(seed: int, motion: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A texture ``(1, 3, 64, 96)`` in [-1, 1], and moved to the right by so many px."""
    coarse = torch.rand((1, 3, 32, 48), generator=torch.Generator().manual_seed(seed))
    first = 2 * torch.nn.functional.interpolate(coarse, scale_factor=2, mode='bilinear') - 1
    return first, first.roll(motion, dims=-1)


def test_a_flow_fits_where_the_images_agree() -> None:
    first, second = pictures_of(3, 5)
    pictures = Pictures(appearance(first), appearance(second), torch.zeros(1, 2))
    right, wrong = torch.zeros(2, 1, 2, 64, 96)
    right[:, 0], wrong[:, 0] = 10.0, 4.0  # px of twice the resolution
    fit, ill = (
        pictures.fits(flow[:, None])[:, 0, ..., 20:-20, 24:-24] for flow in (right, wrong)
    )
    assert torch.allclose(fit.exp(), torch.tensor([0.05, 0.05, 1.0])[:, None, None], atol=1e-3)
    assert (ill - fit).amin(dim=(0, 2, 3)).min() > 0.7
    # What leads out meets no colour at all.
    assert pictures.fits(right[:, None])[:, 0, 2, :, -3:].min() > np.log(20)
    # A part of the first picture finds the same in the whole second one.
    part = Pictures(pictures.first[..., 8:40, 16:64], pictures.second, torch.tensor([[16.0, 8.0]]))
    both = torch.stack([right, wrong], dim=1)
    fits = pictures.fits(both)
    assert torch.equal(fits[:, 0], pictures.fits(right[:, None])[:, 0])
    assert torch.allclose(
        part.fits(both[..., 8:40, 16:64])[..., 4:-4, 4:-4], fits[..., 12:36, 20:60], atol=1e-4
    )


def test_held_against_the_images_a_bar_finds_the_flow_it_moves_by() -> None:
    """A bar of the same colours as what is behind it, beyond which others move otherwise."""
    first, second = pictures_of(4, 0)
    later = first.roll(9, dims=-1)
    first[..., 28:36, :], second[..., 28:36, :] = second[..., 28:36, :], later[..., 28:36, :]
    flow = torch.zeros(1, 2, 128, 192)
    flow[:, 0, 56:72, :60] = 18.0  # known at its left end alone
    image = torch.nn.functional.interpolate(first, scale_factor=2)
    guides = torch.zeros(1, NUM_HELD, 64, 96)
    guides[:, -4:-1] = 8.0
    guides[:, COUNTS] = -20.0  # whatever the colours
    pictures = Pictures(appearance(first), appearance(second), torch.zeros(1, 2))
    found = propagate(flow, image, guides, pictures)
    # One ring of 28 px of half the resolution further, and neither above nor below.
    assert (found[0, 0, 60:68, 62:108] - 18).abs().median() < 0.5
    assert found[0, 0, :48].abs().median() < 0.5 and found[0, 0, 80:].abs().median() < 0.5
    # Where fits count for nothing it is a mean of all around.
    guides[:, -4:-1] = 0.0
    blind = propagate(flow, image, guides, pictures)
    assert blind[0, 0, 60:68, 62:108].median() < 9
    assert torch.allclose(blind, propagate(flow, image, guides[:, :NUM_GUIDES]), atol=1e-4)
    # A flow that lies far away counts less where that is asked for.
    guides[:, -1] = -20.0
    kept = propagate(flow, image, guides, pictures)
    assert torch.allclose(kept[..., :48, :], flow[..., :48, :], atol=0.05)
