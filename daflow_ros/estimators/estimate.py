# SPDX-License-Identifier: Apache-2.0
"""What every estimator takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MIN_SIDE = 16


class EstimatorError(ValueError):
    """An estimator cannot be made or cannot estimate; the message says why and what would help."""


@dataclass(frozen=True)
class FlowEstimate:
    """Dense flow of one pair.

    Attributes:
        flow: float32 ``(H, W, 2)``, px over the pair, u right and v down, on the pixel grid of the
            first image; finite.
        confidence: float32 ``(H, W)`` in [0, 1], probability that the end-point error is below
            3 px by the model's own account, or None where the model has none.
        iterations: refinement iterations run at full size (0 where the notion does not apply).
        diffusion_steps: passes of the diffusion transformer, 0 for models without one.
        processing_time: s, from images in memory to arrays in memory.
    """

    flow: NDArray[np.float32]
    confidence: NDArray[np.float32] | None
    iterations: int
    diffusion_steps: int
    processing_time: float


class FlowEstimator(Protocol):
    """One model, ready to run.

    Attributes:
        name: as in ``ESTIMATORS``.
        revision: of the weights, the first 12 hexadecimal digits of their SHA-256, or the
            library's version for models without weights.
        device: 'cpu' or 'cuda:0'.
        default_iterations: refinement iterations run unless told otherwise.
    """

    name: str
    revision: str
    device: str
    default_iterations: int

    def estimate(
        self,
        image1: NDArray[np.uint8],
        image2: NDArray[np.uint8],
        *,
        iterations: int | None = None,
        initial_flow: NDArray[np.float32] | None = None,
    ) -> FlowEstimate:
        """Flow from ``image1`` to ``image2``.

        Args:
            image1, image2: uint8 ``(H, W, 3)`` RGB of equal size, H and W at least 16.
            iterations: refinement iterations, None for the default.
            initial_flow: float32 ``(H, W, 2)`` px to start from (warm start), or None.

        Raises:
            EstimatorError: unusable images, or a result that is not finite.
        """
        ...


def check_pair(image1: Any, image2: Any) -> tuple[int, int]:
    """Height and width of a usable pair.

    Raises:
        EstimatorError: not uint8 (H, W, 3) of equal size, or smaller than 16 px.
    """
    for image in (image1, image2):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = getattr(image, 'dtype', type(image).__name__)
            raise EstimatorError(f'images must be uint8 arrays, got {kind}')
        if image.ndim != 3 or image.shape[2] != 3:
            raise EstimatorError(f'images must be (H, W, 3) RGB, got {image.shape}')
    if image1.shape != image2.shape:
        raise EstimatorError(f'images differ in size: {image1.shape} and {image2.shape}')
    height, width = image1.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise EstimatorError(f'images of {width}x{height} are smaller than {MIN_SIDE} px')
    return height, width


def check_initial_flow(initial_flow: Any, height: int, width: int) -> None:
    """Raise EstimatorError unless ``initial_flow`` is None or a finite (H, W, 2) array."""
    if initial_flow is None:
        return
    if np.shape(initial_flow) != (height, width, 2):
        raise EstimatorError(
            f'initial_flow must be ({height}, {width}, 2), got {np.shape(initial_flow)}'
        )
    if not np.isfinite(initial_flow).all():
        raise EstimatorError('initial_flow is not finite')
