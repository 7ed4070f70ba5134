# SPDX-License-Identifier: Apache-2.0
"""Limits of the node's parameters."""

from dataclasses import FrozenInstanceError

import pytest

from daflow_ros.ros.parameters import PARAMETERS, NodeParameters, ParameterError, check


def test_defaults_are_valid_and_described():
    parameters = NodeParameters()
    for name, info in PARAMETERS.items():
        assert getattr(parameters, name) == info.default
        assert info.description.endswith('.')
        if isinstance(info.default, (int, float)) and not isinstance(info.default, bool):
            assert info.minimum <= info.default <= info.maximum
    with pytest.raises(FrozenInstanceError):
        parameters.stride = 2


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('model', 'dis '), ('model', ''), ('model', 3), ('device', 'gpu'), ('device', 'cuda:x'),
        ('stride', 0), ('stride', 33), ('stride', 1.0), ('stride', True), ('stride', '1'),
        ('deadline', float('nan')), ('deadline', -1.0), ('deadline', float('inf')),
        ('max_interval', 0.0), ('direction', 'sideways'), ('compressed', 1),
        ('viz_overlay', 1.5), ('viz_jpeg_quality', 0), ('cameras', []), ('cameras', 'left'),
        ('cameras', ['left', 'left']), ('cameras', ['9']), ('cameras', ['a b']), ('cameras', [3]),
        ('iterations', None),
    ],
)  # fmt: skip
def test_garbage_is_refused_by_name(name, value):
    with pytest.raises(ParameterError, match=name.rstrip('s')):
        check(name, value)
    with pytest.raises(ParameterError):
        NodeParameters(**{name: value})


def test_two_values_together():
    with pytest.raises(ParameterError, match='min_interval'):
        NodeParameters(min_interval=0.5, max_interval=0.5)


def test_a_misspelt_model_gets_a_hint():
    with pytest.raises(ParameterError, match='did you mean farneback'):
        check('model', 'farnebak')


def test_lists_are_taken_for_cameras():
    assert NodeParameters(cameras=['left', 'rig/right']).cameras == ('left', 'rig/right')


@pytest.mark.parametrize(('model', 'count'), [('dis', 0), ('raft_tiny', 2), ('auto', 2)])
def test_options_of_networks_do_not_reach_opencv(monkeypatch, model, count):
    monkeypatch.setattr('daflow_ros.estimators.default_estimator', lambda: 'daflow_tiny')
    parameters = NodeParameters(model=model, dtype='float16', looks=1)
    assert len(parameters.estimator_options) == count
    if count:
        assert parameters.estimator_options == {'dtype': 'float16', 'looks': 1}
