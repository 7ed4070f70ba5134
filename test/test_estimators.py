# SPDX-License-Identifier: Apache-2.0
"""Estimators recover a known translation, refuse what they cannot use, and say why."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from daflow_ros import EstimatorError, load_estimator
from daflow_ros.estimators import ESTIMATORS, default_estimator
from daflow_ros.estimators.network import NetworkEstimator, laplace_confidence
from daflow_ros.estimators.registry import revision_of, shipped_weights
from daflow_ros.models.loading import WEIGHTS, load_raft_folder
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_MATCHER, RAFT_SMALL, RAFT_TINY


def textured(height, width, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 4, width // 4, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def shifted(shift=(3, -2), height=96, width=128):
    """Image pair whose flow is ``shift`` everywhere."""
    big = textured(height + 32, width + 32)
    u, v = shift
    return big[16 : 16 + height, 16 : 16 + width].copy(), big[
        16 - v : 16 - v + height, 16 - u : 16 - u + width
    ].copy()


@pytest.mark.parametrize('name', ['dis', 'dis_fast', 'farneback'])
def test_opencv_estimators_recover_a_translation(name):
    image1, image2 = shifted()
    estimate = load_estimator(name).estimate(image1, image2)
    assert estimate.flow.shape == (96, 128, 2) and estimate.flow.dtype == np.float32
    inner = estimate.flow[16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner, axis=(0, 1)), [3, -2], atol=0.3)
    assert estimate.confidence is None and estimate.processing_time > 0


@pytest.mark.parametrize('name', ['raft_tiny', 'daflow_tiny'])
def test_shipped_models_recover_a_translation_and_tell_confidence(name):
    if shipped_weights(name) is None:
        pytest.skip(f'{name} is not shipped yet')
    image1, image2 = shifted((5, -4), 128, 160)
    estimate = load_estimator(name, device='cpu').estimate(image1, image2)
    inner = estimate.flow[16:-16, 16:-16]
    np.testing.assert_allclose(np.median(inner, axis=(0, 1)), [5, -4], atol=0.5)
    assert estimate.confidence is not None and estimate.confidence.shape == (128, 160)
    assert estimate.confidence.min() >= 0 and estimate.confidence.max() <= 1


def test_a_large_image_is_estimated_in_tiles(monkeypatch):
    """Shifted by (3, -2): the same flow in tiles, none of more than the budget."""
    image1, image2 = shifted(height=192, width=320)
    tiled = load_estimator('raft_tiny', device='cpu', pixel_budget=192 * 200)
    sizes = []
    predict = tiled._predict

    def seen(frames, *rest):
        sizes.append(tuple(frames.shape[-2:]))
        return predict(frames, *rest)

    monkeypatch.setattr(tiled, '_predict', seen)
    flow = tiled.estimate(image1, image2).flow
    assert len(sizes) > 1 and all(h * w <= 192 * 200 for h, w in sizes)
    assert np.abs(flow - (3, -2))[16:-16, 16:-16].mean() < 0.1


def test_default_is_the_shipped_model_or_dis():
    assert default_estimator() == ('daflow_tiny' if shipped_weights('daflow_tiny') else 'dis')


@pytest.mark.parametrize(
    ('image1', 'image2', 'reason'),
    [
        (np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8), r'\(H, W, 3\)'),
        (np.zeros((32, 32, 3)), np.zeros((32, 32, 3)), 'uint8'),
        (np.zeros((32, 32, 3), np.uint8), np.zeros((32, 40, 3), np.uint8), 'differ in size'),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), 'smaller than'),
    ],
)
def test_unusable_pairs(image1, image2, reason):
    with pytest.raises(EstimatorError, match=reason):
        load_estimator('dis').estimate(image1, image2)


def test_unusable_requests(tmp_path):
    with pytest.raises(EstimatorError, match='unknown model'):
        load_estimator('nothing')
    with pytest.raises(EstimatorError, match='nothing is downloaded'):
        load_estimator('raft')
    with pytest.raises(EstimatorError, match='do not exist'):
        load_estimator('raft', weights=tmp_path / 'absent.pth')
    with pytest.raises(EstimatorError, match='preset'):
        load_estimator('dis', preset='slow')
    with pytest.raises(EstimatorError, match='dis has no option dtype'):
        load_estimator('dis', dtype='float16')
    with pytest.raises(EstimatorError, match=r'farneback has no weights to load a\.pth into'):
        load_estimator('farneback', weights='a.pth')
    with pytest.raises(EstimatorError, match='cannot be used'):
        torch.save(RAFT(**RAFT_SMALL).state_dict(), tmp_path / 'small.pth')
        load_estimator('raft_small', device='cuda:77', weights=tmp_path / 'small.pth')
    with pytest.raises(EstimatorError, match='raft_small has no option colour'):
        load_estimator('raft_small', weights=tmp_path / 'small.pth', colour=True)
    with pytest.raises(EstimatorError, match='RAFT small, not raft'):
        load_estimator('raft', device='cpu', weights=tmp_path / 'small.pth')


class Evil:
    """Would run code if a pickle of it were loaded."""

    def __reduce__(self):
        return (print, ('code ran',))


def test_unsafe_and_broken_checkpoints(tmp_path, capsys):
    torch.save({'state_dict': Evil()}, tmp_path / 'evil.pth')
    (tmp_path / 'short.pth').write_bytes(b'PK\x03\x04')
    state = RAFT(**RAFT_SMALL).state_dict()
    state['fnet.conv1.weight'] = torch.zeros(32, 3, 5, 5)
    torch.save(state, tmp_path / 'shape.pth')
    del state['fnet.conv1.weight']
    torch.save(state, tmp_path / 'missing.pth')
    for file, reason in (
        ('evil', 'evil.pth'),
        ('short', 'short.pth'),
        ('shape', r'fnet.conv1.weight: \(32, 3, 5, 5\) instead of \(32, 3, 7, 7\)'),
        ('missing', 'missing, first fnet.conv1.weight'),
    ):
        with pytest.raises(EstimatorError, match=reason):
            load_estimator('raft_small', device='cpu', weights=tmp_path / f'{file}.pth')
    assert 'code ran' not in capsys.readouterr().out


def test_a_folder_of_half_precision_becomes_float32(tmp_path):
    network = RAFT(**{**RAFT_TINY, 'matcher_config': RAFT_MATCHER})
    network.half().save_pretrained(tmp_path)
    loaded = load_raft_folder(tmp_path)
    assert not loaded.training
    for name, value in [*loaded.named_parameters(), *loaded.named_buffers()]:
        assert value.device.type == 'cpu', name
        assert value.dtype == torch.float32 or name.endswith('_tracked'), name
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].to(value.dtype), value), name


def test_a_raft_folder_with_a_key_missing_or_too_many(tmp_path):
    RAFT(**RAFT_TINY).save_pretrained(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    key = 'fnet.conv1.weight'
    save_file({k: v for k, v in whole.items() if k != key}, tmp_path / WEIGHTS)
    with pytest.raises(EstimatorError, match=f'1 keys missing, first {key}'):
        load_estimator('raft_tiny', device='cpu', weights=tmp_path)
    save_file({**whole, 'more': torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(EstimatorError, match='more: not a parameter of this model'):
        load_estimator('raft_tiny', device='cpu', weights=tmp_path)


def test_a_folder_with_a_pickle_alone(tmp_path, capsys):
    RAFT(**RAFT_TINY).save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save({'state_dict': Evil()}, tmp_path / 'diffusion_pytorch_model.bin')
    with pytest.raises(EstimatorError, match='pickles are not read'):
        load_estimator('raft_tiny', device='cpu', weights=tmp_path)
    with pytest.raises(EstimatorError, match='no safetensors'):
        revision_of(tmp_path)
    assert 'code ran' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'change', [{'feature_dim': 0}, {'encoder_dims': [16]}, {'block': 'odd'}, {'more': 1}]
)
def test_a_configuration_that_is_none(tmp_path, change):
    RAFT(**RAFT_TINY).save_pretrained(tmp_path)
    file = tmp_path / 'config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(EstimatorError, match=r'config\.json'):
        load_estimator('raft_tiny', device='cpu', weights=tmp_path)


def test_network_estimator_pads_any_size_and_uses_the_initial_flow(tmp_path):
    torch.manual_seed(0)
    network = RAFT(mask_dim=32, hidden_dim=32, context_dim=32).eval()
    with torch.no_grad():  # updates of zero: what goes in comes out
        network.update_block.flow_head.conv2.weight.zero_()
        network.update_block.flow_head.conv2.bias.zero_()
    estimator = NetworkEstimator(
        'raft_tiny',
        network,
        lambda frames, n, start, _: network(frames[:, -2], frames[:, -1], n, start),
        'test',
        device='cpu',
        pyramid=2,
    )
    image1, image2 = shifted(height=75, width=101)
    start = np.broadcast_to(np.float32([4, -8]), (75, 101, 2))
    estimate = estimator.estimate(image1, image2, iterations=2, initial_flow=start)
    assert estimate.flow.shape == (75, 101, 2) and estimate.iterations == 2
    # Convex weights of a constant field give the constant, but for the zero border of unfold.
    np.testing.assert_allclose(estimate.flow[12:-12, 12:-12], start[12:-12, 12:-12], atol=1e-3)
    with pytest.raises(EstimatorError, match='1 to 64'):
        estimator.estimate(image1, image2, iterations=0)
    with pytest.raises(EstimatorError, match='initial_flow'):
        estimator.estimate(image1, image2, initial_flow=start[1:])


def test_flow_that_is_not_finite_is_an_error():
    network = RAFT(mask_dim=32, hidden_dim=32, context_dim=32).eval()
    with torch.no_grad():
        network.update_block.flow_head.conv2.bias.fill_(float('nan'))
    estimator = NetworkEstimator(
        'raft_tiny',
        network,
        lambda frames, n, start, _: network(frames[:, -2], frames[:, -1], n, start),
        'test',
        device='cpu',
    )
    with pytest.raises(EstimatorError, match='not finite'):
        estimator.estimate(*shifted(), iterations=1)


def test_confidence_is_the_probability_of_a_small_error():
    # All weight on the fixed 1 px component: 1 - exp(-3).
    raw = torch.tensor([-50.0, 50.0, 2.0]).reshape(1, 3, 1, 1)
    assert float(laplace_confidence(raw)) == pytest.approx(1 - np.exp(-3), rel=1e-4)
    raw = torch.tensor([50.0, -50.0, np.log(30.0)]).reshape(1, 3, 1, 1)
    assert float(laplace_confidence(raw)) == pytest.approx(1 - np.exp(-0.1), rel=1e-4)
    free = torch.tensor([0.0, 0.0, np.log(0.5), np.log(2.0)]).reshape(1, 4, 1, 1)
    expected = 1 - (np.exp(-6) + np.exp(-1.5)) / 2
    assert float(laplace_confidence(free)) == pytest.approx(expected, rel=1e-4)


def test_table_has_licence_and_source_for_every_model():
    for name, info in ESTIMATORS.items():
        assert info.name == name and info.licence and info.weights in ('none', 'shipped', 'user')
        assert (info.weights == 'user') == bool(info.needs)
