# SPDX-License-Identifier: Apache-2.0
"""Blocks that a codec left out, against the images before it."""

import cv2
import numpy as np
import pytest
import torch

from daflow_ros.degradation import compression
from daflow_ros.flow.concealment import BLOCK, conceal_frozen, fill_flow, frozen_blocks

DX, DY = 5, 3


def scene(height=240, width=320, frames=2):
    """Frames that move by (DX, DY) px: strong texture on the left, weak on the right."""
    random = np.random.default_rng(0)
    side = 20 + max(DX, DY) * frames
    noise = random.normal(0, 1, (height + 2 * side, width + 2 * side, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 4) * 3 + cv2.GaussianBlur(noise, (0, 0), 1.5)
    ramp = np.linspace(60, 6, texture.shape[1], dtype=np.float32)[:, None]
    texture = np.clip(120 + texture / texture.std() * ramp, 0, 255).astype(np.uint8)
    return [
        np.ascontiguousarray(
            texture[side - DY * t : side - DY * t + height, side - DX * t : side - DX * t + width]
        )
        for t in range(frames)
    ]


def frozen_pair():
    """The pair of a scene, most of the weaker half of whose second image was left out."""
    first, truth = scene()
    left_out = np.random.default_rng(1).random((240 // BLOCK, 320 // BLOCK)) < 0.6
    left_out[:, :20] = False
    mask = np.kron(left_out, np.ones((BLOCK, BLOCK), bool))
    return first, np.where(mask[..., None], first, truth), truth, left_out, mask


def greys(*images):
    return [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]


def test_left_out_blocks_are_found_and_predicted():
    first, second, truth, left_out, mask = frozen_pair()
    assert np.array_equal(frozen_blocks(*greys(first, second)), left_out)
    concealed = conceal_frozen(first, second)
    assert np.array_equal(concealed[~mask], second[~mask])
    inner = np.zeros_like(mask)
    inner[20:-20, 20:-20] = mask[20:-20, 20:-20]
    before = np.abs(second.astype(int) - truth)[inner].mean()
    after = np.abs(concealed.astype(int) - truth)[inner].mean()
    assert after < 0.4 * before


@pytest.mark.parametrize(('step', 'last'), [(50, 2), (80, 2), (80, 4)])
def test_a_codec_at_a_low_bit_rate_holds_the_flow_back_less(step, last):
    # Turned about the centre and enlarged: no one shift predicts it.
    (image,) = scene(320, 400, frames=1)
    turns = [cv2.getRotationMatrix2D((200, 160), 2.0 * t, 1 + 0.015 * t) for t in range(last)]
    frames = np.stack([cv2.warpAffine(image, turn, (400, 320)) for turn in turns])
    frames = torch.from_numpy(frames[:, 40:-40, 40:-40]).permute(0, 3, 1, 2).float() / 255
    coded = compression.video(frames, step)
    first, second = (255 * coded[-2:].permute(0, 2, 3, 1).numpy()).round().astype(np.uint8)
    y, x = np.mgrid[40:280, 40:360]
    at = np.stack([x, y, np.ones_like(x)], -1)
    back = np.vstack([cv2.invertAffineTransform(turns[-2]), [0, 0, 1]])
    flow = at @ (turns[-1] @ back).T - at[..., :2]
    frozen = np.kron(frozen_blocks(*greys(first, second)), np.ones((BLOCK, BLOCK), bool))
    assert frozen.mean() > 0.1
    concealed = conceal_frozen(first, second)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    before, after = (
        np.linalg.norm(dis.calc(*greys(first, image), None) - flow, axis=-1)
        for image in (second, concealed)
    )
    assert after[frozen].mean() < 0.7 * before[frozen].mean()
    assert after.mean() < 0.85 * before.mean()


@pytest.mark.parametrize('quality', [10, 30, 80])
def test_plain_blocks_of_single_jpegs_are_alike_by_chance(quality):
    pair = [
        cv2.imdecode(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
        for image in scene()
    ]
    assert conceal_frozen(*pair) is pair[1]


def test_what_is_at_rest_and_textured_stays():
    first = scene()[0]
    second = first.copy()
    second[60:140, 40:120] = first[63:143, 44:124]  # an object before a camera on a tripod
    assert conceal_frozen(first, second) is second
    assert conceal_frozen(first, first) is first


@pytest.mark.parametrize('step', [15, 40, 60])
@pytest.mark.parametrize('last', [2, 4])
@pytest.mark.parametrize('contrast', [1.0, 0.3, 0.2])
def test_a_camera_at_rest_behind_a_codec_is_left_alone(step, last, contrast):
    # A textured object before a textured or a weakly textured wall.
    wall, thing = scene(frames=1)[0], scene(400, 400, frames=1)[0][50:170, 60:180]
    wall = (120 + contrast * (wall.astype(float) - 120)).round().astype(np.uint8)
    random = np.random.default_rng(2)
    frames = []
    for t in range(last):
        frame = wall.copy()
        frame[50 + 2 * t : 170 + 2 * t, 60 + 6 * t : 180 + 6 * t] = thing
        frames.append(np.clip(frame + random.normal(0, 2, frame.shape), 0, 255))
    clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    coded = compression.video(clip, step)
    first, second = (255 * coded[-2:].permute(0, 2, 3, 1).numpy()).round().astype(np.uint8)
    assert conceal_frozen(first, second) is second


@pytest.mark.parametrize('size', [(1, 1), (20, 200), (33, 47), (60, 61)])
def test_any_size(size):
    first, second = (image[: size[0], : size[1]] for image in scene())
    assert conceal_frozen(first, second).shape == first.shape
    assert conceal_frozen(first, first).shape == first.shape


def test_holes_in_a_flow_are_filled_from_about_them():
    y, x = np.mgrid[:96, :128].astype(np.float32)
    flow = np.stack([0.05 * x, 0.02 * y], -1)
    hole = np.zeros((96, 128), bool)
    hole[32:64, 40:80] = True
    torn = np.where(hole[..., None], np.float32(99), flow)
    filled = fill_flow(torn, hole)
    assert np.array_equal(filled[~hole], flow[~hole])
    assert np.abs(filled - flow)[hole].max() < 1.5
    assert (fill_flow(torn, np.ones_like(hole)) == 0).all()
