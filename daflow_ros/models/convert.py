# SPDX-License-Identifier: Apache-2.0
"""Assembling a `daflow` folder from what its user has: DiT4SR, SD3.5's VAE, RAFT.

Nothing is trained here: fusion starts at zero, so that the folder's flow is the RAFT's until its
heads are trained (DA-Flow, section 3.4); its transformer already serves the zero-shot mode.
Layout of the sources as their publishers have it: ``transformer/config.json`` and
``transformer/diffusion_pytorch_model*.safetensors`` of a DiT4SR checkpoint, one file or shards,
any mixture of float precisions; ``vae/config.json`` and its safetensors of SD3.5; RAFT as
princeton-vl or torchvision publish it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daflow_ros.models.daflow import DAFlow
from daflow_ros.models.dit4sr import DiT4SRTransformer
from daflow_ros.models.latent import VAEEncoder
from daflow_ros.models.loading import build, load_tensors, read_config, weight_files
from daflow_ros.models.raft_checkpoints import CheckpointError, load_raft, read_state_dict

#: What diffusers' ``StableDiffusion3Pipeline.encode_prompt('', None, None)`` returns, as saved.
NULL_TEXT_KEYS = ('prompt_embeds', 'pooled_prompt_embeds')


def _component(folder: str | Path, name: str) -> Path:
    """The folder of a component: ``folder/name``, or ``folder`` itself."""
    folder = Path(folder)
    inner = folder / name
    return inner if inner.is_dir() else folder


def read_null_text(path: str | Path) -> tuple[Tensor, Tensor]:
    """Embeddings of the empty prompt, ``(1, L, joint_dim)`` and ``(1, pooled_dim)``.

    Args:
        path: safetensors with `NULL_TEXT_KEYS`, a leading batch axis of 1 or none.

    Raises:
        CheckpointError: unreadable, or other keys or shapes.
    """
    state = read_state_dict(path)
    for key in NULL_TEXT_KEYS:
        if key not in state:
            raise CheckpointError(
                f'{path}: {key} missing, expected {" and ".join(NULL_TEXT_KEYS)}'
            )
    text, pooled = (state[key].float() for key in NULL_TEXT_KEYS)
    text = text[None] if text.ndim == 2 else text
    pooled = pooled[None] if pooled.ndim == 1 else pooled
    for key, value, ndim in (('prompt_embeds', text, 3), ('pooled_prompt_embeds', pooled, 2)):
        if value.ndim != ndim or len(value) != 1:
            raise CheckpointError(
                f'{path}: {key}: shape {tuple(value.shape)}, expected one prompt'
            )
    return text, pooled


def _materialise(part: nn.Module) -> None:
    """Fresh weights for a part that was built on the meta device."""
    part.to_empty(device='cpu')
    for module in part.modules():
        reset = getattr(module, 'reset_parameters', None)
        if reset is not None:
            reset()


def assemble(
    dit4sr: str | Path,
    vae: str | Path,
    raft: str | Path,
    null_text: str | Path,
    taps: Sequence[int] = (3, 13, 16, 17),
    num_frames: int = 3,
    one_step: bool = False,
    **options: Any,
) -> DAFlow:
    """DA-Flow from its parts, on the CPU, every weight in the precision it was stored in.

    Args:
        dit4sr: folder of a DiT4SR checkpoint, or its ``transformer`` folder.
        vae: folder of SD3.5, or its ``vae`` folder.
        raft: RAFT checkpoint file.
        null_text: see `read_null_text`.
        taps: layers, 0-based.
        num_frames: F.
        one_step: leave out what only further denoising steps would run.
        options: further arguments of `DAFlow`.

    Raises:
        CheckpointError: a source that is missing, damaged, hostile, or does not fit the others.
    """
    transformer_folder, vae_folder = _component(dit4sr, 'transformer'), _component(vae, 'vae')
    transformer_config = read_config(
        transformer_folder, ['SD3Transformer2DModel', 'DiT4SRTransformer']
    )
    vae_config = read_config(vae_folder, ['AutoencoderKL'])
    text, pooled = read_null_text(null_text)
    cnn = load_raft(raft)
    # Complete, whatever is kept of it: an unknown key has to be told from one that is left out.
    complete = build(DiT4SRTransformer, transformer_config, transformer_folder)
    raft_config = {k: v for k, v in cnn.config.items() if not k.startswith('_')}
    config = {
        'transformer_config': {
            **transformer_config,
            **({'truncate_at': max(taps)} if one_step else {}),
        },
        'vae_config': vae_config,
        'raft_config': raft_config,
        'taps': tuple(taps),
        'text_tokens': text.shape[1],
        'num_frames': num_frames,
        **options,
    }
    model = build(DAFlow, config, transformer_folder)
    for name, given, own in (
        ('prompt_embeds', text, model.null_text),
        ('pooled_prompt_embeds', pooled, model.null_pooled),
    ):
        if given.shape != own.shape:
            raise CheckpointError(
                f'{null_text}: {name}: shape {tuple(given.shape)}, expected {tuple(own.shape)}'
            )
    model.null_text, model.null_pooled = nn.Parameter(text), nn.Parameter(pooled)
    expected = {k: v.shape for k, v in model.transformer.state_dict().items()}
    left_out = set(complete.state_dict()) - set(expected)
    ignored = DiT4SRTransformer._keys_to_ignore_on_load_unexpected
    state = load_tensors(
        weight_files(transformer_folder), expected, ignored, lambda key: key not in left_out
    )
    model.transformer.load_state_dict(state, assign=True)
    if not isinstance(model.latent, VAEEncoder):
        raise CheckpointError(f'{vae_folder}: unshuffle_factor leaves no place for a VAE')
    expected = {k: v.shape for k, v in model.latent.vae.state_dict().items()}
    state = load_tensors(
        weight_files(vae_folder), expected, [r'^decoder\.', r'^post_quant_conv\.']
    )
    model.latent.vae.load_state_dict(state, assign=True)
    for part in (model.dpt_query, model.dpt_key, model.dpt_context, model.raft):
        _materialise(part)
    model.dpt_query.zero_output()
    model.zero_context_columns()
    model.load_raft(cnn)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f'{name}: not finite in the sources')
    return model.eval()
