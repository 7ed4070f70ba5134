# SPDX-License-Identifier: Apache-2.0
"""Flying cut-outs: the flow is exact, pictures stay sharp, shards can be degraded."""

import cv2
import numpy as np
import pytest
from pictures import photograph

from daflow_ros.training.clip_store import StoredClips, degrade_clips, write_flying_clips
from daflow_ros.training.flying import FlyingPairs, Layer, draw, exact_flow, outline


@pytest.fixture(scope='module')
def imagery(tmp_path_factory):
    """Photographs of noise at several scales, and two sprites."""
    folder = tmp_path_factory.mktemp('imagery')
    rng = np.random.default_rng(0)
    for name in ('photos', 'sprites'):
        (folder / name).mkdir()

    for i in range(3):
        cv2.imwrite(str(folder / 'photos' / f'{i}.png'), photograph(rng, 600, 800))
    for i in range(2):
        rgba = np.dstack([photograph(rng, 256, 256), outline(np.random.default_rng(i))])
        cv2.imwrite(str(folder / 'sprites' / f'{i}.png'), rgba)
    return folder


def test_second_frame_warped_back_is_the_first(imagery):
    pairs = FlyingPairs(imagery)
    rng = np.random.default_rng(3)
    seen = []
    for _ in range(4):
        frames, flow, occluded = pairs(rng)
        assert frames.shape == (2, 384, 512, 3) and flow.shape == (384, 512, 2)
        # Edges blend two layers; exposure differs by some per cent from frame to frame.
        visible = cv2.erode((~occluded).astype(np.uint8), np.ones((5, 5))) > 0
        there = np.stack(np.meshgrid(np.arange(512), np.arange(384)), axis=-1) + flow
        there = there.astype(np.float32)
        back = cv2.remap(frames[1], there, None, cv2.INTER_LINEAR).astype(float)
        first = frames[0].astype(float)
        gain = np.median(back[visible].mean(-1)) / np.median(first[visible].mean(-1))
        apart = np.abs(back - gain * first).mean(axis=-1)[visible].mean()
        still = np.abs(frames[1] - gain * first).mean(axis=-1)[visible].mean()
        seen.append(apart / still)
    assert np.median(seen) < 0.3


def test_plain_surfaces_move_as_before(imagery):
    extreme, flows = [], []
    for plain in (0.0, 1.0):
        pairs = FlyingPairs(imagery, plain)
        every = [pairs(np.random.default_rng(seed)) for seed in range(12)]
        flows.append(np.stack([flow for _, flow, _ in every]))
        grey = np.stack([frames[0].mean(axis=-1) for frames, _, _ in every])
        extreme.append(((grey < 12) | (grey > 250)).mean())
    assert np.array_equal(*flows)
    assert extreme[1] > extreme[0] + 0.05


def test_flow_of_a_known_motion():
    rng = np.random.default_rng(1)
    colour = rng.uniform(0, 255, (800, 1200, 3)).astype(np.float32)
    shift = np.array([[1, 0, 3], [0, 1, -2], [0, 0, 1]], float)
    turn = np.array([[0, -1, 400], [1, 0, -60], [0, 0, 1]], float)
    layers = [
        Layer(colour, None, np.diag([2.0, 2, 1]), shift),
        Layer(
            colour[:100, :100],
            np.full((100, 100), 255, np.uint8),
            np.diag([2.0, 2, 1]) @ np.array([[1, 0, -200], [0, 1, -150], [0, 0, 1.0]]),
            turn,
        ),
    ]
    first, top = draw(layers, second=False)
    second, later = draw(layers, second=True)
    flow = exact_flow(layers, top)
    assert np.unique(top[152:198, 202:248]).tolist() == [1] and (top == 1).sum() < 2700
    assert np.allclose(flow[0, 0], (3, -2)) and np.allclose(flow[160, 210], (30, -10))
    # Two texels for a px, shifted by whole px: the frames agree to the last grey value.
    assert np.allclose(second[100, 103:150], first[102, 100:147], atol=1e-3)
    assert later[150, 240] == 1 and np.allclose(second[150, 240], first[160, 210], atol=1e-2)


def test_shards_are_the_same_again_and_can_be_degraded(imagery, tmp_path):
    clean, bad = tmp_path / 'clean', tmp_path / 'bad'
    pairs = FlyingPairs(imagery)
    a, b = (pairs(np.random.default_rng(7)) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    write_flying_clips(clean, imagery, 1, seed=2)
    (path,) = clean.iterdir()
    with np.load(path) as file:
        arrays = {name: file[name][:2] for name in file.files}
    assert arrays['frames'].shape == (2, 2, 3, 384, 512) and arrays['toned'].all()
    # Two clips are enough to match.
    with path.open('wb') as file:
        np.savez(file, **arrays)
    degrade_clips(clean, bad)
    rows = StoredClips(bad).shard(0)
    assert rows['hypotheses'].shape[2:] == (2, 384, 512)
    assert np.isfinite(rows['hypotheses']).all() and np.array_equal(rows['flow'], arrays['flow'])


def test_no_imagery_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='no photographs'):
        FlyingPairs(tmp_path)
