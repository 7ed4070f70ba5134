# SPDX-License-Identifier: Apache-2.0
"""The colour wheel against a scalar one, and the pictures drawn with it."""

import math

import numpy as np
import pytest

from daflow_ros.flow.colorwheel import color_wheel, draw_arrows, flow_to_color, overlay


def field(height=41, width=61):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack((x - width // 2, y - height // 2), -1)


def reference_color(u, v):
    """One vector, |(u, v)| <= 1, after Baker et al.'s colorcode.cpp, in scalars."""
    wheel = []
    for count, colour in (
        (15, lambda i: (255, 255 * i // 15, 0)), (6, lambda i: (255 - 255 * i // 6, 255, 0)),
        (4, lambda i: (0, 255, 255 * i // 4)), (11, lambda i: (0, 255 - 255 * i // 11, 255)),
        (13, lambda i: (255 * i // 13, 0, 255)), (6, lambda i: (255, 0, 255 - 255 * i // 6)),
    ):
        wheel += [colour(i) for i in range(count)]
    radius = math.sqrt(u * u + v * v)
    position = (math.atan2(-v, -u) / math.pi + 1) / 2 * (len(wheel) - 1)
    first = int(position)
    share = position - first
    colour = []
    for channel in range(3):
        c0 = wheel[first][channel] / 255
        c1 = wheel[(first + 1) % len(wheel)][channel] / 255
        c = (1 - share) * c0 + share * c1
        c = 1 - radius * (1 - c) if radius <= 1 else 0.75 * c
        colour.append(int(255 * c))
    return colour


def test_is_the_reference_wheel():
    flow = field(21, 31)
    longest = math.hypot(15, 10)
    expected = [[reference_color(u / longest, v / longest) for u, v in row] for row in
                flow.astype(float)]
    assert np.abs(flow_to_color(flow).astype(int) - expected).max() <= 1


def test_wheel_has_the_reference_colours():
    wheel = color_wheel()
    assert wheel.shape == (55, 3)
    assert wheel[0].tolist() == [255, 0, 0] and wheel[15].tolist() == [255, 255, 0]
    # makeColorwheel: 255 - floor(255 * i / 6) falling, floor(255 * i / 15) rising.
    assert wheel[1].tolist() == [255, 17, 0] and wheel[16].tolist() == [213, 255, 0]


def test_orientation_scale_and_unknown():
    flow = np.zeros((1, 5, 2), np.float32)
    flow[0, 1] = 10, 0
    flow[0, 2] = -10, 0
    flow[0, 3] = np.nan
    flow[0, 4] = 40, 0
    colours = flow_to_color(flow, max_flow=10)[0].astype(int)
    assert colours[0].tolist() == [255, 255, 255] and colours[3].tolist() == [0, 0, 0]
    assert colours[1, 0] > 250 and colours[1, 1:].max() < 10, 'right is red'
    assert colours[2, 0] < 10 and colours[2, 1:].min() > 200, 'left is cyan'
    assert abs(colours[4, 0] - 191) <= 1, 'beyond the scale is darkened'
    # A fixed scale gives the same colour in another field, the automatic one does not.
    assert np.array_equal(flow_to_color(flow[:, :2], 10)[0], colours[:2])
    assert not np.array_equal(flow_to_color(flow[:, 1:2]), flow_to_color(flow)[:, 1:2])


def test_still_and_unknown_fields():
    assert (flow_to_color(np.zeros((4, 5, 2))) == 255).all()
    assert (flow_to_color(np.full((4, 5, 2), np.inf)) == 0).all()
    with pytest.raises(ValueError, match='max_flow'):
        flow_to_color(np.zeros((4, 5, 2)), max_flow=0)


def test_arrows_point_where_the_flow_does():
    flow = np.zeros((64, 64, 2), np.float32)
    flow[..., 0] = 12
    flow[:32] = np.nan
    image = np.zeros((64, 64, 3), np.uint8)
    drawn = draw_arrows(image, flow, step=32, color=(255, 0, 0))
    assert image.max() == 0 and drawn[:32].max() == 0
    rows, columns = np.nonzero(drawn[..., 0])
    assert columns.min() == 16 and abs(columns[columns < 40].max() - 28) <= 1
    assert abs(np.median(rows) - 48) <= 1
    flow[40, 40] = 1e30
    draw_arrows(image, flow, step=16)


def test_overlay_blends():
    a, b = np.full((3, 4, 3), 100, np.uint8), np.full((3, 4, 3), 200, np.uint8)
    assert (overlay(a, b, 0.25) == 125).all() and (overlay(a, b, 0) == a).all()
    with pytest.raises(ValueError, match='alpha'):
        overlay(a, b, 2)
