# SPDX-License-Identifier: Apache-2.0
"""The motion of the plane that most of a picture shows, registered on the images themselves.

The ground below, a wall, what is far behind what is near, all there is when the camera turns: so
many pixels follow one planar motion that together they tell it far more exactly than a flow in
noise, haze or blur does. Robust parametric registration after Odobez and Bouthemy, Robust
multiresolution estimation of parametric motion models (JVCIR 1995), with the eight parameters of
a plane seen in perspective (Adiv, PAMI 1985). It holds only where a picture follows it:
`blending.py` tells where that is.

Shapes: images ``(B, 3, H, W)`` in [-1, 1], flow ``(B, 2, H, W)`` in px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.flow.dominant_motion import RIDGE, SCALES
from daflow_ros.flow.dominant_motion import STEP as FIT_STEP
from daflow_ros.models.cues import evened, length

#: Every so many px a pixel is registered.
STEP = 2
#: px from the motion within which a pixel follows it and is registered.
FOLLOWS = 1.5
#: px, side of the windows in which local contrast is evened out; what is plain, of a range of 2;
#: most deviations that count.
WINDOW, PLAIN, MOST = 25, 4 / 127.5, 2.7
#: Most Gauss-Newton steps, and the last one's least change, px.
ROUNDS, CHANGE = 12, 0.002
#: Tukey's constant, in deviations of the brightness error, and the least of those.
TUKEY, FLOOR = 4.685, 0.006
#: Fewer pixels, or a mean change of more px, and the motion is left as it was.
LEAST, FURTHEST = 200, 2.0


def _fields(size: tuple[int, int], step: int, device: torch.device) -> Tensor:
    """What each parameter adds to the flow of every ``step``-th pixel, float64 ``(8, 2, h, w)``.

    The first six are an affine motion's. Half the longer side lies a unit from the middle.
    """
    height, width = size
    unit = max(height, width) / 2
    x, y = (
        (torch.arange(step // 2, side, step, device=device, dtype=torch.float64) - side / 2) / unit
        for side in (width, height)
    )
    y, x = torch.meshgrid(y, x, indexing='ij')
    one, none = torch.ones_like(x), torch.zeros_like(x)
    u = torch.stack([one, x, y, none, none, none, x * x, x * y])
    v = torch.stack([none, none, none, one, x, y, x * y, y * y])
    return torch.stack([u, v], dim=1)


def _motion(parameters: Tensor, fields: Tensor) -> Tensor:
    """``(B, 8)`` to float32 ``(B, 2, h, w)`` px."""
    return torch.einsum('bp,pchw->bchw', parameters, fields).float()


def _fit_affine(flow: Tensor) -> Tensor:
    """What most of ``flow`` follows, float64 ``(B, 8)``; as `flow/dominant_motion.py`, batched."""
    taken = flow[:, :, FIT_STEP // 2 :: FIT_STEP, FIT_STEP // 2 :: FIT_STEP].double()
    size = (flow.shape[-2], flow.shape[-1])
    fields = _fields(size, FIT_STEP, flow.device)[:6]
    parameters = taken.new_zeros((len(flow), 6))
    parameters[:, [0, 3]] = taken.flatten(2).median(dim=-1).values
    ridge = torch.diag(taken.new_tensor([1e-9, RIDGE, RIDGE] * 2))
    for scale in SCALES:
        residual = torch.einsum('bp,pchw->bchw', parameters, fields) - taken
        weight = (1 + residual.square().sum(dim=1) / scale**2) ** -2
        normal = torch.einsum('pchw,bhw,qchw->bpq', fields, weight, fields)
        normal = normal + ridge * weight.sum(dim=(1, 2))[:, None, None]
        right = torch.einsum('pchw,bhw,bchw->bp', fields, weight, taken)
        parameters = torch.linalg.solve(normal, right)
    return F.pad(parameters, (0, 2))


def _prepared(image: Tensor) -> Tensor:
    """Grey values of even local contrast, smoothed by a binomial kernel, ``(B, 1, H, W)``."""
    grey = image.float().mean(dim=1, keepdim=True)
    even = evened(grey, WINDOW, PLAIN).clamp(-MOST, MOST)
    kernel = even.new_tensor([1, 4, 6, 4, 1])[None, None, None] / 16
    even = F.conv2d(F.pad(even, (2, 2, 2, 2), 'replicate'), kernel)
    return F.conv2d(even, kernel.transpose(2, 3))


def _with_gradients(even: Tensor) -> Tensor:
    """Central differences to the right and downwards beside it, ``(B, 3, H, W)``."""
    padded = F.pad(even, (1, 1, 1, 1), 'replicate')
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return torch.cat([even, right, down], dim=1)


def _masked_median(x: Tensor, mask: Tensor) -> Tensor:
    """``(B, h, w)`` to ``(B, 1, 1)``; NaN where the mask is empty."""
    chosen = torch.where(mask, x, torch.nan).flatten(1)
    return chosen.nanmedian(dim=1).values[:, None, None]


def _register(first: Tensor, second: Tensor, start: Tensor, support: Tensor) -> Tensor:
    """The motion under which ``second`` best shows what ``first`` does.

    Args:
        first: ``(B, 1, H, W)`` of :func:`_prepared`; second: ``(B, 3, H, W)``, with its gradients.
        start: ``(B, 8)``, from where, within about 2 px.
        support: bool ``(B, H, W)``, what of the first image counts.

    Returns:
        ``(B, 8)``; ``start``, where too little counts or nothing is found near it.
    """
    batch, _, height, width = first.shape
    fields = _fields((height, width), STEP, first.device)
    taken = (..., slice(STEP // 2, None, STEP), slice(STEP // 2, None, STEP))
    value, support = first[:, 0][taken], support[taken]
    y, x = torch.meshgrid(
        torch.arange(STEP // 2, height, STEP, device=first.device),
        torch.arange(STEP // 2, width, STEP, device=first.device),
        indexing='ij',
    )
    here, last = torch.stack([x, y]), first.new_tensor([width - 1, height - 1])[:, None, None]
    along = fields.float().flatten(2)
    # Its motion, a gain and an offset of brightness.
    jacobian = first.new_empty((batch, len(fields) + 2, value[0].numel()))
    jacobian[:, -2] = value.flatten(1)
    jacobian[:, -1] = 1
    parameters, found = start, torch.ones(batch, dtype=torch.bool, device=first.device)
    for _ in range(ROUNDS):
        there = here + _motion(parameters, fields)
        inside = support & (there >= 0).all(dim=1) & (there <= last).all(dim=1)
        found = found & (inside.sum(dim=(1, 2)) >= LEAST)
        grid = (2 * there / last - 1).permute(0, 2, 3, 1)
        seen = F.grid_sample(second, grid, align_corners=True)
        error = seen[:, 0] - value
        deviation = (error - _masked_median(error, inside)).abs()
        scale = 1.4826 * _masked_median(deviation, inside) + FLOOR
        weight = (1 - (error / (TUKEY * scale)).square()).clamp(min=0).square() * inside
        weight = torch.where(inside, weight, 0).flatten(1)[:, None]
        slope = seen[:, 1:].flatten(2)
        torch.mul(along[:, 0], slope[:, :1], out=jacobian[:, :-2])
        jacobian[:, :-2].addcmul_(along[:, 1], slope[:, 1:])
        weighted = jacobian * weight
        normal = (weighted @ jacobian.transpose(1, 2)).double()
        diagonal = normal.diagonal(dim1=1, dim2=2)
        normal = normal + torch.diag_embed(1e-6 * diagonal + 1e-9)
        right = (weighted @ error.flatten(1)[..., None]).double()
        change = torch.linalg.solve(normal, -right)[:, : len(fields), 0]
        parameters = torch.where(found[:, None], parameters + change, parameters)
        if not (found & (change.abs().amax(dim=1) >= CHANGE)).any():
            break
    apart = length(_motion(parameters - start, fields), 1) * support
    near = apart.sum(dim=(1, 2)) <= FURTHEST * support.sum(dim=(1, 2))
    kept = found & near & parameters.isfinite().all(dim=1)
    return torch.where(kept[:, None], parameters, start)


@torch.no_grad()
def dominant_plane(flow: Tensor, image1: Tensor, image2: Tensor) -> Tensor:
    """The planar motion that most of ``flow`` follows, as exactly as the images tell it.

    Args:
        flow: finite, ``(B, 2, H, W)`` px.
        image1, image2: ``(B, 3, H, W)`` in [-1, 1].

    Returns:
        float32 ``(B, 2, H, W)`` px.
    """
    # Half precision could not tell one pixel from the next.
    with torch.autocast(flow.device.type, enabled=False):
        flow = flow.float()
        first, second = _prepared(image1), _with_gradients(_prepared(image2))
        fields = _fields((flow.shape[-2], flow.shape[-1]), 1, flow.device)
        parameters = _fit_affine(flow)
        # Whom the plane holds for is known better once it is.
        for _ in range(2):
            support = length(_motion(parameters, fields) - flow, 1) < FOLLOWS
            parameters = _register(first, second, parameters, support)
        return _motion(parameters, fields)
