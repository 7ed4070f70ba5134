# SPDX-License-Identifier: Apache-2.0
"""Networks against reference outputs of the official implementations (see ../shared/parity).

Every ``*.npz`` of the folder (or of DAFLOW_PARITY_DIR) is run; one that no test knows fails.
Weights are drawn from each parameter's official name, so that a wrong name shows as well.
"""

import json
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from daflow_ros.flow.padding import InputPadder  # noqa: E402
from daflow_ros.models.dit4sr import DiT4SRTransformer  # noqa: E402
from daflow_ros.models.raft import RAFT  # noqa: E402
from daflow_ros.models.raft_checkpoints import load_state, to_princeton_names  # noqa: E402
from daflow_ros.models.raft_sizes import RAFT_SMALL  # noqa: E402
from daflow_ros.models.sea_raft import SEARAFT, from_official_names  # noqa: E402

DEFAULT = Path(__file__).resolve().parents[2] / 'shared' / 'parity'
FOLDER = Path(os.environ.get('DAFLOW_PARITY_DIR', DEFAULT))
FILES = sorted(FOLDER.glob('*.npz'))
KEYS = FOLDER / 'keys'
TOLERANCE = 1e-3

pytestmark = pytest.mark.skipif(not FILES, reason=f'no reference outputs in {FOLDER}')


def draw(salt, name, shape):
    """Tensor of a parameter or buffer, by the recipe the references were made with."""
    seed = zlib.crc32((salt + name).encode())
    r = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if name.endswith('running_var'):
        r = 1 + 0.1 * np.abs(r)
    elif name.endswith(('running_mean', '.bias')) or not shape:
        r = 0.1 * r
    elif len(shape) == 1:
        r = 1 + 0.1 * r
    else:
        r = r / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(r, dtype=np.float32))


def parse_keys(lines):
    """{name: shape} of lines such as ``fnet.conv1.weight (64, 3, 7, 7)``."""
    shapes = {}
    for line in lines:
        match = re.match(r'(\S+)\s+\(?\[?([\d, ]*)\]?\)?', str(line))
        if match:
            shapes[match[1]] = tuple(int(n) for n in match[2].replace(' ', '').split(',') if n)
    return shapes


def official_state(npz):
    salt = str(npz['salt'])
    state = {}
    for name, shape in parse_keys(npz['keys']).items():
        if name.endswith('num_batches_tracked'):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        else:
            state[name] = draw(salt, name, shape)
    return state


def relative(ours, reference):
    assert tuple(ours.shape) == tuple(reference.shape)
    assert torch.isfinite(ours).all()
    return float((ours - reference).abs().max() / reference.abs().max())


def run_flow(model, npz):
    """Run a flow network as upstream does: [-1, 1], padded to 8 by replication, unpadded."""
    image1, image2 = (
        torch.from_numpy(npz[k]).permute(2, 0, 1)[None].float() / 127.5 - 1
        for k in ('image1', 'image2')
    )
    padder = InputPadder(*image1.shape[-2:])
    out = model.eval()(*padder.pad(image1, image2), int(npz['iters']))
    laplace = None if out.laplace is None else padder.unpad(out.laplace)[0]
    return padder.unpad(out.flow)[0], out.flows_low[-1][0], laplace


def run_raft(npz):
    state = to_princeton_names(official_state(npz))
    small = 'fnet.layer1.0.conv3.weight' in state
    model = RAFT(**RAFT_SMALL) if small else RAFT()
    load_state(model, state, 'reference')
    flow, flow_low, _ = run_flow(model, npz)
    return {'flow': flow, 'flow_low': flow_low}


def run_sea_raft(npz):
    model = SEARAFT(**json.loads(str(npz['config'])))
    load_state(model, from_official_names(official_state(npz)), 'reference')
    flow, _, info = run_flow(model, npz)
    return {'flow': flow, 'info': info}


def run_dit4sr(npz):
    model = DiT4SRTransformer(**json.loads(str(npz['config'])))
    state = official_state(npz)
    state['pos_embed.pos_embed'] = model.state_dict()['pos_embed.pos_embed']
    ignored = [re.compile(p) for p in DiT4SRTransformer._keys_to_ignore_on_load_unexpected]
    kept = {k: v for k, v in state.items() if not any(p.search(k) for p in ignored)}
    load_state(model, kept, 'reference')
    taps = range(model.config.num_layers)
    text, pooled = torch.from_numpy(npz['text']), torch.from_numpy(npz['pooled'])
    out = model.eval()(
        torch.from_numpy(npz['hidden_states']),
        torch.from_numpy(npz['lq']),
        text,
        pooled,
        torch.from_numpy(npz['timestep']),
        taps=taps,
        stop_after_last_tap=False,
    )
    result = {'sample': out.sample}
    for i in taps:
        result[f'q{i}'], result[f'k{i}'] = out.queries[i], out.keys[i]
    return result


RUNNERS = {'raft_': run_raft, 'sea_raft': run_sea_raft, 'dit4sr': run_dit4sr}


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_outputs_agree_with_the_official_implementation(path, record_property):
    runner = next((RUNNERS[k] for k in ('sea_raft', 'dit4sr', 'raft_') if k in path.stem), None)
    assert runner is not None, f'{path.name}: of a model that this test does not know'
    with np.load(path, allow_pickle=False) as npz, torch.inference_mode():
        ours = runner(npz)
        errors = {k: relative(v, torch.from_numpy(npz[k])) for k, v in ours.items()}
        outputs = set(npz.files) - {
            'image1', 'image2', 'iters', 'salt', 'keys', 'config',
            'hidden_states', 'lq', 'text', 'pooled', 'timestep',
        }  # fmt: skip
    assert outputs == set(errors), 'every stored output is compared'
    for name, error in errors.items():
        print(f'{path.stem:24s} {name:10s} max relative error {error:.2e}')
    record_property('max_relative_error', max(errors.values()))
    assert max(errors.values()) <= TOLERANCE


def key_list(name):
    file = KEYS / f'{name}.txt'
    if not file.is_file():
        pytest.skip(f'no {file}')
    shapes = parse_keys(file.read_text().splitlines())
    return {
        k: torch.zeros(
            s, dtype=torch.int64 if k.endswith('num_batches_tracked') else torch.float32
        )
        for k, s in shapes.items()
    }


@pytest.mark.parametrize('name', ['raft_large', 'raft_small', 'tv_large', 'tv_small'])
def test_official_raft_names_load(name):
    model = RAFT(**RAFT_SMALL) if name.endswith('small') else RAFT()
    load_state(model, to_princeton_names(key_list(name)), name)


@pytest.mark.parametrize('size', ['large', 'small'])
def test_torchvision_renaming_is_bijective(size):
    torchvision, princeton = key_list(f'tv_{size}'), key_list(f'raft_{size}')
    ours = to_princeton_names(torchvision)
    assert len(ours) == len(torchvision)
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in to_princeton_names(princeton).items()
    }


@pytest.mark.parametrize('name', ['sea_S', 'sea_M'])
@pytest.mark.parametrize('aliased', [True, False], ids=['pth', 'safetensors'])
def test_official_sea_raft_names_load(name, aliased):
    state = key_list(name)
    if not aliased:
        kept = {k: v for k, v in state.items() if '.downsample.1.' not in k}
        assert len(state) - len(kept) == 20
        state = kept
    model = SEARAFT('resnet34' if name == 'sea_M' else 'resnet18')
    load_state(model, from_official_names(state), name)


def test_official_dit4sr_names_map():
    """Names and shapes of the blocks the list shows: 0 (dual), 13 (not) and 23 (last)."""
    official = {k: tuple(v.shape) for k, v in key_list_meta('dit4sr_key_patterns').items()}
    with torch.device('meta'):
        model = DiT4SRTransformer()
    ours = {
        k: tuple(v.shape)
        for k, v in model.state_dict().items()
        if not k.startswith('transformer_blocks.') or k.split('.')[1] in ('0', '13', '23')
    }
    ignored = [re.compile(p) for p in DiT4SRTransformer._keys_to_ignore_on_load_unexpected]
    assert ours == {k: s for k, s in official.items() if not any(p.search(k) for p in ignored)}


def key_list_meta(name):
    with torch.device('meta'):
        return key_list(name)
