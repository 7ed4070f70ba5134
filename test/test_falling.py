# SPDX-License-Identifier: Apache-2.0
"""Rain and snow taken away along a flow, against the images before it fell."""

import cv2
import numpy as np

from daflow_ros.estimators import load_estimator
from daflow_ros.flow.falling import (
    OPENING,
    bright_things_fall,
    inverse_flow,
    without_falling,
)
from daflow_ros.flow.preparation import open_by_reconstruction

DX, DY = 4, 2


def scene(height=160, width=224):
    """A textured pair that moves by (DX, DY) px, and its flow."""
    noise = np.random.default_rng(0).normal(0, 1, (height + 40, width + 40, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 3) * 2 + cv2.GaussianBlur(noise, (0, 0), 1)
    texture = np.clip(100 + 40 * texture / texture.std(), 0, 200).astype(np.uint8)
    crops = [texture[20 - y : 20 - y + height, 20 - x : 20 - x + width]
             for x, y in ((0, 0), (DX, DY))]  # fmt: skip
    return crops, np.full((height, width, 2), (DX, DY), np.float32)


def snow(pair, seed=1, flakes=90):
    random = np.random.default_rng(seed)
    out = []
    for image in pair:
        image = np.ascontiguousarray(image)
        for x, y in random.integers(0, (image.shape[1], image.shape[0]), (flakes, 2)):
            cv2.circle(image, (int(x), int(y)), 3, (235, 235, 235), -1)
        out.append(image)
    return out


def test_the_inverse_of_a_smooth_flow_leads_back():
    y, x = np.mgrid[:120, :160].astype(np.float32)
    flow = np.stack([3 + 4 * np.sin(y / 30), 2 * np.cos(x / 25) - 0.02 * y], -1)
    back, valid = inverse_flow(flow.astype(np.float32))
    at_x, at_y = x + back[..., 0], y + back[..., 1]
    inner = (slice(15, -15), slice(15, -15))
    forth = np.stack([3 + 4 * np.sin(at_y / 30), 2 * np.cos(at_x / 25) - 0.02 * at_y], -1)
    assert valid[inner].all()
    assert np.abs(back + forth)[inner].max() < 0.05


def test_what_comes_into_sight_is_told():
    flow = np.zeros((60, 100, 2), np.float32)
    flow[:, 50:, 0] = 8  # the right half moves off and uncovers 8 columns
    _, valid = inverse_flow(flow)
    assert not valid[:, 52:56].any()
    assert valid[:, :48].all() and valid[:, 60:].all()


def test_flakes_go_where_the_flow_is_right():
    clear, flow = scene()
    inner = (slice(10, -10), slice(10, -10))
    fallen_pair = snow(clear)
    mended_pair = without_falling(*fallen_pair, flow)
    for fallen, mended, truth in zip(fallen_pair, mended_pair, clear, strict=True):
        before = np.abs(fallen.astype(int) - truth)[inner].mean()
        after = np.abs(mended.astype(int) - truth)[inner].mean()
        assert after < 0.35 * before
    # A clear pair hardly changes.
    for image, mended in zip(clear, without_falling(*clear, flow), strict=True):
        assert np.abs(image.astype(int) - mended)[inner].mean() < 1


def test_what_falls_is_bright():
    clear, flow = scene()
    assert bright_things_fall(*snow(clear), flow)
    assert not bright_things_fall(*clear, flow)
    dark = [255 - image for image in snow([255 - image for image in clear])]
    assert not bright_things_fall(*dark, flow)
    random = np.random.default_rng(5)
    noisy = [
        np.clip(image + random.normal(0, 30, image.shape), 0, 255).astype(np.uint8)
        for image in clear
    ]
    assert not bright_things_fall(*noisy, flow)


def test_a_wrong_flow_takes_no_more_than_an_opening():
    pair = snow(scene()[0])
    wrong = np.random.default_rng(3).uniform(-20, 20, (160, 224, 2)).astype(np.float32)
    for image, mended in zip(pair, without_falling(*pair, wrong), strict=True):
        opened = open_by_reconstruction(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), OPENING)
        grey = cv2.cvtColor(mended, cv2.COLOR_RGB2GRAY)
        assert (grey.astype(int) >= opened.astype(int) - 2).all()
        assert (mended <= image).all()


def test_more_looks_see_through_snow_and_leave_clear_pairs():
    clear, flow = scene()
    fallen = snow(clear, flakes=160)
    once, thrice = (load_estimator('raft_tiny', device='cpu', looks=looks) for looks in (1, 3))

    def error(estimator, pair):
        off = estimator.estimate(*pair).flow - flow
        return np.linalg.norm(off, axis=-1)[20:-20, 20:-20].mean()

    assert error(thrice, fallen) < 0.9 * error(once, fallen)
    assert np.array_equal(once.estimate(*clear).flow, thrice.estimate(*clear).flow)
    # A deadline cuts iterations: then once is enough.
    hurried = [each.estimate(*fallen, iterations=1).flow for each in (once, thrice)]
    assert np.array_equal(*hurried)
