# SPDX-License-Identifier: Apache-2.0
"""What a DA-Flow costs, counted on the meta device: no weights, no arithmetic, any size.

Parameters per part, FLOPs (a multiply-add is two) of one estimate, and peak memory by calculation:
weights that the estimate touches plus the largest sum of activations alive at once. The attention
is counted as it runs, block by block, without its matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from daflow_ros.models.daflow import DAFlow


@dataclass(frozen=True)
class ModelCosts:
    """Costs of one estimate.

    Attributes:
        parameters: part -> parameters and stored buffers.
        flops: part -> FLOPs of one estimate; 'total' their sum.
        weights_bytes: of all parts.
        touched_bytes: of the weights that one estimate reads.
        activation_bytes: largest sum of activations alive at once.
    """

    parameters: dict[str, int]
    flops: dict[str, int]
    weights_bytes: int
    touched_bytes: int
    activation_bytes: int


class _LiveMemory(TorchDispatchMode):
    """Sum of the storages alive, and its peak; weights given at the start are not counted."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.known = {StorageWeakRef(w.untyped_storage()).cdata for w in weights}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            out = torch.empty_like(args[0])  # as fused kernels do, without the matrix
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference.cdata not in self.known:
                    size = tensor.untyped_storage().nbytes()
                    self.live[reference.cdata] = (reference, size)
        if sum(size for _, size in self.live.values()) > self.peak:
            self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def _flops(run: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """Total, and per part of the model."""
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()
    parts = {
        name.removeprefix('DAFlow.'): sum(ops.values())
        for name, ops in counts.items()
        if name.startswith('DAFlow.')
    }
    return counter.get_total_flops(), parts


def model_costs(
    config: dict[str, Any],
    height: int = 480,
    width: int = 640,
    num_frames: int = 2,
    diffusion_steps: int = 1,
    iterations: int = 12,
    dtype: torch.dtype = torch.bfloat16,
) -> ModelCosts:
    """Count the costs of a configuration of `DAFlow`.

    Args:
        config: constructor arguments; ``{}`` is the paper's size.
        height: of the images in px, padded up to the model's multiple.
        width: likewise.
        num_frames: F.
        diffusion_steps: denoising steps.
        iterations: refinement iterations, of the last pair.
        dtype: of weights and activations.
    """
    with torch.device('meta'):
        model = nn.Module.to(DAFlow(**config), dtype).eval().requires_grad_(False)
        size = [-(-side // model.multiple) * model.multiple for side in (height, width)]
        images = torch.empty(1, num_frames, 3, *size, dtype=dtype)

        raft = model.raft.config
        count = raft.num_hypotheses + raft.num_backward
        hypotheses = torch.empty(1, count, 2, *size) if count else None

    def run(steps: int) -> object:
        return model(
            images,
            iterations,
            diffusion_steps=steps,
            last_pair_only=True,
            hypotheses=hypotheses,
        )

    parameters = {
        name: sum(t.numel() for t in part.state_dict().values())
        for name, part in model.named_children()
    }
    parameters['null_text'] = model.null_text.numel() + model.null_pooled.numel()
    called: set[nn.Module] = {model}
    hooks = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in model.modules()]
    with torch.no_grad():
        latent, _ = _flops(lambda: model.latent.encode(images.flatten(0, 1)))
        total, parts = _flops(lambda: run(1))
        if diffusion_steps > 1:  # every step but the last is a whole pass
            whole = _flops(lambda: run(2))[0] - total
            total += whole * (diffusion_steps - 1)
            parts['transformer'] += whole * (diffusion_steps - 1)
    for hook in hooks:
        hook.remove()
    called.update(b.attn for b in model.transformer.transformer_blocks)  # taps call a method of it
    heads = ('transformer', 'dpt_query', 'dpt_key', 'dpt_context')
    flops = {'latent': latent, **{name: parts.get(name, 0) for name in heads}}
    flops['raft'] = total - sum(flops.values())
    flops['total'] = total
    weights = [*model.parameters(), *model.buffers()]
    with torch.inference_mode(), _LiveMemory(weights) as memory:
        run(1)
    touched: set[Tensor] = {t for m in called for t in m.parameters(recurse=False)}
    touched |= {t for m in called for t in m.buffers(recurse=False)}
    return ModelCosts(
        parameters,
        flops,
        sum(w.numel() * w.element_size() for w in weights),
        sum(w.numel() * w.element_size() for w in touched),
        memory.peak,
    )
