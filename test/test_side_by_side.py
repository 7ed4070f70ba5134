# SPDX-License-Identifier: Apache-2.0
"""Pictures and film of a replay."""

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')

from daflow_ros.datasets.recorded_flow import RecordedFlow
from daflow_ros.datasets.recordings import Frame
from daflow_ros.flow.colorwheel import flow_to_color
from daflow_ros.ros.side_by_side import VideoWriter, compose, confidence_to_color, typical_length

HEIGHT, WIDTH = 120, 160


def field(confidence=None):
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    flow[..., 0] = 8.0
    return RecordedFlow(1, 2, flow, confidence, 'dis', '', 0.0, 0.0)


def frame(truth=False):
    image = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
    flow = np.full((HEIGHT, WIDTH, 2), (0, -8), np.float32) if truth else None
    return Frame(1, image, 'camera', flow)


def panels(image):
    """Lower right pixel of every panel, row by row."""
    rows, columns = image.shape[0] // HEIGHT, image.shape[1] // WIDTH
    return [image[(r + 1) * HEIGHT - 2, (c + 1) * WIDTH - 2].tolist()
            for r in range(rows) for c in range(columns)]


def test_panels_show_what_they_say():
    right = flow_to_color(np.array([[[8.0, 0.0]]]), 8.0)[0, 0].tolist()
    up = flow_to_color(np.array([[[0.0, -8.0]]]), 8.0)[0, 0].tolist()
    sure = confidence_to_color(np.ones((1, 1), np.float32))[0, 0].tolist()
    image = [200, 100, 50]
    assert panels(compose(frame(), field(), 8.0, False, False)) == [image, right]
    assert panels(compose(frame(True), field(), 8.0, False, True, 1.5)) == [image, right, up]
    full = compose(frame(True), field(np.ones((HEIGHT, WIDTH), np.float32)), 8.0, True, True)
    assert full.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    assert panels(full) == [image, right, sure, up]
    # The layout stays where there is no flow for a frame, or a film could not be made of them.
    without = compose(frame(), None, 8.0, True, True)
    assert without.shape == full.shape
    assert panels(without)[1:] == [[40, 40, 40]] * 3


def test_confidence_colours():
    colours = confidence_to_color(np.array([[0.0, 1.0, np.nan, 2.0]], np.float32))[0].astype(int)
    assert colours[0].sum() < 200 < 400 < colours[1].sum()
    assert (colours[2] == 0).all()
    assert (colours[3] == colours[1]).all()


def test_typical_length():
    flow = np.zeros((80, 80, 2), np.float32)
    assert typical_length(flow) == 0
    flow[:] = (3, 4)
    flow[:40] = np.nan
    assert typical_length(flow) == pytest.approx(5)
    assert np.isnan(typical_length(np.full_like(flow, np.nan)))


def test_a_film_plays(tmp_path):
    """Odd and changing sizes become one film with all frames and the right colours."""
    writer = VideoWriter(tmp_path / 'film.mp4', 10.0)
    for index in range(12):
        size = (101, 151, 3) if index < 6 else (60, 80, 3)
        writer.write(np.full(size, (20 * index, 100, 50), np.uint8))
    writer.close()
    capture = cv2.VideoCapture(str(tmp_path / 'film.mp4'))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    for index in range(12):
        got, bgr = capture.read()
        assert got
        assert bgr.shape == (100, 152, 3)
        assert np.abs(bgr.mean(axis=(0, 1))[::-1] - (20 * index, 100, 50)).max() < 8
    assert not capture.read()[0]
    wide = VideoWriter(tmp_path / 'wide.mp4', 10.0)
    wide.write(np.zeros((100, 4000, 3), np.uint8))
    wide.close()
    assert cv2.VideoCapture(str(tmp_path / 'wide.mp4')).read()[1].shape == (48, 1920, 3)
    with pytest.raises(OSError, match='nowhere'):
        VideoWriter(tmp_path / 'nowhere' / 'film.mp4', 10.0).write(np.zeros((64, 64, 3), np.uint8))
