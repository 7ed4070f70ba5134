# SPDX-License-Identifier: Apache-2.0
"""Padding, against numpy's and RAFT's two modes."""

import numpy as np
import pytest
import torch

from daflow_ros.flow.padding import InputPadder


@pytest.mark.parametrize('mode', ['centre', 'bottom'])
@pytest.mark.parametrize('size', [(370, 1226), (64, 64), (1, 3), (436, 1024)])
def test_padding_is_undone_and_replicates(size, mode):
    height, width = size
    padder = InputPadder(height, width, 8, mode)
    image = torch.rand(2, 3, height, width)
    (padded,) = padder.pad(image)
    assert padded.shape[-2] % 8 == 0 and padded.shape[-1] % 8 == 0
    assert padded.shape[-2:] == padder.padded_size
    assert torch.equal(padder.unpad(padded), image)
    expected = np.pad(
        image.numpy(),
        ((0, 0), (0, 0), (padder.top, padder.bottom), (padder.left, padder.right)),
        mode='edge',
    )
    assert np.array_equal(padded.numpy(), expected)


def test_padding_of_the_two_modes():
    # RAFT's: Sintel 436 -> 440 with 2 + 2 rows, KITTI 370 x 1226 -> 376 x 1232 with 0 + 6.
    centre, bottom = InputPadder(436, 1024), InputPadder(370, 1226, mode='bottom')
    assert (centre.top, centre.bottom, centre.left, centre.right) == (2, 2, 0, 0)
    assert (bottom.top, bottom.bottom, bottom.left, bottom.right) == (0, 6, 3, 3)


def test_padding_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match='mode'):
        InputPadder(8, 8, mode='sintel')
    with pytest.raises(ValueError, match='made for'):
        InputPadder(8, 8).pad(torch.zeros(1, 3, 9, 8))
