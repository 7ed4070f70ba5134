# SPDX-License-Identifier: Apache-2.0
"""The dominant motion registered on images, and flow drawn to it."""

import cv2
import numpy as np
import pytest

from daflow_ros.estimators import load_estimator, network
from daflow_ros.flow.dominant_motion import affine_flow, dominant_motion, fit_affine
from daflow_ros.flow.hypotheses import even_contrast
from daflow_ros.flow.parametric_prior import draw_to_dominant_motion
from daflow_ros.flow.registration import register_affine

HEIGHT, WIDTH = 240, 320
#: To where a pixel (x, y, 1) goes: turned, zoomed and shifted by up to some 7 px.
MATRIX = np.array([[1.015, -0.02, 3.1], [0.02, 1.015, -5.3]])
THING = (slice(90, 150), slice(120, 200))
OWN = (-6, 4)


def texture(height=HEIGHT, width=WIDTH, seed=0):
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3)).astype(np.float32)
    mixed = 3 * cv2.GaussianBlur(noise, (0, 0), 4) + cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(120 + 45 * mixed / mixed.std(), 0, 255).astype(np.uint8)


def moved(matrix=MATRIX, height=HEIGHT, width=WIDTH):
    """The flow of an affine matrix, without the package's own basis."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    there = np.stack([x, y, np.ones_like(x)], -1) @ matrix.T
    return (there - np.stack([x, y], -1)).astype(np.float32)


def pair(noise=0.0, thing=False):
    first = texture()
    second = cv2.warpAffine(
        first, MATRIX, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    flow = moved()
    if thing:
        surface = texture(60, 80, seed=3)
        first[THING] = surface
        top, left = THING[0].start + OWN[1], THING[1].start + OWN[0]
        second[top : top + 60, left : left + 80] = surface
        flow[THING] = OWN
    random = np.random.default_rng(1)
    images = [
        np.clip(image + random.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
        for image in (first, second)
    ]
    return images, flow


def wavering(flow, px, seed=2, sigma=8):
    """The flow, off by ``px`` in the mean, alike over some ``sigma`` px."""
    off = np.random.default_rng(seed).normal(0, 1, flow.shape).astype(np.float32)
    off = cv2.GaussianBlur(off, (0, 0), sigma)
    return flow + off * np.float32(px / np.linalg.norm(off, axis=-1).mean())


def epe(flow, truth):
    return np.linalg.norm(flow - truth, axis=-1)


def grey(images):
    return [even_contrast(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) for image in images]


def test_the_parameters_give_the_flow_that_was_fitted():
    truth = moved()
    np.testing.assert_array_equal(
        affine_flow(fit_affine(truth), HEIGHT, WIDTH), dominant_motion(truth)
    )
    # The pull of its linear part towards none is seen at the border.
    assert epe(dominant_motion(truth), truth).mean() < 0.3


@pytest.mark.parametrize(('noise', 'most'), [(0, 0.03), (25, 0.1)])
def test_registration_finds_the_motion_that_made_the_pair(noise, most):
    images, truth = pair(noise)
    start = fit_affine(truth) + np.array([[0.6, -0.5], [0.3, 0], [0, -0.4]])
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    before = epe(affine_flow(start, HEIGHT, WIDTH), truth).mean()
    found = affine_flow(register_affine(*grey(images), start, everywhere), HEIGHT, WIDTH)
    assert before > 0.6 and epe(found, truth).mean() < most


def test_registration_agrees_with_enhanced_correlation():
    images, _ = pair(12)
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    start = fit_affine(moved())
    ours = affine_flow(register_affine(*grey(images), start, everywhere), HEIGHT, WIDTH)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-6)
    _, other = cv2.findTransformECC(
        *grey(images), MATRIX.astype(np.float32), cv2.MOTION_AFFINE, criteria, None, 5
    )
    assert epe(ours, moved(other)).mean() < 0.1


def test_registration_goes_by_what_follows():
    images, truth = pair(8, thing=True)
    start = fit_affine(moved())
    follows = np.zeros((HEIGHT, WIDTH), bool)
    follows[THING] = True
    found = affine_flow(register_affine(*grey(images), start, ~follows), HEIGHT, WIDTH)
    assert epe(found, moved()).mean() < 0.1
    own = np.zeros((3, 2))
    own[0] = OWN[0] + 0.7, OWN[1] - 0.6
    found = affine_flow(register_affine(*grey(images), own, follows), HEIGHT, WIDTH)
    assert epe(found, truth)[THING].mean() < 0.1


def test_registration_leaves_what_it_cannot_better():
    start = fit_affine(moved())
    few = np.zeros((HEIGHT, WIDTH), bool)
    few[:20, :20] = True
    images, _ = pair()
    assert register_affine(*grey(images), start, few) is start
    plain = np.full((HEIGHT, WIDTH), 128, np.uint8)
    np.testing.assert_allclose(
        register_affine(plain, plain, start, np.ones((HEIGHT, WIDTH), bool)), start
    )


def test_an_unsure_flow_is_drawn_to_the_motion_that_most_of_it_follows():
    images, truth = pair(20)
    flow = wavering(truth, 0.6)
    error = np.full((HEIGHT, WIDTH), 0.6, np.float32)
    drawn = draw_to_dominant_motion(flow, error, *images)
    assert drawn.dtype == np.float32
    assert epe(drawn, truth).mean() < 0.5 * epe(flow, truth).mean()
    # A flow that is sure of itself stays.
    sure = draw_to_dominant_motion(flow, error / 30, *images)
    assert np.abs(sure - flow).mean() < 0.02


def test_what_moves_otherwise_keeps_its_motion():
    images, truth = pair(5, thing=True)
    flow = wavering(truth, 0.3)
    error = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    drawn = draw_to_dominant_motion(flow, error, *images)
    assert epe(drawn, flow)[THING].max() < 0.1
    rest = np.ones((HEIGHT, WIDTH), bool)
    rest[THING] = False
    assert epe(drawn, truth)[rest].mean() < 0.6 * epe(flow, truth)[rest].mean()


def test_a_slight_motion_that_the_images_show_is_not_flattened():
    """A thing off the dominant motion by no more than its flow is unsure of."""
    images, truth = pair(3)
    shifted = truth.copy()
    shifted[THING] += (1.2, 0)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    # The first image, sampled so that the thing's surface moves on by 1.2 px.
    at_x = np.where(shifted[..., 0] != truth[..., 0], x + np.float32(1.2), x).astype(np.float32)
    first = cv2.remap(images[0], at_x, y, cv2.INTER_CUBIC)
    error = np.full((HEIGHT, WIDTH), 0.8, np.float32)
    drawn = draw_to_dominant_motion(shifted, error, first, images[1])
    unseen = draw_to_dominant_motion(shifted, error, images[0], images[1])
    inner = (slice(105, 135), slice(135, 185))
    assert epe(drawn, shifted)[inner].mean() < 0.15
    assert epe(unseen, truth)[inner].mean() < 0.6


def test_driving_ahead_nothing_is_drawn():
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    depth = 3 + 40 / (1 + np.abs(y - HEIGHT / 2) / 8)
    away = np.stack([x - WIDTH / 2, y - HEIGHT / 2], -1)
    flow = np.float32(0.9) * away / depth[..., None]
    error = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    images = [texture(), texture(seed=5)]
    assert draw_to_dominant_motion(flow, error, *images) is flow


@pytest.mark.parametrize('shape', [(1, 1), (3, 7), (40, 2), (64, 64)])
def test_any_size_and_plain_images_do(shape):
    flow = np.zeros((*shape, 2), np.float32)
    image = np.full((*shape, 3), 90, np.uint8)
    drawn = draw_to_dominant_motion(flow, np.zeros(shape, np.float32), image, image)
    assert drawn.shape == flow.shape and np.abs(drawn).max() < 1e-3


def test_the_shipped_model_gains_where_the_camera_looks_at_a_plane(monkeypatch):
    images, truth = pair(30)
    drawn = load_estimator('raft_tiny', device='cpu').estimate(*images).flow
    monkeypatch.setattr(network, 'draw_to_dominant_motion', lambda flow, *_: flow)
    alone = load_estimator('raft_tiny', device='cpu').estimate(*images).flow
    assert epe(drawn, truth).mean() < 0.85 * epe(alone, truth).mean()
