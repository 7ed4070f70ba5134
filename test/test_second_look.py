# SPDX-License-Identifier: Apache-2.0
"""The second look at a blended flow: what it sees, and that what it says is done."""

from __future__ import annotations

import numpy as np
import torch

from daflow_ros.models.blend_cues import NUM_CUES
from daflow_ros.models.blending import FlowBlend
from daflow_ros.models.cues import appearance
from daflow_ros.models.second_look import NUM_SEEN, STEP, SecondLook, seen
from daflow_ros.models.spatial_propagation import NUM_FITS, NUM_HELD, Pictures

HEIGHT, WIDTH = 48, 64


def pictures_of(motion: int) -> Pictures:
    """A texture, and moved to the right by so many px of half the resolution."""
    coarse = torch.rand((1, 3, 24, 32), generator=torch.Generator().manual_seed(1))
    first = 2 * torch.nn.functional.interpolate(coarse, scale_factor=2, mode='bilinear') - 1
    second = first.roll(motion, dims=-1)
    return Pictures(appearance(first), appearance(second), torch.zeros(1, 2))


def test_what_is_seen_is_what_it_is_called() -> None:
    pictures = pictures_of(4)
    flow = torch.zeros(1, 2, HEIGHT, WIDTH)
    flow[:, 0] = 8.0
    flow[:, 0, 20:28, 30:34] = 0.0  # a bar that stands still in a moving picture
    flows = torch.stack([flow, flow + 3, flow], dim=1)
    flows[:, 2, 1] += 5
    cues = seen(flow, flows, pictures)[0]
    assert cues.shape == (NUM_SEEN, HEIGHT, WIDTH)
    assert torch.equal(cues[:NUM_FITS], pictures.fits(flow[:, None])[0, 0])
    assert (cues[0, 22:26, 30:34] > cues[0, 4:16, 8:50].max()).float().mean() > 0.9
    out = torch.zeros(HEIGHT, WIDTH)
    out[:, -4:] = 1
    assert torch.equal(cues[NUM_FITS], out)
    apart = cues[NUM_FITS + 1 : NUM_FITS + 4].exp().mean(dim=(1, 2)) - 0.1
    assert torch.allclose(apart, torch.tensor([0, 3 * 2**0.5, 5]), atol=1e-4)
    length, rough, *step = cues[NUM_FITS + 4 :]
    assert np.isclose(float(length[4, 8].exp()), 8.3) and np.isclose(
        float(length[24, 32]), np.log(0.3)
    )
    assert np.isclose(float(rough[4, 8].exp()), 0.05) and rough[24, 30] > rough[4, 8] + 3
    # 32 of the 81 px about the middle of the bar stand still.
    lag = 8 * 32 / 81 - 8
    assert np.isclose(float(step[0][24, 32]), lag / (STEP - lag), atol=1e-4)
    assert step[1].abs().max() == 0
    # A part of the first picture sees the same, away from its border.
    part = pictures._replace(
        first=pictures.first[..., 8:40, 16:56], corner=torch.tensor([[16.0, 8]])
    )
    piece = np.s_[..., 8:40, 16:56]
    inner = np.s_[..., 5:-5, 5:-5]
    assert torch.allclose(
        seen(flow[piece], flows[piece], part)[inner], cues[None][piece][inner], atol=1e-4
    )


def test_nothing_is_said_at_first() -> None:
    look = SecondLook(16)
    more, last, shift, features = look(torch.randn(2, 16, 8, 12), torch.randn(2, NUM_SEEN, 8, 12))
    assert more.shape == last.shape == (2, NUM_HELD, 8, 12) and shift.shape == (2, 2, 8, 12)
    assert not more.any() and not last.any() and not shift.any()
    assert features.shape == (2, 32, 8, 12) and features.std() > 0


def test_flow_is_moved_by_what_is_said_and_told_from_what_is_seen() -> None:
    """At twice the resolution as at its own."""
    torch.manual_seed(3)
    blend = FlowBlend(16).eval()
    pictures = pictures_of(2)
    cues, hidden = torch.randn(1, NUM_CUES, HEIGHT, WIDTH), torch.randn(1, 16, 12, 16)
    flows = torch.full((1, 3, 2, 2 * HEIGHT, 2 * WIDTH), 4.0)
    image = torch.zeros(1, 3, 2 * HEIGHT, 2 * WIDTH)
    cut = torch.zeros(1, 1, HEIGHT, WIDTH)
    with torch.inference_mode():
        flow, before = blend(cues, hidden, flows, cut, image, pictures)
        assert torch.allclose(flow, torch.full_like(flow, 4.0), atol=1e-4)
        blend.look.say.bias[-2:] = torch.tensor([1.5, -0.5])
        flow, after = blend(cues, hidden, flows, cut, image, pictures)
        assert torch.allclose(flow[:, 0], torch.tensor(5.5), atol=1e-4)
        assert torch.allclose(flow[:, 1], torch.tensor(3.5), atol=1e-4)
        low, _ = blend(cues, hidden, flows[..., ::2, ::2], cut, image[..., ::2, ::2], pictures)
        assert torch.allclose(low, flow[..., ::2, ::2], atol=1e-4)
    assert not torch.allclose(before, after)


def test_what_is_added_to_guides_is_taken_from_there() -> None:
    """A logit for one neighbour, whatever the U-Net before said of it."""
    torch.manual_seed(4)
    blend = FlowBlend(16).eval()
    flows = torch.zeros(1, 3, 2, HEIGHT, WIDTH)
    flows[..., 30:] = 8.0
    arguments = (
        torch.randn(1, NUM_CUES, HEIGHT, WIDTH), torch.randn(1, 16, 12, 16), flows,
        torch.zeros(1, 1, HEIGHT, WIDTH), torch.zeros(1, 3, HEIGHT, WIDTH), pictures_of(0),
    )  # fmt: skip
    with torch.inference_mode():
        kept, _ = blend(*arguments)
        # The first neighbour lies 2 px to the right.
        for guides in blend.look.say.bias[:-2].split(NUM_HELD):
            guides[7] = 60.0
        moved, _ = blend(*arguments)
    assert torch.allclose(moved[..., :-4], kept[..., 4:], atol=0.5)  # of 8 px
