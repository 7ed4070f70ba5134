# SPDX-License-Identifier: Apache-2.0
"""The command line: every verb has a module, errors are sentences and exit statuses."""

import importlib
import subprocess
import sys

import pytest

from daflow_ros.cli import COMMANDS, main
from daflow_ros.commands.train import settings


def test_every_verb_has_a_module_with_arguments_and_run():
    for verb in COMMANDS:
        module = importlib.import_module(f'daflow_ros.commands.{verb}')
        assert callable(module.run) and callable(module.add_arguments), verb


@pytest.mark.parametrize('verb', sorted(COMMANDS))
def test_help_of_every_verb(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, '--help'])
    assert stop.value.code == 0
    assert f'daflow {verb}' in capsys.readouterr().out


def test_importing_the_package_and_listing_models_needs_neither_torch_nor_ros():
    code = (
        'import sys, daflow_ros, daflow_ros.cli\n'
        "assert daflow_ros.cli.main(['models']) == 0\n"
        "assert not {'torch', 'rclpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'daflow_tiny' in done.stdout and 'BSD-3-Clause' in done.stdout


def test_unknown_verb_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['fly'])
    assert stop.value.code == 2
    assert 'invalid choice' in capsys.readouterr().err


def test_training_settings_from_file_and_overrides(tmp_path):
    file = tmp_path / 'run.yaml'
    file.write_text('model: daflow_tiny\nlearning_rate: 5e-4\nsteps: 10\n')
    values = settings(str(file), ['steps=20', 'degraded=1'])
    assert values == {
        'model': 'daflow_tiny',
        'learning_rate': 5e-4,
        'steps': 20,
        'degraded': 1.0,
    }
    with pytest.raises(ValueError, match='unknown key'):
        settings(None, ['stepz=3'])
    with pytest.raises(ValueError, match='steps must be int'):
        settings(None, ['steps=many'])


def test_a_bad_training_run_is_told_in_one_line(tmp_path, capsys):
    missing = str(tmp_path / 'nothing')
    assert main(['train', 'flow', '--set', f'imagery={missing}', f'output={tmp_path}']) == 2
    assert 'no JPEG or PNG' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['raft_tiny', 'restoration_tiny', 'daflow_tiny', 'trunk_tiny',
                                  'raft_matcher', 'blend_tiny', 'daflow_restoration',
                                  'daflow_flow'])  # fmt: skip
def test_the_committed_training_configurations_are_valid(name, request):
    path = request.config.rootpath / 'config' / 'training' / f'{name}.yaml'
    assert 'output' in settings(str(path), [])
