# SPDX-License-Identifier: Apache-2.0
"""The dominant plane's motion: found on the images, near a flow that only roughly follows it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pictures import photograph
from torch import Tensor

from daflow_ros.flow.dominant_motion import dominant_motion
from daflow_ros.models.dominant_plane import dominant_plane

HEIGHT, WIDTH = 160, 224


def plane_motion(tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """A homography (3x3, px of the first image to px of the second), and its flow."""
    middle = np.array([[1, 0, WIDTH / 2], [0, 1, HEIGHT / 2], [0, 0, 1]])
    about = np.array([[1.02, 0.015, 4.3], [-0.01, 0.99, -2.6], [tilt, tilt / 2, 1]])
    homography = middle @ about @ np.linalg.inv(middle)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    there = np.stack([x, y, np.ones_like(x)], axis=-1) @ homography.T
    flow = there[..., :2] / there[..., 2:] - np.stack([x, y], axis=-1)
    return homography, flow.astype(np.float32)


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(scope='module')
def scene() -> tuple[Tensor, Tensor, Tensor]:
    """A plane in perspective, a quarter of it hidden by what moves otherwise, in noise."""
    rng = np.random.default_rng(3)
    homography, flow = plane_motion(2e-4)
    first = photograph(rng, HEIGHT, WIDTH)
    second = cv2.warpPerspective(
        first, homography, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    other = photograph(rng, 80, 112)
    first[20:100, 30:142] = other
    second[12:92, 45:157] = other
    noisy = [
        np.clip(0.8 * image + gain + 12 * rng.standard_normal(image.shape), 0, 255)
        for image, gain in ((first, 0), (second, 20))
    ]
    images = [tensor(image.astype(np.uint8)) for image in noisy]
    return images[0], images[1], torch.from_numpy(flow).permute(2, 0, 1)[None]


def rough(flow: Tensor) -> Tensor:
    """A flow as one is found in noise: wrong by a pixel or so, and other in a quarter."""
    g = torch.Generator().manual_seed(4)
    coarse = torch.randn((1, 2, HEIGHT // 16, WIDTH // 16), generator=g)
    found = flow + torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode='bicubic')
    found[:, :, 20:100, 30:142] = torch.tensor([15.0, -8.0])[:, None, None]
    return found


def test_it_is_more_exact_than_the_flow_that_it_comes_from(scene) -> None:
    first, second, flow = scene
    plane = dominant_plane(rough(flow), first, second)
    error = (plane - flow).norm(dim=1)
    assert plane.dtype == torch.float32 and plane.shape == flow.shape
    # The rough flow is wrong by 0.9 px, its least-squares fit by 0.2.
    assert error.mean() < 0.06 and error.max() < 0.3
    assert (rough(flow) - flow).norm(dim=1).median() > 0.5


def test_opencv_finds_the_same_plane(scene) -> None:
    first, second, flow = scene
    grey1, grey2 = (
        cv2.GaussianBlur(x[0].mean(dim=0).numpy() * 127.5 + 127.5, (0, 0), 1.5).astype(np.float32)
        for x in (first, second)
    )
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[8:104, 26:162] = 0
    start = np.float32([[1, 0, 4], [0, 1, -3], [0, 0, 1]])
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-6)
    _, found = cv2.findTransformECC(grey1, grey2, start, cv2.MOTION_HOMOGRAPHY, criteria, mask, 1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    there = np.stack([x, y, np.ones_like(x)], axis=-1) @ found.T
    expected = there[..., :2] / there[..., 2:] - np.stack([x, y], axis=-1)
    plane = dominant_plane(rough(flow), first, second)[0].permute(1, 2, 0).numpy()
    assert np.linalg.norm(plane - expected, axis=-1).mean() < 0.1


def test_a_batch_gives_what_its_pairs_give(scene) -> None:
    first, second, flow = scene
    # The second has nothing to be registered on.
    plain = torch.zeros_like(first)
    flows = torch.cat([rough(flow), flow])
    both = dominant_plane(flows, torch.cat([first, plain]), torch.cat([second, plain]))
    for index, (one, two) in enumerate([(first, second), (plain, plain)]):
        alone = dominant_plane(flows[index : index + 1], one, two)
        assert torch.allclose(both[index], alone[0], atol=5e-3)
    # There it stays what most of the flow follows, by another implementation.
    expected = dominant_motion(flow[0].permute(1, 2, 0).numpy())
    assert np.allclose(both[1].permute(1, 2, 0), expected, atol=0.02)


@pytest.mark.parametrize('height, width', [(16, 16), (64, 96)])
def test_small_and_wild_input_is_finite(height: int, width: int) -> None:
    g = torch.Generator().manual_seed(5)
    images = [torch.rand((1, 3, height, width), generator=g) * 2 - 1 for _ in range(2)]
    for flow in (
        torch.zeros(1, 2, height, width),
        200 * torch.randn((1, 2, height, width), generator=g),
        torch.full((1, 2, height, width), 1e4),
    ):
        plane = dominant_plane(flow, *images)
        assert torch.isfinite(plane).all()
    # What leads out of the image cannot be registered.
    assert torch.allclose(plane, flow, rtol=1e-4)


def test_autocast_costs_no_precision(scene) -> None:
    first, second, flow = scene
    plane = dominant_plane(rough(flow), first, second)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(dominant_plane(rough(flow), first, second), plane)
