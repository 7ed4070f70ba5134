# SPDX-License-Identifier: Apache-2.0
"""The networks that training knows, by name or from a ``save_pretrained`` folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from daflow_ros.flow.hypotheses import HYPOTHESES, dis_hypotheses
from daflow_ros.flow.mending import mended
from daflow_ros.flow.preparation import stretch_range
from daflow_ros.models.daflow import DAFLOW_TINY, DAFlow
from daflow_ros.models.flow_output import FlowOutput
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_MATCHER, RAFT_TINY


def load_folder(folder: str | Path) -> RAFT | DAFlow:
    """RAFT or DA-Flow from a ``save_pretrained`` folder.

    Raises:
        FileNotFoundError: no ``config.json``; ValueError: of another class.
    """
    file = Path(folder) / 'config.json'
    if not file.is_file():
        raise FileNotFoundError(f'{file}: not a model folder')
    kind = json.loads(file.read_text()).get('_class_name')
    if kind == 'RAFT':
        return RAFT.from_pretrained(folder)
    if kind == 'DAFlow':
        return DAFlow.from_pretrained(folder)
    raise ValueError(f'{file}: class {kind!r} is neither RAFT nor DAFlow')


def with_matcher(network: RAFT | DAFlow, matcher: RAFT) -> RAFT | DAFlow:
    """The network with a matcher beside it, and a new blend of both."""

    def arguments(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if not key.startswith('_')}

    sizes = arguments(dict(matcher.config))
    config = arguments(dict(network.config))
    wide: RAFT | DAFlow
    if isinstance(network, DAFlow):
        raft = {**(config['raft_config'] or {}), 'matcher_config': sizes}
        wide, prefix = DAFlow(**{**config, 'raft_config': raft}), 'raft.matcher.'
    else:
        wide, prefix = RAFT(**{**config, 'matcher_config': sizes}), 'matcher.'
    beside = {prefix + name: value for name, value in matcher.state_dict().items()}
    wide.load_state_dict({**wide.state_dict(), **network.state_dict(), **beside})
    return wide


def build_network(
    name: str,
    start: str | None = None,
    backbone: str | None = None,
    matcher: str | None = None,
) -> RAFT | DAFlow:
    """A network to train.

    Args:
        name: 'raft_tiny', 'daflow_tiny', 'raft_matcher', 'daflow_matcher' (RAFT_MATCHER, without
            hypotheses), or a folder.
        start: folder of weights to begin from: the same class, or a RAFT to put into a DA-Flow.
        backbone: folder of a DA-Flow whose transformer and null text are taken over.
        matcher: folder of a RAFT that is put beside a network without one.

    Raises:
        ValueError: a backbone for a RAFT, a matcher that is none, or weights that do not fit.
    """
    network: Any
    if name == 'raft_tiny':
        network = RAFT(**RAFT_TINY)
    elif name == 'raft_matcher':
        network = RAFT(**RAFT_MATCHER)
    elif name in ('daflow_tiny', 'daflow_matcher'):
        raft = RAFT_TINY if name == 'daflow_tiny' else RAFT_MATCHER
        network = DAFlow(**{**DAFLOW_TINY, 'raft_config': raft})
        # Restoration from nothing, 200 steps: squared error 0.055 against 0.081 of torch's start.
        network.transformer.initialise()
    else:
        network = load_folder(name)
    if start is not None:
        given = load_folder(start)
        if isinstance(network, DAFlow) and isinstance(given, RAFT):
            network.load_raft(given)
        else:
            network.load_state_dict(given.state_dict())
    if backbone is not None:
        source = load_folder(backbone)
        if not isinstance(network, DAFlow) or not isinstance(source, DAFlow):
            raise ValueError('a backbone is of a DA-Flow, for a DA-Flow')
        network.transformer.load_state_dict(source.transformer.state_dict())
        network.null_text.data.copy_(source.null_text.data)
        network.null_pooled.data.copy_(source.null_pooled.data)
    if matcher is not None and raft_of(network).matcher is None:
        beside = load_folder(matcher)
        if not isinstance(beside, RAFT):
            raise ValueError(f'{matcher}: a matcher is a RAFT')
        network = with_matcher(network, beside)
    return network


def predict(
    model: nn.Module,
    frames: Tensor,
    iterations: int,
    initial_flow: Tensor | None,
    generator: torch.Generator,
    hypotheses: Tensor | None = None,
) -> FlowOutput:
    """Flow of the last pair of each clip ``(B, F, 3, H, W)`` in [-1, 1].

    A DA-Flow starts from new noise each time (by ``generator``), lest it learns one pattern of it
    that belongs to one image size.
    """
    inner = getattr(model, 'module', model)
    output: FlowOutput
    if isinstance(inner, DAFlow):
        b, f, _, h, w = frames.shape
        factor = inner.latent.factor
        noise = torch.randn(
            (b * f, inner.latent.channels, h // factor, w // factor),
            generator=generator,
            device=frames.device,
        )
        output = model(
            frames,
            iterations=iterations,
            initial_flow=initial_flow,
            noise=noise,
            last_pair_only=True,
            hypotheses=hypotheses,
        )
    else:
        output = model(frames[:, -2], frames[:, -1], iterations, initial_flow, hypotheses)
    return output


def raft_of(network: RAFT | DAFlow) -> RAFT:
    """The RAFT that a network is or holds."""
    return network.raft if isinstance(network, DAFlow) else network


def matched_clips(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Clips as an estimator prepares and matches them, on the CPU.

    Args:
        frames: ``(B, F, 3, H, W)`` in [-1, 1].

    Returns:
        The same, as the network is shown them, and classical hypotheses of the last pairs,
        ``(B, K + M, 2, H, W)`` px.
    """
    levels = (127.5 * (frames + 1)).round().clamp(0, 255).to(torch.uint8)
    shown, flows = [], []
    for clip in levels.permute(0, 1, 3, 4, 2).contiguous().cpu().numpy():
        frames_mended = mended(clip)
        flows.append(dis_hypotheses(*frames_mended[-2:]).flows)
        shown.append(np.stack(stretch_range(frames_mended, flows[-1][: len(HYPOTHESES)])))
    images = torch.from_numpy(np.stack(shown)).permute(0, 1, 4, 2, 3).to(frames.device)
    hypotheses = torch.from_numpy(np.stack(flows)).permute(0, 1, 4, 2, 3).to(frames.device)
    return images / 127.5 - 1, hypotheses
