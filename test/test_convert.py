# SPDX-License-Identifier: Apache-2.0
"""`daflow convert` from folders in the official layout, and what loading refuses."""

import json
import shutil
import struct

import pytest

torch = pytest.importorskip('torch')

from safetensors.torch import load_file, save_file  # noqa: E402

from daflow_ros.cli import main  # noqa: E402
from daflow_ros.estimators import EstimatorError, load_estimator  # noqa: E402
from daflow_ros.models.daflow import DAFlow  # noqa: E402
from daflow_ros.models.dit4sr import DiT4SRTransformer  # noqa: E402
from daflow_ros.models.latent import autoencoder_class  # noqa: E402
from daflow_ros.models.loading import load_daflow, read_config, weight_files  # noqa: E402
from daflow_ros.models.raft import RAFT  # noqa: E402
from daflow_ros.models.raft_checkpoints import CheckpointError  # noqa: E402
from daflow_ros.models.raft_sizes import RAFT_SMALL  # noqa: E402

TRANSFORMER = {
    'sample_size': 16,
    'patch_size': 2,
    'in_channels': 16,
    'out_channels': 16,
    'num_layers': 5,
    'attention_head_dim': 16,
    'num_attention_heads': 2,
    'joint_attention_dim': 24,
    'caption_projection_dim': 32,
    'pooled_projection_dim': 20,
    'pos_embed_max_size': 24,
    'dual_attention_layers': [0, 1],
    'qk_norm': 'rms_norm',
}
VAE = {
    'block_out_channels': [8, 8, 8, 8],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'layers_per_block': 1,
    'latent_channels': 16,
    'norm_num_groups': 4,
    'scaling_factor': 1.5305,
    'shift_factor': 0.0609,
    'use_quant_conv': False,
    'use_post_quant_conv': False,
}
TAPS = ['--taps', '0', '2', '3']


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """Random weights as DiT4SR, SD3.5 and RAFT are published: shards, fp16 and fp32, dead keys."""
    root = tmp_path_factory.mktemp('sources')
    torch.manual_seed(0)
    transformer = DiT4SRTransformer(**TRANSFORMER)
    state = transformer.state_dict()
    for i in range(5):
        for attn in ('attn', 'attn2') if i < 2 else ('attn',):
            state[f'transformer_blocks.{i}.{attn}.to_k_control.weight'] = torch.zeros(32, 32)
            state[f'transformer_blocks.{i}.{attn}.to_k_control.bias'] = torch.zeros(32)
    for i in range(2):
        prefix = f'transformer_blocks.{i}.attn2'
        state[f'{prefix}.add_q_proj.weight'] = torch.zeros(32, 32)
        state[f'{prefix}.to_add_out.bias'] = torch.zeros(32)
        state[f'{prefix}.norm_added_k.weight'] = torch.zeros(16)
    state = {k: v if 'control' in k else v.half() for k, v in state.items()}
    folder = root / 'dit4sr_q' / 'transformer'
    folder.mkdir(parents=True)
    config = {'_class_name': 'SD3Transformer2DModel', '_diffusers_version': '0.33', **TRANSFORMER}
    (folder / 'config.json').write_text(json.dumps(config))
    names = sorted(state)
    index = {}
    for n, part in enumerate((names[::2], names[1::2]), start=1):
        file = f'diffusion_pytorch_model-{n:05d}-of-00002.safetensors'
        save_file({k: state[k].contiguous() for k in part}, folder / file)
        index.update(dict.fromkeys(part, file))
    (folder / 'diffusion_pytorch_model.safetensors.index.json').write_text(
        json.dumps({'metadata': {}, 'weight_map': index})
    )
    vae = autoencoder_class().from_config(VAE)
    vae.save_pretrained(root / 'sd35' / 'vae')
    raft = RAFT(**RAFT_SMALL)
    torch.save({f'module.{k}': v for k, v in raft.state_dict().items()}, root / 'raft-small.pth')
    save_file(
        {'prompt_embeds': torch.randn(1, 7, 24), 'pooled_prompt_embeds': torch.randn(1, 20)},
        root / 'null.safetensors',
    )
    return root


def convert(root, output, *options):
    return main(
        [
            'convert',
            '--dit4sr', str(root / 'dit4sr_q'),
            '--vae', str(root / 'sd35'),
            '--raft', str(root / 'raft-small.pth'),
            '--null-text', str(root / 'null.safetensors'),
            '--output', str(output),
            *options,
        ]
    )  # fmt: skip


@pytest.fixture(scope='module')
def converted(sources, tmp_path_factory):
    output = tmp_path_factory.mktemp('converted') / 'daflow'
    assert convert(sources, output, *TAPS, '--frames', '2') == 0
    return output


@torch.inference_mode()
def test_converted_folder_has_the_sources_weights_and_raft_flow(sources, converted):
    model = load_daflow(converted)
    stored = DiT4SRTransformer(**TRANSFORMER)
    state = {}
    for file in (sources / 'dit4sr_q' / 'transformer').glob('*.safetensors'):
        state.update(load_file(file))
    stored.load_state_dict({k: state[k].float() for k in stored.state_dict()})
    for key, value in stored.state_dict().items():
        assert torch.equal(model.transformer.state_dict()[key], value), key
    vae = autoencoder_class().from_pretrained(sources / 'sd35' / 'vae').eval()
    x = torch.rand(1, 2, 3, 64, 96) * 2 - 1
    latent = (vae.encode(x[0]).latent_dist.mode() - 0.0609) * 1.5305
    assert torch.allclose(model.latent.encode(x[0]), latent, atol=1e-5)
    raft = RAFT(**RAFT_SMALL).eval()
    weights = torch.load(sources / 'raft-small.pth', weights_only=True)
    raft.load_state_dict({k.removeprefix('module.'): v for k, v in weights.items()})
    flow = raft(x[:, 0], x[:, 1], 3).flow
    assert (model(x, 3).flow - flow).abs().max() <= 1e-5
    null = load_file(sources / 'null.safetensors')['prompt_embeds']
    assert torch.equal(model.null_text, null)
    assert DAFlow.from_pretrained(converted).config.num_frames == 2


@torch.inference_mode()
def test_one_step_folder_is_smaller_and_taps_the_same(sources, converted, tmp_path):
    assert convert(sources, tmp_path / 'one', *TAPS, '--one-step') == 0
    small, whole = load_daflow(tmp_path / 'one'), load_daflow(converted)
    size = [sum(p.numel() for p in m.transformer.parameters()) for m in (small, whole)]
    assert size[0] < 0.8 * size[1]
    latent = torch.randn(2, 16, 8, 8)
    for a, b in zip(small.features(latent, 2).keys, whole.features(latent, 2).keys, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(EstimatorError, match='diffusion_steps'):
        load_estimator('daflow', device='cpu', weights=tmp_path / 'one', diffusion_steps=2)


def test_an_existing_output_is_not_overwritten(sources, converted, capsys):
    assert convert(sources, converted, *TAPS) == 1
    assert 'already there' in capsys.readouterr().err


def edit_json(path, change):
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def damage(name, root):
    """Break one source; returns what the message has to contain."""
    folder = root / 'dit4sr_q' / 'transformer'
    shard = folder / 'diffusion_pytorch_model-00001-of-00002.safetensors'
    index = folder / 'diffusion_pytorch_model.safetensors.index.json'
    if name == 'missing shard':
        shard.unlink()
        return [shard.name, 'missing']
    if name == 'truncated shard':
        shard.write_bytes(shard.read_bytes()[:-1000])
        return [shard.name, 'truncated']
    if name == 'huge header':
        shard.write_bytes(struct.pack('<Q', 1 << 62) + b'{}')
        return [shard.name, 'truncated or not']
    if name == 'shard outside':
        edit_json(index, lambda c: c['weight_map'].update(a='../../raft.safetensors'))
        return [index.name, '../../raft.safetensors', 'expected a file of this folder']
    if name == 'wrong shape':
        state = load_file(shard)
        key = sorted(k for k in state if k.endswith('to_q.weight'))[0]
        save_file({**state, key: torch.zeros(16, 16)}, shard)
        return [shard.name, key, '(16, 16)', '(32, 32)']
    if name == 'unknown key':
        save_file({**load_file(shard), 'lora.weight': torch.zeros(1)}, shard)
        return [shard.name, 'lora.weight', 'not a parameter']
    if name == 'missing key':
        state = load_file(shard)
        key = sorted(k for k in state if k.endswith('to_q.weight'))[0]
        del state[key]
        save_file(state, shard)
        return ['1 keys missing', key, '(32, 32)']
    if name == 'integers':
        state = load_file(shard)
        key = sorted(k for k in state if k.endswith('to_q.weight'))[0]
        save_file({**state, key: torch.zeros(32, 32, dtype=torch.int64)}, shard)
        return [shard.name, key, 'floating point']
    if name == 'not a number':
        state = load_file(shard)
        key = sorted(k for k in state if k.endswith('to_q.weight'))[0]
        save_file({**state, key: torch.full((32, 32), float('nan'))}, shard)
        return [key, 'not finite']
    if name == 'other class':
        edit_json(folder / 'config.json', lambda c: c.update(_class_name='UNet2DModel'))
        return ['config.json', 'UNet2DModel', 'SD3Transformer2DModel']
    if name == 'endless layers':
        edit_json(folder / 'config.json', lambda c: c.update(num_layers=10**9))
        return ['config.json', 'num_layers']
    if name == 'unknown option':
        edit_json(folder / 'config.json', lambda c: c.update(exec='rm'))
        return ['config.json', 'exec']
    if name == 'not JSON':
        (folder / 'config.json').write_text('{')
        return ['config.json', 'not JSON']
    if name == 'pickle':
        for file in folder.glob('*safetensors*'):
            file.unlink()
        torch.save({}, folder / 'diffusion_pytorch_model.bin')
        return ['transformer', 'pickles are not read']
    if name == 'vae of another kind':
        edit_json(root / 'sd35' / 'vae' / 'config.json', lambda c: c.update(latent_channels=4))
        return ['in_channels 16', '4 channels']
    if name == 'null text':
        save_file({'prompt_embeds': torch.zeros(7, 24)}, root / 'null.safetensors')
        return ['null.safetensors', 'pooled_prompt_embeds missing']
    if name == 'null text of another width':
        save_file(
            {'prompt_embeds': torch.zeros(7, 32), 'pooled_prompt_embeds': torch.zeros(20)},
            root / 'null.safetensors',
        )
        return ['null.safetensors', 'prompt_embeds', '(1, 7, 32)', '(1, 7, 24)']
    if name == 'raft that runs code':
        torch.save({'module.fnet.conv1.weight': Evil()}, root / 'raft-small.pth')
        return ['raft-small.pth', 'not a readable']
    raise AssertionError(name)


class Evil:
    """Unpickling this would leave a file behind."""

    def __reduce__(self):
        return (open, ('/tmp/daflow_evil', 'w'))


@pytest.mark.parametrize(
    'name',
    [
        'missing shard', 'truncated shard', 'huge header', 'shard outside', 'wrong shape',
        'unknown key', 'missing key', 'integers', 'not a number', 'other class', 'endless layers',
        'unknown option', 'not JSON', 'pickle', 'vae of another kind', 'null text',
        'null text of another width', 'raft that runs code',
    ],
)  # fmt: skip
def test_damaged_sources_are_named(sources, tmp_path, capsys, name):
    root = tmp_path / 'sources'
    shutil.copytree(sources, root)
    expected = damage(name, root)
    assert convert(root, tmp_path / 'out', *TAPS) == 1
    message = capsys.readouterr().err
    for part in expected:
        assert part in message, message
    assert not (tmp_path / 'out').exists()
    if name == 'raft that runs code':
        from pathlib import Path

        assert not Path('/tmp/daflow_evil').exists()


def test_estimators_name_what_is_wrong_with_a_folder(converted, tmp_path):
    with pytest.raises(EstimatorError, match='do not exist'):
        load_estimator('daflow', device='cpu', weights=tmp_path / 'nowhere')
    broken = tmp_path / 'broken'
    shutil.copytree(converted, broken)
    (file,) = broken.glob('*.safetensors')
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(EstimatorError, match=f'{file.name}.*truncated'):
        load_estimator('daflow', device='cpu', weights=broken)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(EstimatorError, match=r'config\.json'):
        load_estimator('daflow', device='cpu', weights=tmp_path / 'empty')


def test_folder_readers_say_what_they_expect(tmp_path):
    with pytest.raises(CheckpointError, match='cannot be read'):
        read_config(tmp_path, ['DAFlow'])
    (tmp_path / 'config.json').write_text('[]')
    with pytest.raises(CheckpointError, match='expected _class_name DAFlow'):
        read_config(tmp_path, ['DAFlow'])
    index = tmp_path / 'diffusion_pytorch_model.safetensors.index.json'
    index.write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(CheckpointError, match='shard 3'):
        weight_files(tmp_path)
