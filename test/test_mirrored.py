# SPDX-License-Identifier: Apache-2.0
"""The mean of a flow and of that of the mirrored pair, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from daflow_ros.models.flow_output import FlowOutput, expected_error
from daflow_ros.models.mirrored import mean_of_mirrored, mirrored


def output(flow: torch.Tensor, errors: torch.Tensor) -> FlowOutput:
    """With one Laplace distribution of these scales, px."""
    laplace = torch.zeros(len(flow), 4, *flow.shape[-2:])
    laplace[:, 0], laplace[:, 2] = 60.0, errors.log()
    return FlowOutput(flow, [], laplace)


def test_a_mirrored_flow_leads_to_the_mirrored_place() -> None:
    flow = torch.randn((2, 2, 5, 7), generator=torch.Generator().manual_seed(0))
    columns = torch.arange(7).expand(2, 5, 7)
    to = columns + flow[:, 0]
    other = mirrored(flow)
    assert torch.allclose(columns + other[:, 0], (6 - to).flip(-1), atol=1e-5)
    assert torch.equal(other[:, 1], flow[:, 1].flip(-1))
    assert torch.equal(mirrored(other), flow)


def test_each_counts_by_the_error_it_expects() -> None:
    true = torch.tensor([3.0, -2.0])[None, :, None, None].expand(1, 2, 4, 6).clone()
    found, again = true.clone(), mirrored(true)
    found[:, 0] += 1.0
    again[:, 0] += 1.0  # 1 px less, when it is mirrored back
    errors, others = torch.full((1, 4, 6), 0.5), torch.full((1, 4, 6), 0.5)
    errors[..., 1], others[..., 1] = 2.0, 1.0  # column 4 of the pair itself
    mean = mean_of_mirrored(output(found, errors), output(again, others))
    expected = true.clone()
    expected[:, 0, :, 1] += 1 - 2 * 4 / (4 + 0.25)
    expected[:, 0, :, 4] += 1 - 2 * 0.25 / (0.25 + 1)
    assert torch.allclose(mean, expected, atol=1e-5)


def test_what_errs_otherwise_in_the_mirror_errs_less_in_the_mean() -> None:
    g = torch.Generator().manual_seed(1)
    true = torch.randn((1, 2, 64, 64), generator=g)
    errors = [torch.rand((1, 64, 64), generator=g) + 0.2 for _ in range(2)]
    noises = [e[:, None] * torch.randn((1, 2, 64, 64), generator=g) for e in errors]
    found = output(true + noises[0], errors[0])
    again = output(mirrored(true + noises[1]), errors[1].flip(-1))
    assert torch.allclose(expected_error(again.laplace), errors[1].flip(-1), atol=1e-5)
    off = (mean_of_mirrored(found, again) - true).square().mean()
    # Of two independent measurements: 1 / (1 / e1^2 + 1 / e2^2).
    best = 1 / sum(1 / e.square() for e in errors)
    assert abs(float(off / best.mean()) - 1) < 0.05


def test_without_expected_errors_it_is_refused() -> None:
    flow = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match='errors that their networks expect'):
        mean_of_mirrored(FlowOutput(flow, []), output(flow, torch.ones(1, 4, 4)))
