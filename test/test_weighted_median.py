# SPDX-License-Identifier: Apache-2.0
"""The weighted median of the flow, against a second implementation and on a shifted edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from daflow_ros.flow.hypotheses import BACKWARD, NUM_HYPOTHESES
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_TINY
from daflow_ros.models.weighted_median import (
    GREY,
    ROUNDS,
    median_along_edges,
    noise_level,
    weighted_median,
)


def test_the_noise_is_found_and_a_ramp_is_none() -> None:
    """Gaussian noise of 5 and 25 grey values a channel; a ramp alone."""
    generator = torch.Generator().manual_seed(3)
    ramp = torch.linspace(-0.5, 0.5, 96)[None, None, None].expand(2, 3, 96, 96)
    noise = torch.randn(2, 3, 96, 96, generator=generator)
    sigma = torch.tensor([5.0, 25.0])[:, None, None, None] * GREY
    torch.testing.assert_close(noise_level(ramp + noise * sigma), sigma, rtol=0.05, atol=0)
    assert float(noise_level(ramp).max()) < 0.01 * GREY


def test_the_median_is_weiszfelds() -> None:
    """Of 25 samples at single pixels, by numpy."""
    rng = np.random.default_rng(5)
    flow = rng.normal(0, 3, (2, 24, 24))
    guide = rng.uniform(-1, 1, (3, 24, 24))
    trust = rng.uniform(0.1, 1, (1, 24, 24))
    found = weighted_median(
        *(torch.from_numpy(x)[None] for x in (flow, guide, trust)), 2, 3, 0.8, 5.0
    )[0].numpy()
    for y, x in ((8, 9), (12, 15), (15, 7)):
        rows = [(y + 3 * i, x + 3 * j) for i in range(-2, 3) for j in range(-2, 3)]
        values = np.array([flow[:, r, c] for r, c in rows])
        weights = np.array([
            trust[0, r, c]
            * np.exp(-((guide[:, r, c] - guide[:, y, x]) ** 2).sum() / (2 * 0.8**2))
            * np.exp(-((r - y) ** 2 + (c - x) ** 2) / (2 * 5.0**2))
            for r, c in rows
        ])  # fmt: skip
        median = (weights[:, None] * values).sum(axis=0) / weights.sum()
        for _ in range(ROUNDS):
            share = weights / (np.linalg.norm(values - median, axis=1) + 0.05)
            median = (share[:, None] * values).sum(axis=0) / share.sum()
        np.testing.assert_allclose(found[:, y, x], median, rtol=0, atol=1e-6)


def scene(late: int) -> tuple[torch.Tensor, ...]:
    """Two textured halves that part by 6 px; a flow that changes ``late`` px behind the edge.

    First and second image, true and given flow; the right half, which is in front, moves.
    """
    generator = torch.Generator().manual_seed(1)
    texture = 0.2 * torch.rand(1, 3, 96, 160, generator=generator)
    left, right = texture - 0.6, texture + 0.4
    x = torch.arange(160)
    image1 = torch.where(x < 80, left, right)
    image2 = torch.where(x < 86, left, right.roll(6, dims=-1))
    true = torch.stack([6.0 * (x >= 80), 0.0 * x]).expand(96, 2, 160).transpose(0, 1)[None]
    given = torch.stack([6.0 * (x >= 80 - late), 0.0 * x])
    return image1, image2, true, given.expand(96, 2, 160).transpose(0, 1)[None].contiguous()


@pytest.mark.parametrize('late', [-5, 5])
def test_edges_of_the_flow_move_to_those_of_the_image(late: int) -> None:
    """A foreground fattened or thinned by 5 px, as patches make it."""
    image1, image2, true, given = scene(late)
    spread = torch.full((1, 1, 96, 160), 0.2)
    found = median_along_edges(given, spread, image1, image2)
    before, after = ((x - true).norm(dim=1).mean() for x in (given, found))
    assert float(after) < 0.25 * float(before)


def test_what_all_agree_on_stays() -> None:
    """A constant flow, whatever the images show."""
    generator = torch.Generator().manual_seed(2)
    flow = torch.tensor([3.25, -1.5])[None, :, None, None].expand(1, 2, 48, 64).contiguous()
    image1, image2 = torch.rand(2, 1, 3, 48, 64, generator=generator)
    found = median_along_edges(flow, torch.rand(1, 1, 48, 64), image1, image2)
    torch.testing.assert_close(found, flow, rtol=0, atol=1e-4)


def test_what_no_candidate_doubts_is_left_alone() -> None:
    """Flow without spread, however unlike the images it is."""
    generator = torch.Generator().manual_seed(4)
    flow = torch.randn(1, 2, 48, 64, generator=generator)
    images = torch.rand(2, 1, 3, 48, 64, generator=generator)
    found = median_along_edges(flow, torch.zeros(1, 1, 48, 64), *images)
    assert torch.equal(found, flow)


def test_half_precision_changes_little() -> None:
    """Under autocast, as an estimator of dtype bfloat16 runs."""
    image1, image2, _, given = scene(5)
    spread = torch.full((1, 1, 96, 160), 0.2)
    exact = median_along_edges(given, spread, image1, image2)
    with torch.autocast('cpu', torch.bfloat16):
        half = median_along_edges(given, spread, image1, image2)
    assert half.dtype == torch.float32
    assert float((half - exact).abs().mean()) < 0.02


def test_the_gradient_passes_the_median_by() -> None:
    """The output is the median's in training as without, and every share has a gradient."""
    torch.manual_seed(0)
    network = RAFT(**RAFT_TINY)
    images = torch.rand(2, 1, 3, 64, 64)
    hypotheses = 3 * torch.randn(1, NUM_HYPOTHESES + len(BACKWARD), 2, 64, 64)
    trained = network.train()(*images, iterations=1, hypotheses=hypotheses).flow
    trained.sum().backward()
    grad = network.fusion.head.weight.grad
    assert grad is not None and float(grad.abs().sum()) > 0
    with torch.no_grad():
        plain = network(*images, iterations=1, hypotheses=hypotheses).flow
    torch.testing.assert_close(trained.detach(), plain)
