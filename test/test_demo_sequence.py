# SPDX-License-Identifier: Apache-2.0
"""The demo's ground truth is exact, and its bag reads back."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from daflow_ros.datasets import demo_sequence
from daflow_ros.datasets.planar_scene import Camera, Plane, Texture, render
from daflow_ros.datasets.recordings import open_recording

SIZE = (240, 320)


@pytest.fixture(scope='module')
def street():
    return list(demo_sequence.render_sequence(4, SIZE))


def still(_time):
    return np.eye(3)


def texture(seed=0):
    rng = np.random.default_rng(seed)
    return Texture(cv2.resize(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8), (400, 400)))


def test_a_fronto_parallel_plane_has_the_textbook_flow():
    """Approaching at depth Z by d moves a pixel away from the centre by d / (Z - d)."""
    focal, depth, step = 200.0, 10.0, 0.5
    camera = Camera(np.array([[focal, 0, 60], [0, focal, 40], [0, 0, 1.0]]),
                    lambda t: np.array([0.1 * t, 0, step * t]), still)
    plane = Plane(texture(), np.array([-20.0, -20, depth]), np.array([40.0, 0, 0]),
                  np.array([0, 40.0, 0]), 0)
    frame = render([plane], camera, 0.0, (80, 120))
    y, x = np.mgrid[:80, :120]
    left = depth - step
    # X / Z with X = (x - 60) Z / f, then from 0.1 m further right and d nearer.
    u = focal * ((x - 60) * depth / focal - 0.1) / left + 60 - x
    v = (y - 40) * depth / left + 40 - y
    np.testing.assert_allclose(frame.flow, np.stack([u, v], -1), atol=1e-4)
    np.testing.assert_allclose(frame.depth, depth, rtol=1e-6)


def test_a_rotation_moves_everything_alike_and_nearer_planes_hide_farther_ones():
    focal, angle = 200.0, 0.02

    def rotation(time):
        return cv2.Rodrigues(np.array([0.0, angle * time, 0.0]))[0]

    camera = Camera(np.array([[focal, 0, 60], [0, focal, 40], [0, 0, 1.0]]),
                    lambda t: np.zeros(3), rotation)
    side, down = np.array([400.0, 0, 0]), np.array([0, 400.0, 0])
    sky = Plane(texture(1), np.array([-2.0, -2, 1]), side / 100, down / 100, 0, infinite=True)
    wall = Plane(texture(2), np.array([0.0, -200, 50]), side, down, 1)
    card = Plane(texture(3), np.array([-0.5, -0.5, 5]), side / 400, down / 400, 2)
    frame = render([card, sky, wall], camera, 0.0, (80, 120))
    assert frame.plane[40, 60] == 0
    assert frame.plane[5, 110] == 2
    assert frame.plane[5, 5] == 1
    assert np.isinf(frame.depth[5, 5])
    y, x = np.mgrid[:80, :120]
    tan = np.tan(np.arctan((x - 60) / focal) + angle)
    scale = np.cos(np.arctan((x - 60) / focal)) / np.cos(np.arctan((x - 60) / focal) + angle)
    expected = np.stack([focal * tan + 60 - x, (y - 40) * scale + 40 - y], -1)
    np.testing.assert_allclose(frame.flow, expected, atol=1e-3)


def test_the_second_frame_warped_back_is_the_first(street):
    """Photometric check of the whole street: apart from what is hidden, every pixel returns."""
    for first, second in pairwise(street):
        y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
        map_x, map_y = x + first.flow[..., 0], y + first.flow[..., 1]
        warped = cv2.remap(second.image, map_x, map_y, cv2.INTER_CUBIC)
        where = cv2.remap(second.plane.astype(np.float32), map_x, map_y, cv2.INTER_NEAREST,
                          borderValue=-1)
        # The same plane is seen there, and not at its edge, where colours of two planes mix.
        edges = cv2.morphologyEx(first.plane, cv2.MORPH_GRADIENT, np.ones((5, 5)))
        same = (where == first.plane) & (edges == 0)
        same &= (map_x > 1) & (map_x < SIZE[1] - 2) & (map_y > 1) & (map_y < SIZE[0] - 2)
        assert same.mean() > 0.6
        error = np.abs(warped.astype(float) - first.image).mean(axis=-1)
        wrong = cv2.remap(second.image, map_x + 1, map_y, cv2.INTER_CUBIC)
        error_wrong = np.abs(wrong.astype(float) - first.image).mean(axis=-1)
        assert error[same].mean() < 3.0
        assert error[same].mean() < 0.5 * error_wrong[same].mean()
        # No displacement by a fifth of a pixel would do better.
        for dx, dy in ((0.2, 0), (-0.2, 0), (0, 0.2), (0, -0.2)):
            moved = cv2.remap(second.image, map_x + dx, map_y + dy, cv2.INTER_CUBIC)
            assert np.abs(moved.astype(float) - first.image).mean(axis=-1)[same].mean() > (
                error[same].mean())


def test_the_street_moves_and_is_whole(street):
    for frame in street:
        assert (frame.plane >= 0).all()
        assert np.isfinite(frame.flow).all()
        assert (frame.depth > 0).all()
        assert 1 < np.linalg.norm(frame.flow, axis=-1).mean() < 20
    assert len(np.unique(street[0].plane)) > 20


def test_rendering_is_deterministic(street):
    again = next(demo_sequence.render_sequence(1, SIZE))
    np.testing.assert_array_equal(again.image, street[0].image)
    np.testing.assert_array_equal(again.flow, street[0].flow)


def test_the_bag_reads_back(tmp_path, street):
    images = np.stack([frame.image for frame in street])
    flows = [frame.flow for frame in street[:-1]]
    demo_sequence.write_sequence(tmp_path / 'bag', images, flows, np.eye(3))
    recording = open_recording(tmp_path / 'bag')
    assert recording.topic == '/camera/image_raw/compressed'
    assert recording.flow_topic == '/ground_truth/flow'
    frames = list(recording.frames())
    assert len(frames) == 4
    for index, frame in enumerate(frames):
        assert np.abs(frame.image.astype(int) - images[index]).mean() < 4
        if index < 3:
            np.testing.assert_allclose(frame.flow, flows[index], atol=0.5 / 256 + 1e-6)
            assert frame.valid.all()
    assert frames[3].flow is None
    steps = np.diff([frame.stamp_ns for frame in frames])
    np.testing.assert_allclose(steps, 1e9 / 15, atol=1)


def test_a_bag_that_is_there_is_not_rendered_again(tmp_path, monkeypatch):
    bag = tmp_path / f'demo_street_v{demo_sequence.VERSION}'
    bag.mkdir()
    (bag / 'metadata.yaml').touch()
    monkeypatch.setattr(demo_sequence, 'render_sequence', None)
    assert demo_sequence.demo_bag(tmp_path) == bag
