# SPDX-License-Identifier: Apache-2.0
"""`daflow analyse` on pairs with ground truth that are written here."""

import csv

import numpy as np
import pytest

torch = pytest.importorskip('torch')
Image = pytest.importorskip('PIL.Image')

from daflow_ros.cli import main  # noqa: E402
from daflow_ros.models.daflow import DAFLOW_TINY, DAFlow  # noqa: E402


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    model = DAFlow(**DAFLOW_TINY)
    model.transformer.initialise()
    model.save_pretrained(path)
    return path


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    """Two pairs, 16 px to the right: one token."""
    path = tmp_path_factory.mktemp('pairs')
    for n in range(2):
        rng = np.random.default_rng(n)
        small = rng.integers(0, 256, (12, 18, 3), dtype=np.uint8)
        wide = np.asarray(Image.fromarray(small).resize((144, 96), Image.Resampling.BICUBIC))
        Image.fromarray(wide[:, 16:]).save(path / f'p{n}_clean_1.jpg', quality=95)
        Image.fromarray(wide[:, :-16]).save(path / f'p{n}_clean_2.jpg', quality=95)
        flow = np.zeros((96, 128, 2), np.float16)
        flow[..., 0] = 16
        valid = np.packbits(np.ones((96, 128), bool), axis=-1)
        np.savez(path / f'p{n}.npz', flow=flow, valid=valid, shape=np.array([96, 128]))
    return path


def test_map_of_layers_and_steps(folder, pairs, tmp_path, capsys):
    out = tmp_path / 'out'
    arguments = ['analyse', str(pairs), '--weights', str(folder), '--output', str(out)]
    assert main([*arguments, '--steps', '2', '--device', 'cpu']) == 0
    with (out / 'layers.csv').open() as stream:
        rows = list(csv.DictReader(stream))
    layers = DAFLOW_TINY['transformer_config']['num_layers']
    assert len(rows) == 2 * layers and {r['pairs'] for r in rows} == {'2'}
    values = [float(r['epe_px']) for r in rows]
    assert all(0 < v < 200 for v in values) and len(set(values)) > 1
    best = rows[int(np.argmin(values))]
    text = capsys.readouterr().out
    assert f'layer {best["layer"]}, step {best["step"]}' in text
    image = np.asarray(Image.open(out / 'layers.png'))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 4


def test_measured_error_is_that_of_the_flow(folder, pairs):
    """Against the error worked out from the flow of one pair and layer."""
    from daflow_ros.commands.analyse import measure
    from daflow_ros.datasets.benchmarks import open_benchmark
    from daflow_ros.models.zero_shot import layer_flows

    model = DAFlow.from_pretrained(folder).eval()
    error, count = measure(model, open_benchmark(pairs), [1], 1, 'cpu', limit=1)
    sample = next(iter(open_benchmark(pairs)))
    x = torch.from_numpy(np.stack([sample.image1, sample.image2])).permute(0, 3, 1, 2)
    ((_, _, flow),) = layer_flows(model, (x.float() / 127.5 - 1)[None], [1])
    truth = torch.tensor([16.0, 0.0])[:, None, None]
    expected = (flow[0] - truth).square().sum(0).sqrt().mean()
    assert count == 1 and error[0, 0] == pytest.approx(float(expected), rel=1e-3)


def test_faults_are_told(folder, pairs, tmp_path, capsys):
    base = ['analyse', str(pairs), '--weights', str(folder), '--output', str(tmp_path / 'o')]
    assert main([*base, '--layers', '99']) == 2
    assert main([*base, '--steps', '0']) == 2
    assert main(['analyse', str(tmp_path), '--weights', str(folder)]) == 1
    assert main(['analyse', str(pairs), '--weights', str(tmp_path)]) == 1
    assert 'config.json' in capsys.readouterr().err
    assert not (tmp_path / 'o').exists()
