# SPDX-License-Identifier: Apache-2.0
"""Planes of generated scenes, where they lie and how they move.

- *layered*: similarity, perspective and pan, shake, zoom, roll of a plane behind moving cut-outs;
- *driving*: a pin-hole camera that translates and rotates before a ground plane, walls and
  upright cut-outs at their depths; the homographies are K (R + t n^T / d) K^-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.training.textures import uniform


@dataclass
class Layers:
    """Planes of a batch of scenes, far to near.

    Attributes:
        step: ``(B, L, 3, 3)`` motion of each plane a frame, in px about the image centre.
        place: ``(B, L, 3, 3)`` texture coordinates (one tile is [-1, 1]) of first-frame pixels.
        cut: ``(B, L)`` whether the plane is cut out by a mask (else it has no edge).
        distance: ``(B, L)`` in (0, 1].
        nearness: ``(B, L, 3)`` a plane shows only where this row times (x, y, 1) of the first
            frame is positive (before the camera and nearer than the far wall).
    """

    step: Tensor
    place: Tensor
    cut: Tensor
    distance: Tensor
    nearness: Tensor


def heavy_tailed(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator
) -> Tensor:
    """Log-uniform magnitudes between ``low`` and ``high``."""
    return torch.exp(uniform(shape, math.log(low), math.log(high), generator))


def planar_motion(
    shape: tuple[int, ...], size: int, reach: float, generator: torch.Generator
) -> Tensor:
    """Random inter-frame homographies ``(*shape, 3, 3)`` about the image centre.

    Args:
        reach: largest translation as a share of ``size``.
    """
    device = generator.device
    angle = uniform((*shape,), 0, 2 * math.pi, generator)
    length = heavy_tailed((*shape,), 0.2, reach * size, generator)
    # How strongly it turns, zooms and tilts goes with how far it moves, with a spread of its own.
    strength = (length / size / 0.1).clamp(max=1.5) * uniform((*shape,), 0, 1, generator)
    roll = 0.15 * strength * torch.randn(shape, generator=generator, device=device)
    zoom = torch.exp(0.12 * strength * torch.randn(shape, generator=generator, device=device))
    shear = 0.05 * strength[..., None] * torch.randn(
        (*shape, 2), generator=generator, device=device
    )
    tilt = 0.08 / size * strength[..., None] * torch.randn(
        (*shape, 2), generator=generator, device=device
    )
    h = torch.zeros((*shape, 3, 3), device=device)
    h[..., 0, 0] = zoom * roll.cos() * (1 + shear[..., 0])
    h[..., 0, 1] = -zoom * roll.sin() + shear[..., 1]
    h[..., 1, 0] = zoom * roll.sin()
    h[..., 1, 1] = zoom * roll.cos()
    h[..., 0, 2] = length * angle.cos()
    h[..., 1, 2] = length * angle.sin()
    h[..., 2, :2] = tilt
    h[..., 2, 2] = 1
    return h


def layered(
    batch: int, layers: int, size: int, reach: float, g: torch.Generator
) -> Layers:
    """A plane that fills the view of ``size`` px and moving cut-outs before it.

    Args:
        reach: largest translation of the camera as a share of ``size``; objects move as much
            again.
    """
    s = size
    camera = planar_motion((batch, 1), s, reach, g)
    own = planar_motion((batch, layers), s, reach, g)
    still = torch.rand((batch, layers), generator=g, device=g.device) < 0.25
    eye = torch.eye(3, device=g.device)
    own = torch.where(still[..., None, None], eye, own)
    own[:, 0] = eye
    # One scene in ten is watched by a camera at rest.
    rest = torch.rand((batch, 1, 1, 1), generator=g, device=g.device) < 0.1
    camera = torch.where(rest, eye, camera)
    # Objects turn and zoom about their own centre.
    centre = uniform((batch, layers, 2), -0.45 * s, 0.45 * s, g)
    shift = eye.repeat(batch, layers, 1, 1)
    shift[..., :2, 2] = centre
    back = eye.repeat(batch, layers, 1, 1)
    back[..., :2, 2] = -centre
    step = camera @ shift @ own @ back
    extent = heavy_tailed((batch, layers), 0.1 * s, 0.9 * s, g)
    stretch = torch.exp(uniform((batch, layers), -0.3, 0.3, g))
    place = torch.zeros((batch, layers, 3, 3), device=g.device)
    place[..., 0, 0] = 2 / (extent * stretch)
    place[..., 1, 1] = 2 * stretch / extent
    place[..., 2, 2] = 1
    place = place @ back
    place[:, 0] = eye
    place[:, 0, :2] *= heavy_tailed((batch, 1, 1), 1.4, 2.4, g) / s
    cut = torch.ones((batch, layers), dtype=torch.bool, device=g.device)
    cut[:, 0] = False
    distance = torch.linspace(1.0, 0.25, layers, device=g.device).expand(batch, -1)
    nearness = torch.tensor([0.0, 0.0, 1.0], device=g.device).expand(batch, layers, 3)
    return Layers(step, place, cut, distance, nearness)


def driving(batch: int, layers: int, size: int, g: torch.Generator) -> Layers:
    """A camera of ``size`` px that moves through a scene of planes.

    Layer 0 is a far wall, 1 the ground, 2 a side wall, the rest upright cut-outs ordered from
    far to near. Units: the camera's height above ground is 1.
    """
    s, device = size, g.device
    focal = s * torch.exp(uniform((batch, 1), -0.5, 0.6, g))
    k = torch.zeros((batch, 1, 3, 3), device=device)
    k[..., 0, 0] = k[..., 1, 1] = focal
    k[..., 2, 2] = 1
    k_inv = torch.zeros_like(k)
    k_inv[..., 0, 0] = k_inv[..., 1, 1] = 1 / focal
    k_inv[..., 2, 2] = 1
    far = heavy_tailed((batch, 1), 3.0, 20.0, g)
    normals = torch.zeros((batch, layers, 3), device=device)
    offset = torch.ones((batch, layers), device=device)
    normals[:, :, 2] = 1
    depth = far * torch.linspace(0.7, 0.0, layers - 2, device=device).exp2() * uniform(
        (batch, layers - 2), 0.05, 0.9, g
    )
    depth = depth.sort(dim=1, descending=True).values.clamp(min=1.2)
    offset[:, 0:1] = far
    offset[:, 3:] = depth[:, : layers - 3]
    normals[:, 1] = torch.tensor([0.0, 1.0, 0.0], device=device)
    side = torch.where(torch.rand((batch,), generator=g, device=device) < 0.5, -1.0, 1.0)
    normals[:, 2, 0] = side
    normals[:, 2, 2] = 0
    offset[:, 2] = heavy_tailed((batch,), 0.8, 5.0, g)
    # Motion of the camera: forward or sideways travel, with rotation (shake, turning).
    travel = heavy_tailed((batch, 1), 0.01, 1.0, g)
    direction = torch.randn((batch, 1, 3), generator=g, device=device) * torch.tensor(
        [0.4, 0.12, 1.0], device=device
    )
    translation = travel[..., None] * F.normalize(direction, dim=-1)
    spin = torch.randn((batch, 1, 3), generator=g, device=device) * heavy_tailed(
        (batch, 1, 1), 0.0005, 0.06, g
    )
    rotation = torch.linalg.matrix_exp(
        torch.stack(
            [
                torch.zeros_like(spin[..., 0]), -spin[..., 2], spin[..., 1],
                spin[..., 2], torch.zeros_like(spin[..., 0]), -spin[..., 0],
                -spin[..., 1], spin[..., 0], torch.zeros_like(spin[..., 0]),
            ],
            dim=-1,
        ).reshape(batch, 1, 3, 3)
    )  # fmt: skip
    # Cut-outs may travel by themselves.
    moving = torch.rand((batch, layers, 1), generator=g, device=device) < 0.5
    moving[:, :3] = False
    velocity = 0.5 * travel[..., None] * torch.randn(
        (batch, layers, 3), generator=g, device=device
    ) * torch.tensor([1.0, 0.1, 0.7], device=device)
    t = translation + torch.where(moving, velocity, torch.zeros_like(velocity))
    # The plane must stay before the camera: at most a third of the way to it in a frame.
    towards = (t * normals).sum(-1).abs().clamp(min=1e-6)
    t = t * (offset / 3 / towards).clamp(max=1)[..., None]
    step = k @ (rotation - t[..., :, None] * normals[..., None, :] / offset[..., None, None])
    step = step @ k_inv
    step = step / step[..., 2:, 2:]
    # Placement: texture coordinates (about [-1, 1] a tile) of first-frame pixels.
    place = torch.zeros((batch, layers, 3, 3), device=device)
    place[:, :, 0, 0] = place[:, :, 1, 1] = offset
    place[:, :, 2, 2] = 1
    extent = heavy_tailed((batch, layers), 0.25, 1.2, g) * offset.clamp(max=4) / 2
    ground = heavy_tailed((batch,), 0.15, 0.6, g)
    place[:, 1] = 0
    place[:, 1, 0, 0] = ground
    place[:, 1, 1, 2] = ground
    place[:, 1, 2, 1] = 1
    place[:, 2] = 0
    place[:, 2, 0, 2] = ground * offset[:, 2]
    place[:, 2, 1, 1] = ground * offset[:, 2]
    place[:, 2, 2, 0] = side
    wide = torch.cat([far / 2, extent[:, 1:]], dim=1)
    x = uniform((batch, layers), -1.2, 1.2, g) * offset
    stand = 1 - extent * uniform((batch, layers), 0.6, 2.0, g)
    scale = torch.zeros((batch, layers, 3, 3), device=device)
    scale[..., 0, 0] = scale[..., 1, 1] = 1 / wide
    scale[..., 0, 2] = -x / wide
    scale[..., 1, 2] = -stand / wide
    scale[..., 2, 2] = 1
    scale[:, 1:3] = torch.eye(3, device=device)
    scale[:, 0, :2, 2] = 0
    place = scale @ place @ k_inv
    cut = torch.ones((batch, layers), dtype=torch.bool, device=device)
    cut[:, 0:3] = False
    distance = (offset / far).clamp(0.02, 1)
    # Depth at a pixel is offset / (n . K^-1 p): nearer than the far wall, and positive.
    nearness = (normals[:, :, None] @ k_inv)[:, :, 0]
    nearness[..., 2] -= offset / far
    nearness[:, 0] = torch.tensor([0.0, 0.0, 1.0], device=device)
    nearness[:, 3:] = torch.tensor([0.0, 0.0, 1.0], device=device)
    return Layers(step, place, cut, distance, nearness)
