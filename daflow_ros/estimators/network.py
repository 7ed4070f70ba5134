# SPDX-License-Identifier: Apache-2.0
"""Networks as estimators: device, precision, padding, coarse-to-fine start, checks."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from daflow_ros.estimators.estimate import (
    EstimatorError,
    FlowEstimate,
    check_initial_flow,
    check_pair,
)
from daflow_ros.flow.consistency import forward_backward_mask
from daflow_ros.flow.falling import bright_things_fall, without_falling
from daflow_ros.flow.hypotheses import HYPOTHESES, dis_hypotheses
from daflow_ros.flow.mending import mended
from daflow_ros.flow.padding import InputPadder
from daflow_ros.flow.preparation import stretch_range
from daflow_ros.flow.variational import refine_variationally
from daflow_ros.models.flow_output import FlowOutput, laplace_scales
from daflow_ros.models.tiling import Predict, predict_tiled

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
#: The confidence published is the probability of an error below this many px (KITTI's outlier).
CONFIDENCE_THRESHOLD = 3.0
#: Above this many px an image is cut into tiles: at 1920x1088 a correlation takes 5.7 GB.
PIXEL_BUDGET = 1920 * 1088


class _Look(NamedTuple):
    """What one run of the network on a clip saw and gave."""

    frames: Tensor
    shown: list[NDArray[np.uint8]]
    output: FlowOutput
    flow: NDArray[np.float32]
    falling: bool


def choose_device(device: str) -> torch.device:
    """'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        EstimatorError: a device that is not there.
    """
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise EstimatorError(f'device {device!r} cannot be used: {error}') from error
    return chosen


def laplace_confidence(laplace: Tensor, threshold: float = CONFIDENCE_THRESHOLD) -> Tensor:
    """P(|error| < threshold) of a mixture of two Laplace distributions (SEA-RAFT section 3.2).

    Args:
        laplace: ``(B, 3, H, W)`` or ``(B, 4, H, W)``, see FlowOutput.
        threshold: px.
    """
    weights = laplace[:, :2].softmax(dim=1)
    scales = laplace_scales(laplace).exp()
    return (weights * (1 - torch.exp(-threshold / scales))).sum(dim=1)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow ``(N, 2, H, W)`` in px, resampled to ``size`` (height, width) and its px."""
    height, width = flow.shape[-2:]
    if (height, width) == size:
        return flow
    ratio = flow.new_tensor([size[1] / width, size[0] / height])
    resized = F.interpolate(flow, size=size, mode='bilinear', align_corners=False)
    return resized * ratio[:, None, None]


class NetworkEstimator:
    """A torch network behind :class:`FlowEstimator`.

    Args:
        name: as in ``ESTIMATORS``.
        network: in evaluation mode.
        predict: how to run it.
        revision: of its weights.
        device: see :func:`choose_device`.
        dtype: 'float32', 'float16' or 'bfloat16' (autocast).
        iterations: default refinement iterations.
        multiple: H and W are padded to this.
        padding: 'centre' or 'bottom', see InputPadder.
        pyramid: coarse-to-fine levels; 1 runs at full size alone, each further level starts from
            a quarter of the size. Helps with large motion and, since shrinking averages noise
            away, in bad weather; costs a sixteenth more.
        coarse_iterations: refinement iterations at the coarser levels.
        diffusion_steps: told in the estimate.
        consistency: run the pair backwards too and set the confidence to 0 where the two flows
            disagree (forward-backward check), to 1 elsewhere if the model tells none itself.
            Twice the time.
        hypotheses: match each pair classically as well, for a network that fuses what comes out
            (`daflow_ros/flow/hypotheses.py`), and refine the result as DIS does its own; the
            images are mended before (`daflow_ros/flow/mending.py`).
        looks: with hypotheses, how often a pair before which something falls is estimated, each
            time after the first with rain and snow taken from it along the last flow
            (`daflow_ros/flow/falling.py`); 1 to 8. Other pairs, and with fewer iterations than
            the default, once.
        pixel_budget: images of more px are cut into tiles, for all-pairs correlation and attention
            grow with the square.
        max_side: px of a tile's side at most.
        num_frames: F, at least 2. More than 2 take the earlier frames from the calls before, as
            long as each call's first image is the last call's second; a clip that is broken
            starts again with two.

    Raises:
        EstimatorError: unknown dtype, device or counts out of range.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        predict: Predict,
        revision: str,
        *,
        device: str = 'auto',
        dtype: str = 'float32',
        iterations: int = 12,
        multiple: int = 8,
        padding: str = 'centre',
        pyramid: int = 1,
        coarse_iterations: int = 8,
        diffusion_steps: int = 0,
        consistency: bool = False,
        hypotheses: bool = False,
        looks: int = 1,
        pixel_budget: int = PIXEL_BUDGET,
        max_side: int = 1 << 30,
        num_frames: int = 2,
    ) -> None:
        if dtype not in DTYPES:
            raise EstimatorError(f'dtype {dtype!r} is none of {", ".join(DTYPES)}')
        if not 1 <= iterations <= 64 or not 1 <= pyramid <= 3 or coarse_iterations < 1:
            raise EstimatorError(
                'iterations must be 1 to 64, pyramid 1 to 3, coarse_iterations at least 1'
            )
        self._device = choose_device(device)
        if not 2 <= num_frames <= 8:
            raise EstimatorError(f'num_frames must be 2 to 8, got {num_frames}')
        if not 1 <= looks <= 8:
            raise EstimatorError(f'looks must be 1 to 8, got {looks}')
        self.name = name
        self.revision = revision
        self.device = str(self._device)
        self.default_iterations = iterations
        self._network = network.to(self._device).eval()
        self._predict = predict
        self._dtype = DTYPES[dtype]
        self._multiple = multiple
        self._padding = padding
        self._pyramid = pyramid
        self._coarse_iterations = coarse_iterations
        self._diffusion_steps = diffusion_steps
        self._consistency = consistency
        self._hypotheses = hypotheses
        self._looks = looks
        self._pixel_budget = pixel_budget
        self._max_side = max_side
        self._num_frames = num_frames
        self._clip: list[NDArray[np.uint8]] = []

    @property
    def network(self) -> nn.Module:
        """What is run, in evaluation mode."""
        return self._network

    def _clip_of(
        self, image1: NDArray[np.uint8], image2: NDArray[np.uint8]
    ) -> list[NDArray[np.uint8]]:
        """F frames that end with the pair."""
        clip = [image1, image2]
        if self._num_frames > 2:
            # Copies: a camera driver may write the next frame into the same memory.
            if not self._clip or not np.array_equal(self._clip[-1], image1):
                self._clip = [image1.copy()]
            self._clip = clip = [*self._clip, image2.copy()][-self._num_frames :]
        return clip

    def _tensor(self, clip: list[NDArray[np.uint8]]) -> Tensor:
        """Frames ``(1, F, 3, H, W)`` in [-1, 1]."""
        frames = torch.from_numpy(np.stack(clip)).to(self._device).permute(0, 3, 1, 2).float()
        return (2 * frames / 255 - 1)[None]

    def _hypothesis_tensor(self, flows: NDArray[np.float32] | None) -> Tensor | None:
        """``(K + M, 2, H, W)`` px."""
        if flows is None:
            return None
        return torch.from_numpy(flows).permute(0, 3, 1, 2).to(self._device)

    def _level(
        self, frames: Tensor, iterations: int, start: Tensor | None, others: Tensor | None
    ) -> FlowOutput:
        """Run at one size; ``start`` and the result are at that size, unpadded."""
        height, width = frames.shape[-2:]
        padder = InputPadder(height, width, self._multiple, self._padding)
        (padded,) = padder.pad(frames[0])
        initial = None
        if start is not None:
            (initial,) = padder.pad(start)
        if others is not None:
            (others,) = padder.pad(others)
            others = others[None]
        autocast = torch.autocast(
            self._device.type, self._dtype, enabled=self._dtype is not torch.float32
        )
        with autocast:
            output = predict_tiled(
                self._predict,
                padded[None],
                iterations,
                initial,
                others,
                self._pixel_budget,
                self._multiple,
                max_side=self._max_side,
            )
        flow = padder.unpad(output.flow.float())
        laplace = None if output.laplace is None else padder.unpad(output.laplace.float())
        return FlowOutput(flow, output.flows_low, laplace)

    def _sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Sizes from coarse to fine; levels below 64 px are left out."""
        sizes = [(height, width)]
        for level in range(1, self._pyramid):
            size = (round(height / 4**level), round(width / 4**level))
            if min(size) < 64:
                break
            sizes.insert(0, size)
        return sizes

    def _pyramid_run(
        self, frames: Tensor, iterations: int, start: Tensor | None, others: Tensor | None
    ) -> FlowOutput:
        """From coarse to fine; with a ``start`` (at full size) only the full size is run."""
        height, width = frames.shape[-2:]
        sizes = self._sizes(height, width)
        for size in sizes if start is None else sizes[-1:]:
            finest = size == (height, width)
            level = frames if finest else F.interpolate(frames[0], size=size, mode='area')[None]
            output = self._level(
                level,
                iterations if finest else self._coarse_iterations,
                None if start is None else resize_flow(start, size),
                None if others is None else resize_flow(others, size),
            )
            start = output.flow
        return output

    def _finish(
        self, output: FlowOutput, image1: NDArray[np.uint8], image2: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow ``(H, W, 2)`` px, refined where it was fused from classical hypotheses."""
        flow = np.ascontiguousarray(output.flow[0].permute(1, 2, 0).cpu().numpy())
        finite = bool(np.isfinite(flow).all())
        if finite and self._hypotheses:
            flow = refine_variationally(flow, image1, image2)
            finite = bool(np.isfinite(flow).all())
        if not finite:
            raise EstimatorError(f'{self.name}: the flow is not finite ({self._dtype})')
        return flow

    def _look(self, clip: list[NDArray[np.uint8]], iterations: int, start: Tensor | None) -> _Look:
        """Match the last pair of a clip that is mended, and run the network on it."""
        flows, falling, shown = None, False, clip
        if self._hypotheses:
            # Matched as dark or pale as they are: stretched, snow misleads DIS.
            flows, falling = dis_hypotheses(clip[-2], clip[-1])
            shown = stretch_range(clip, flows[: len(HYPOTHESES)])
        frames = self._tensor(shown)
        output = self._pyramid_run(frames, iterations, start, self._hypothesis_tensor(flows))
        flow = self._finish(output, shown[-2], shown[-1])
        return _Look(frames, shown, output, flow, falling)

    @torch.inference_mode()
    def estimate(
        self,
        image1: NDArray[np.uint8],
        image2: NDArray[np.uint8],
        *,
        iterations: int | None = None,
        initial_flow: NDArray[np.float32] | None = None,
    ) -> FlowEstimate:
        """See :class:`FlowEstimator`. With ``initial_flow`` only the full size is run."""
        begin = time.perf_counter()
        height, width = check_pair(image1, image2)
        check_initial_flow(initial_flow, height, width)
        count = self.default_iterations if iterations is None else iterations
        if not 1 <= count <= 64:
            raise EstimatorError(f'iterations must be 1 to 64, got {count}')
        clip = self._clip_of(image1, image2)
        if self._hypotheses:
            clip = mended(clip)
        first, second = clip[-2:]
        start = None
        if initial_flow is not None:
            start = torch.from_numpy(np.ascontiguousarray(initial_flow, dtype=np.float32))
            start = start.to(self._device).permute(2, 0, 1)[None]
        look = self._look(clip, count, start)
        # Who asks for fewer iterations is short of time.
        again = self._looks > 1 and look.falling and count >= self.default_iterations
        if again and bright_things_fall(first, second, look.flow):
            for _ in range(1, self._looks):
                clip = [*clip[:-2], *without_falling(first, second, look.flow)]
                look = self._look(clip, count, start)
        frames, shown, output, flow, _ = look
        confidence = None
        if output.laplace is not None:
            confidence = laplace_confidence(output.laplace)[0].clamp(0, 1).cpu().numpy()
        if self._consistency:
            matched = None
            if self._hypotheses:
                matched = dis_hypotheses(clip[-1], clip[-2]).flows
            backward = self._pyramid_run(
                frames[:, -2:].flip(1), count, None, self._hypothesis_tensor(matched)
            )
            agree = forward_backward_mask(flow, self._finish(backward, shown[-1], shown[-2]))
            confidence = agree * (np.float32(1) if confidence is None else confidence)
        return FlowEstimate(
            flow,
            confidence,
            count,
            self._diffusion_steps,
            time.perf_counter() - begin,
        )
