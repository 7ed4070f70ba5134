# SPDX-License-Identifier: Apache-2.0
"""The official folder layouts of the benchmarks: which files make a pair.

Each function returns the pairs under a root, or an empty list where the layout is another.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from daflow_ros.datasets.benchmarks import BenchmarkError, GroundTruth, Pair, read_mask
from daflow_ros.flow.formats import read_flow


def _number(path: Path) -> int:
    """Last number in a file's name, -1 where there is none."""
    digits = re.findall(r'\d+', path.stem)
    return int(digits[-1]) if digits else -1


def _flow_file(path: Path, stride: int = 1) -> GroundTruth:
    flow, valid = read_flow(path)
    return GroundTruth(
        np.ascontiguousarray(flow[::stride, ::stride]),
        np.ascontiguousarray(valid[::stride, ::stride]),
    )


def _sintel_truth(path: Path, occlusion: Path, invalid: Path) -> GroundTruth:
    flow, valid = read_flow(path)
    if invalid.exists():
        mask = read_mask(invalid)
        if mask.shape != valid.shape:
            raise BenchmarkError(f'{invalid}: {mask.shape} where the flow is {valid.shape}')
        valid &= ~mask
    return GroundTruth(flow, valid, read_mask(occlusion) if occlusion.exists() else None)


def sintel(root: Path) -> list[Pair]:
    """MPI Sintel: training/{clean,final}/SCENE/frame_NNNN.png, flow/, occlusions/, invalid/."""
    if root.name in ('clean', 'final') and (root.parent / 'flow').is_dir():
        training, passes = root.parent, [root.name]
    else:
        training = root / 'training' if (root / 'training').is_dir() else root
        passes = [name for name in ('clean', 'final') if (training / name).is_dir()]
    pairs = []
    for name in passes if (training / 'flow').is_dir() else []:
        for flow in sorted((training / 'flow').glob('*/frame_*.flo')):
            scene, number = flow.parent.name, _number(flow)
            images = training / name / scene
            pairs.append(Pair(
                f'{name}/{scene}/{flow.stem}', f'{name}/{scene}', number,
                images / f'{flow.stem}.png', images / f'frame_{number + 1:04d}.png',
                partial(
                    _sintel_truth, flow,
                    training / 'occlusions' / scene / f'{flow.stem}.png',
                    training / 'invalid' / scene / f'{flow.stem}.png',
                ),
            ))
    return sorted(pairs, key=lambda pair: (pair.sequence, pair.index))


def spring(root: Path) -> list[Pair]:
    """Spring: train/NNNN/{frame_left,flow_FW_left}/; flow at [::2, ::2], the images' pixels."""
    train = root / 'train' if (root / 'train').is_dir() else root
    return [
        Pair(
            f'{flow.parents[1].name}/{_number(flow):04d}', flow.parents[1].name, _number(flow),
            flow.parents[1] / 'frame_left' / f'frame_left_{_number(flow):04d}.png',
            flow.parents[1] / 'frame_left' / f'frame_left_{_number(flow) + 1:04d}.png',
            partial(_flow_file, flow, 2),
        )
        for flow in sorted(train.glob('*/flow_FW_left/flow_FW_left_*.flo5'))
    ]


def _tartanair_truth(path: Path, mask: Path) -> GroundTruth:
    flow, valid = read_flow(path)
    if not mask.exists():
        return GroundTruth(flow, valid)
    try:
        codes = np.load(mask, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BenchmarkError(f'{mask}: {error}') from error
    if codes.shape != valid.shape:
        raise BenchmarkError(f'{mask}: {codes.shape} where the flow is {valid.shape}')
    # 0 seen; 1 and 10 occluded, by another surface or its own; 100 out of the field of view,
    # which training code (valid = 1 - mask / 100) leaves out.
    valid &= codes < 100
    return GroundTruth(flow, valid, (codes > 0) & (codes < 100))


def tartanair(root: Path) -> list[Pair]:
    """TartanAir v1: ENV/{Easy,Hard}/PNNN/{image_left,flow}/, NNNNNN_NNNNNN_{flow,mask}.npy."""
    pairs = []
    for flow in sorted(root.rglob('flow/*_flow.npy')):
        numbers = re.fullmatch(r'(\d{6})_(\d{6})_flow', flow.stem)
        images = flow.parents[1] / 'image_left'
        if numbers is None:
            continue
        sequence = flow.parents[1].relative_to(root).as_posix()
        first, second = numbers.groups()
        pairs.append(Pair(
            f'{sequence}/{first}', sequence, int(first),
            images / f'{first}_left.png', images / f'{second}_left.png',
            partial(_tartanair_truth, flow, flow.with_name(f'{first}_{second}_mask.npy')),
        ))
    return pairs


def _kitti_truth(everywhere: Path, visible: Path) -> GroundTruth:
    flow, valid = read_flow(everywhere)
    if not visible.exists():
        return GroundTruth(flow, valid)
    seen = read_flow(visible)[1]
    if seen.shape != valid.shape:
        raise BenchmarkError(f'{visible}: {seen.shape} where flow_occ is {valid.shape}')
    return GroundTruth(flow, valid, valid & ~seen)


def kitti(root: Path, folders: tuple[str, ...]) -> list[Pair]:
    """KITTI: training/{images,flow_occ,flow_noc}/NNNNNN_{10,11}.png."""
    training = root / 'training' if (root / 'training').is_dir() else root
    images = next((training / name for name in folders if (training / name).is_dir()), None)
    if images is None:
        return []
    return [
        Pair(
            flow.stem.removesuffix('_10'), flow.stem.removesuffix('_10'), 10,
            images / flow.name, images / flow.name.replace('_10.png', '_11.png'),
            partial(_kitti_truth, flow, training / 'flow_noc' / flow.name),
        )
        for flow in sorted((training / 'flow_occ').glob('*_10.png'))
    ]


def middlebury(root: Path) -> list[Pair]:
    """Middlebury: other-data/NAME/frame1{0,1}.png, other-gt-flow/NAME/flow10.flo."""
    return [
        Pair(
            flow.parent.name, flow.parent.name, 10,
            root / 'other-data' / flow.parent.name / 'frame10.png',
            root / 'other-data' / flow.parent.name / 'frame11.png',
            partial(_flow_file, flow),
        )
        for flow in sorted((root / 'other-gt-flow').glob('*/flow10.flo'))
    ]


def flying_chairs(root: Path) -> list[Pair]:
    """FlyingChairs: data/NNNNN_{img1,img2}.ppm, NNNNN_flow.flo."""
    data = root / 'data' if (root / 'data').is_dir() else root
    stems = [flow.name.removesuffix('_flow.flo') for flow in sorted(data.glob('*_flow.flo'))]
    return [
        Pair(
            stem, stem, 0, data / f'{stem}_img1.ppm', data / f'{stem}_img2.ppm',
            partial(_flow_file, data / f'{stem}_flow.flo'),
        )
        for stem in stems
    ]


def _packed_truth(path: Path) -> GroundTruth:
    try:
        with np.load(path, allow_pickle=False) as file:
            flow = file['flow'].astype(np.float32)
            height, width = (int(side) for side in file['shape'])
            packed = file['valid']
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise BenchmarkError(f'{path}: {error}') from error
    if flow.shape != (height, width, 2) or packed.shape != (height, -(-width // 8)):
        raise BenchmarkError(f'{path}: flow {flow.shape}, mask {packed.shape}, size differs')
    valid = np.unpackbits(packed, axis=1, count=width).astype(bool)
    valid &= np.isfinite(flow).all(axis=-1)
    flow[~valid] = np.nan
    return GroundTruth(flow, valid)


def packed_pairs(root: Path) -> list[Pair]:
    """Read NAME.npz (flow, packed valid, shape) with NAME_clean_{1,2}.jpg."""
    return [
        Pair(
            file.stem, file.stem, 0,
            root / f'{file.stem}_clean_1.jpg', root / f'{file.stem}_clean_2.jpg',
            partial(_packed_truth, file),
        )
        for file in sorted(root.glob('*.npz'))
        if (root / f'{file.stem}_clean_1.jpg').exists()
    ]


#: Layouts in the order they are tried; KITTI's two differ in the images' folder.
LAYOUTS: dict[str, Callable[[Path], list[Pair]]] = {
    'Sintel': sintel,
    'Spring': spring,
    'KITTI 2015': partial(kitti, folders=('image_2',)),
    'KITTI 2012': partial(kitti, folders=('colored_0', 'image_0')),
    'Middlebury': middlebury,
    'FlyingChairs': flying_chairs,
    'pairs': packed_pairs,
    'TartanAir': tartanair,
}
