# SPDX-License-Identifier: Apache-2.0
"""Training of the choice between hypotheses (`daflow_ros/models/selector.py`), before the flow.

It needs the cues that ``daflow clips --degrade`` stores, no images. The result is a raft_tiny
that knows how to choose and nothing else: the ``start`` of flow training.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.models.raft import RAFT, RAFT_TINY
from daflow_ros.models.selector import HypothesisSelector
from daflow_ros.training.clip_store import StoredClips
from daflow_ros.training.losses import selection_loss
from daflow_ros.training.trainer import Trainer, TrainingConfig

#: Shards over which the cues' mean and deviation are taken.
NORMALISING = 16


def choice_loss(
    log_shares: Tensor, candidates: Tensor, flow: Tensor
) -> tuple[Tensor, Tensor]:
    """What the choice and the blend of candidates miss the flow by, a clip that is lost less.

    Args:
        log_shares: ``(B, K + 1, h, w)``; candidates: ``(B, K + 1, 2, h, w)`` in 1/4-resolution
            px, the propagated flow last.
        flow: ``(B, 2, 4h, 4w)`` px.

    Returns:
        The loss, and the mean end-point error of the blend ``(B,)`` in px.
    """
    low = F.avg_pool2d(flow, 4) / 4
    share = log_shares.exp()
    each = 4 * (candidates - low[:, None]).norm(dim=2)
    expected = (share * each).sum(dim=1).mean(dim=(1, 2))
    propagated = each[:, -1].mean(dim=(1, 2))
    blend = 4 * ((share[:, :, None] * candidates).sum(dim=1) - low).norm(dim=1).mean(dim=(1, 2))
    counts = 1 / (1 + blend.detach())
    loss = (counts * (0.4 * expected + blend + 0.3 * propagated)).mean()
    valid = torch.ones_like(flow[:, :1])
    loss = loss + 0.1 * selection_loss([(log_shares, candidates)], flow, valid)
    return loss, blend.detach()


class SelectorTrainer(Trainer):
    """Trains the selector of raft_tiny's size.

    Raises:
        ValueError: no ``clips`` in the settings, or clips without cues.
    """

    network: HypothesisSelector

    def __init__(self, config: TrainingConfig) -> None:
        if config.clips is None:
            raise ValueError('the selector trains on stored clips: set clips')
        super().__init__(config)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.stored = StoredClips(config.clips, rank, world)
        if self.step == 0:
            self._normalise()

    def build(self) -> torch.nn.Module:
        """A new one."""
        return HypothesisSelector(RAFT_TINY['num_hypotheses'])

    def trains(self, name: str) -> bool:
        """All of it."""
        return True

    def _cues(self, rows: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        if 'cues' not in rows:
            raise ValueError('the clips have no cues (`daflow clips --degrade` adds them)')
        cues = torch.from_numpy(rows['cues']).to(self.device).float()
        return cues, torch.from_numpy(rows['about']).to(self.device).float()

    def _normalise(self) -> None:
        every = []
        for index in range(0, len(self.stored.paths), -(-len(self.stored.paths) // NORMALISING)):
            cues, about = self._cues(self.stored.shard(index))
            every.append(torch.cat([cues.flatten(1, 2), about], dim=1))
        x = torch.cat(every)
        for network in (self.network, self.averaged):
            network.mean.copy_(x.mean(dim=(0, 2, 3)))
            network.deviation.copy_(x.std(dim=(0, 2, 3)) + 1e-3)

    def save_model(self) -> None:
        """A raft_tiny with this selector, all else untrained."""
        torch.manual_seed(self.config.seed)
        raft = RAFT(**RAFT_TINY)
        raft.selector.load_state_dict(self.averaged.state_dict())
        raft.save_pretrained(self.folder / 'model')

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """Loss of the next batch; `epe` is that of the blend."""
        rows = self.stored.rows(self.step, self.config.batch)
        draws = torch.rand((4,), generator=self.generator, device=self.device).tolist()
        cues, about = self._cues(rows)
        count = cues.shape[1]
        # A window of `size` px: there is room for several in a clip.
        side = self.config.size // 16 * 4
        top, left = (
            int(draw * (max(cells - side, 0) + 1))
            for draw, cells in zip(draws[2:], cues.shape[-2:], strict=True)
        )
        small = (..., slice(top, top + side), slice(left, left + side))
        large = (..., slice(4 * top, 4 * (top + side)), slice(4 * left, 4 * (left + side)))
        cues, about = cues[small], about[small]
        hypotheses = torch.from_numpy(rows['hypotheses'][:, :count][large].astype(np.float32))
        candidates = F.avg_pool2d(hypotheses.flatten(1, 2), 4).unflatten(1, (count, 2)) / 4
        candidates = candidates.to(self.device)
        flow = torch.from_numpy(rows['flow'][large].astype(np.float32)).to(self.device)
        for axis, chance in enumerate((0.5, 0.3)):
            if draws[axis] < chance:
                dims = (-1 - axis,)
                signs = torch.ones(2, 1, 1, device=self.device)
                signs[axis] = -1
                cues, about = cues.flip(dims), about.flip(dims)
                candidates, flow = candidates.flip(dims) * signs, flow.flip(dims) * signs
        with self.accelerator.autocast():
            choice = self.model(cues, about, candidates)
        every = choice.candidates.float()
        loss, error = choice_loss(choice.log_shares.float(), every, flow)
        # The coarse choice is trained by itself too, so that it stays one.
        loss = loss + choice_loss(choice.coarse.float(), every, flow)[0]
        return loss, {'sequence': float(loss.detach()), 'epe': float(error.mean())}
