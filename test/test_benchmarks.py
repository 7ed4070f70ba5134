# SPDX-License-Identifier: Apache-2.0
"""Benchmark readers on tiny trees in the official layouts, written without the package."""

import struct
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from daflow_ros.datasets.benchmarks import BenchmarkError, is_benchmark, open_benchmark

HEIGHT, WIDTH = 12, 16
RNG = np.random.default_rng(5)
PAIRS = Path(__file__).resolve().parents[2] / 'shared' / 'pairs'


def picture(path):
    image = RNG.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return image


def field(height=HEIGHT, width=WIDTH):
    return (RNG.integers(-640, 640, (height, width, 2)) / 64).astype(np.float32)


def flo(path, flow):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('wb') as file:
        file.write(struct.pack('<f', 202021.25))
        file.write(struct.pack('<ii', flow.shape[1], flow.shape[0]))
        for row in flow:
            for u, v in row:
                file.write(struct.pack('<ff', u, v))


def mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values.astype(np.uint8) * 255)


def kitti_png(path, flow, valid):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.dstack((valid, flow[..., 1] * 64 + 2**15, flow[..., 0] * 64 + 2**15))
    image[~valid] = 0
    assert cv2.imwrite(str(path), image.astype(np.uint16))


def same(sample, image1, image2, flow, valid=None, occlusion=None):
    assert np.array_equal(sample.image1, image1) and np.array_equal(sample.image2, image2)
    valid = np.ones(flow.shape[:2], bool) if valid is None else valid
    assert np.array_equal(sample.valid, valid)
    assert np.array_equal(sample.flow[valid], flow[valid])
    if occlusion is None:
        assert sample.occlusion is None
    else:
        assert np.array_equal(sample.occlusion, occlusion)


def sintel_tree(root):
    images, flows, occluded, invalid = {}, {}, {}, {}
    for scene in ('alley_1', 'cave_2'):
        for number in (1, 2, 3):
            for name in ('clean', 'final'):
                images[name, scene, number] = picture(
                    root / f'training/{name}/{scene}/frame_{number:04d}.png')
            if number < 3:
                flows[scene, number] = field()
                occluded[scene, number] = RNG.random((HEIGHT, WIDTH)) > 0.8
                invalid[scene, number] = RNG.random((HEIGHT, WIDTH)) > 0.9
                flo(root / f'training/flow/{scene}/frame_{number:04d}.flo', flows[scene, number])
                mask(root / f'training/occlusions/{scene}/frame_{number:04d}.png',
                     occluded[scene, number])
                mask(root / f'training/invalid/{scene}/frame_{number:04d}.png',
                     invalid[scene, number])
    return images, flows, occluded, invalid


def test_sintel(tmp_path):
    images, flows, occluded, invalid = sintel_tree(tmp_path)
    benchmark = open_benchmark(tmp_path)
    assert benchmark.name == 'Sintel' and len(benchmark) == 8
    for sample in benchmark:
        name, scene = sample.sequence.split('/')
        key = scene, sample.index
        same(sample, images[name, scene, sample.index], images[name, scene, sample.index + 1],
             flows[key], ~invalid[key], occluded[key])
    only = open_benchmark(tmp_path / 'training' / 'final')
    assert len(only) == 4 and {s.sequence.split('/')[0] for s in only} == {'final'}


def test_spring_takes_every_second_vector(tmp_path):
    images = [picture(tmp_path / f'train/0001/frame_left/frame_left_{i:04d}.png') for i in (1, 2)]
    flow = field(2 * HEIGHT, 2 * WIDTH)
    flow[4, 6] = np.nan
    path = tmp_path / 'train/0001/flow_FW_left/flow_FW_left_0001.flo5'
    path.parent.mkdir()
    with h5py.File(path, 'w') as file:
        file['flow'] = flow
    [sample] = open_benchmark(tmp_path)
    expected = np.array([[flow[2 * y, 2 * x] for x in range(WIDTH)] for y in range(HEIGHT)])
    same(sample, *images, expected, np.isfinite(expected).all(-1))
    assert not sample.valid[2, 3] and (sample.sequence, sample.index) == ('0001', 1)


def test_tartanair(tmp_path):
    folder = tmp_path / 'westerndesert/Easy/P001'
    images = [picture(folder / f'image_left/{i:06d}_left.png') for i in (0, 1)]
    flow, codes = field(), RNG.choice([0, 1, 10, 100], (HEIGHT, WIDTH)).astype(np.int8)
    (folder / 'flow').mkdir()
    np.save(folder / 'flow/000000_000001_flow.npy', flow)
    np.save(folder / 'flow/000000_000001_mask.npy', codes)
    [sample] = open_benchmark(tmp_path)
    same(sample, *images, flow, codes < 100, (codes == 1) | (codes == 10))
    assert sample.sequence == 'westerndesert/Easy/P001'


@pytest.mark.parametrize('folder', ['image_2', 'colored_0', 'image_0'])
def test_kitti(tmp_path, folder):
    images = [picture(tmp_path / f'training/{folder}/000007_{i}.png') for i in (10, 11)]
    flow, valid = field(), RNG.random((HEIGHT, WIDTH)) > 0.4
    visible = valid & (RNG.random((HEIGHT, WIDTH)) > 0.3)
    kitti_png(tmp_path / 'training/flow_occ/000007_10.png', flow, valid)
    kitti_png(tmp_path / 'training/flow_noc/000007_10.png', flow, visible)
    benchmark = open_benchmark(tmp_path)
    assert benchmark.name == ('KITTI 2015' if folder == 'image_2' else 'KITTI 2012')
    [sample] = benchmark
    same(sample, *images, flow, valid, valid & ~visible)


def test_middlebury(tmp_path):
    images = [picture(tmp_path / f'other-data/Grove2/frame{i}.png') for i in (10, 11)]
    flow = field()
    flow[0, 0] = 1.7e9
    flo(tmp_path / 'other-gt-flow/Grove2/flow10.flo', flow)
    [sample] = open_benchmark(tmp_path)
    same(sample, *images, flow, np.abs(flow).max(-1) < 1e9)


def test_flying_chairs(tmp_path):
    expected = []
    for number in (1, 2):
        images = [picture(tmp_path / f'data/{number:05d}_img{i}.ppm') for i in (1, 2)]
        expected.append((*images, field()))
        flo(tmp_path / f'data/{number:05d}_flow.flo', expected[-1][-1])
    for sample, truth in zip(open_benchmark(tmp_path), expected, strict=True):
        same(sample, *truth)


def damage(root):
    """Break one file at a time; yields its path while it is broken."""
    for path in sorted(file for file in root.rglob('*') if file.is_file()):
        content = path.read_bytes()
        for broken in (content[: len(content) // 2], b'', b'garbage' * 9):
            path.write_bytes(broken)
            yield path
        path.write_bytes(content)


def test_damaged_files_are_named_and_cost_one_pair(tmp_path):
    sintel_tree(tmp_path / 'sintel')
    test_tartanair(tmp_path / 'tartanair')
    (tmp_path / 'kitti').mkdir()
    test_kitti(tmp_path / 'kitti', 'image_2')
    (tmp_path / 'spring').mkdir()
    test_spring_takes_every_second_vector(tmp_path / 'spring')
    (tmp_path / 'chairs').mkdir()
    test_flying_chairs(tmp_path / 'chairs')
    for name in ('sintel', 'tartanair', 'kitti', 'spring', 'chairs'):
        count = 0
        for path in damage(tmp_path / name):
            failures, loaded = [], 0
            for pair in open_benchmark(tmp_path / name).pairs:
                try:
                    pair.load()
                    loaded += 1
                except BenchmarkError as error:
                    failures.append(str(error))
            assert failures and all(path.name in failure for failure in failures), path
            assert loaded or name not in ('sintel', 'chairs')
            count += 1
        assert count >= 9


def test_sizes_that_differ_and_unknown_layouts(tmp_path):
    sintel_tree(tmp_path)
    flo(tmp_path / 'training/flow/alley_1/frame_0001.flo', field(HEIGHT, WIDTH - 1))
    pair = open_benchmark(tmp_path / 'training' / 'clean').pairs[0]
    with pytest.raises(BenchmarkError, match='frame_0001'):
        pair.load()
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BenchmarkError, match='layouts'):
        open_benchmark(tmp_path / 'empty')
    assert is_benchmark(tmp_path) and not is_benchmark(tmp_path / 'empty')


@pytest.mark.skipif(not PAIRS.is_dir(), reason='needs ../shared')
def test_packed_pairs():
    benchmark = open_benchmark(PAIRS)
    assert len(benchmark) == 10
    sample = benchmark.pairs[4].load()
    assert sample.name == 'kitti12_000157' and sample.flow.shape == (370, 1226, 2)
    assert 0.05 < sample.valid.mean() < 0.5 and np.isnan(sample.flow[~sample.valid]).all()
