# SPDX-License-Identifier: Apache-2.0
"""What a network finds in a pair and in its mirror image, as one flow.

A mirrored pair has the mirrored flow, but the network errs otherwise on it, so that the mean of
both errs less (test-time augmentation, weighed as what is measured twice with different errors).
Ours; it is not in the DA-Flow paper.
"""

from __future__ import annotations

from torch import Tensor

from daflow_ros.models.flow_output import FlowOutput, expected_error


def mirrored(flow: Tensor) -> Tensor:
    """Flow ``(B, 2, H, W)`` as it is in the pair mirrored left to right."""
    return flow.flip(-1) * flow.new_tensor([-1.0, 1.0])[:, None, None]


def mean_of_mirrored(found: FlowOutput, of_mirrored: FlowOutput) -> Tensor:
    """The mean of two flows, each by the inverse of its expected error squared.

    Args:
        found: in a pair.
        of_mirrored: what the same network found in its mirror image.

    Returns:
        ``(B, 2, H, W)`` px.

    Raises:
        ValueError: without ``laplace``.
    """
    if found.laplace is None or of_mirrored.laplace is None:
        raise ValueError('flows are weighed by the errors that their networks expect')
    errors = expected_error(found.laplace)[:, None], expected_error(of_mirrored.laplace)[:, None]
    # e2^2 / (e1^2 + e2^2), of errors that may be very small.
    share = 1 / (1 + (errors[0] / errors[1].flip(-1)).square())
    return share * found.flow + (1 - share) * mirrored(of_mirrored.flow)
