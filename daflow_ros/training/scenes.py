# SPDX-License-Identifier: Apache-2.0
"""Generated clips with exact dense flow and occlusion masks.

A scene is a stack of textured planes. Every plane moves by one homography a frame; on top of it
the plane may bend (a smooth field, inverted by fixed-point iteration, so that the flow stays
exact). Two kinds of camera:

- *layered*: similarity, perspective and pan, shake, zoom, roll of a plane behind moving cut-outs;
- *driving*: a pin-hole camera that translates and rotates before a ground plane, walls and
  upright cut-outs at their depths; the homographies are K (R + t n^T / d) K^-1.

All of it is batched tensor work on the generator's device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.training.textures import TextureBank, smooth_noise, uniform


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


@dataclass
class Clip:
    """A batch of generated clips.

    Attributes:
        frames: ``(B, F, 3, H, W)`` in [0, 1].
        flow: ``(B, F - 1, 2, H, W)`` px, from frame f to frame f + 1.
        occluded: ``(B, F - 1, 1, H, W)`` bool, pixels of frame f not seen in frame f + 1 (hidden
            or outside).
        distance: ``(B, 1, H, W)`` in (0, 1], depth-like order of frame 0 (1 is far), for fog.
    """

    frames: Tensor
    flow: Tensor
    occluded: Tensor
    distance: Tensor


def pixel_grid(size: int, device: torch.device) -> Tensor:
    """Pixel coordinates (x, y) about the image centre, ``(size, size, 2)``."""
    axis = torch.arange(size, device=device) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing='ij')
    return torch.stack([x, y], dim=-1)


def transform(homography: Tensor, points: Tensor) -> Tensor:
    """Apply ``(..., 3, 3)`` to ``(..., H, W, 2)``."""
    m = homography[..., None, None, :, :]
    x, y = points[..., 0], points[..., 1]
    w = m[..., 2, 0] * x + m[..., 2, 1] * y + m[..., 2, 2]
    # Points behind the camera would wrap around; they lie outside any plane's extent anyway.
    w = w.clamp(min=1e-3).reciprocal()
    u = (m[..., 0, 0] * x + m[..., 0, 1] * y + m[..., 0, 2]) * w
    v = (m[..., 1, 0] * x + m[..., 1, 1] * y + m[..., 1, 2]) * w
    return torch.stack([u, v], dim=-1).clamp(-1e4, 1e4)


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


def cutouts(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Soft-edged object masks ``(count, 1, size, size)`` in [0, 1]: blobs, bars, rings, fences."""
    device = generator.device
    axis = torch.linspace(-1.1, 1.1, size, device=device)
    y, x = torch.meshgrid(axis, axis, indexing='ij')
    turn = uniform((count, 1, 1), 0, 2 * math.pi, generator)
    u = x * turn.cos() + y * turn.sin()
    v = y * turn.cos() - x * turn.sin()
    radius, theta = torch.sqrt(u**2 + v**2), torch.atan2(v, u)
    edge = torch.full((count, 1, 1), 0.7, device=device).expand(count, size, size)
    for k in range(1, 6):
        weight = uniform((count, 1, 1), -0.35, 0.35, generator) / k
        edge = edge + weight * torch.cos(k * theta + uniform((count, 1, 1), 0, 6.28, generator))
    blob = edge - radius
    slim = heavy_tailed((count, 1, 1), 0.03, 0.8, generator)
    bar = torch.minimum(slim - v.abs(), 0.95 - u.abs())
    ring = 0.06 + 0.2 * slim - (radius - 0.7).abs()
    fence = torch.minimum(torch.sin(uniform((count, 1, 1), 8, 30, generator) * u) * 0.05, blob)
    kind = torch.rand((count, 1, 1), generator=generator, device=device)
    field = torch.where(kind < 0.6, blob, bar)
    field = torch.where(kind > 0.85, ring, field)
    field = torch.where(kind > 0.92, fence, field)
    return (field * size / 2.2 + 0.5).clamp(0, 1)[:, None]


class SceneGenerator:
    """Batches of :class:`Clip`.

    Args:
        textures: where surfaces come from.
        size: frame side in px.
        frames: frames a clip, 2 or more.
        objects: most cut-outs a scene.
        reach: largest camera translation as a share of ``size`` (objects move as much again).
        driving: share of driving scenes.
    """

    def __init__(
        self,
        textures: TextureBank,
        size: int = 192,
        frames: int = 2,
        objects: int = 5,
        reach: float = 0.25,
        driving: float = 0.35,
    ) -> None:
        self.textures = textures
        self.size = size
        self.frames = frames
        self.objects = objects
        self.reach = reach
        self.driving = driving

    def _layered(self, batch: int, layers: int, g: torch.Generator) -> Layers:
        """A plane that fills the view and moving cut-outs before it."""
        s = self.size
        camera = planar_motion((batch, 1), s, self.reach, g)
        own = planar_motion((batch, layers), s, self.reach, g)
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
        extent = heavy_tailed((batch, layers), 0.12 * s, 0.9 * s, g)
        stretch = torch.exp(uniform((batch, layers), -0.5, 0.5, g))
        place = torch.zeros((batch, layers, 3, 3), device=g.device)
        place[..., 0, 0] = 2 / (extent * stretch)
        place[..., 1, 1] = 2 * stretch / extent
        place[..., 2, 2] = 1
        place = place @ back
        background = torch.diag(torch.tensor([1.5 / s, 1.5 / s, 1.0], device=g.device))
        place[:, 0] = background
        cut = torch.ones((batch, layers), dtype=torch.bool, device=g.device)
        cut[:, 0] = False
        distance = torch.linspace(1.0, 0.25, layers, device=g.device).expand(batch, -1)
        nearness = torch.tensor([0.0, 0.0, 1.0], device=g.device).expand(batch, layers, 3)
        return Layers(step, place, cut, distance, nearness)

    def _driving(self, batch: int, layers: int, g: torch.Generator) -> Layers:
        """A camera that moves through a scene of planes.

        Layer 0 is a far wall, 1 the ground, 2 a side wall, the rest upright cut-outs ordered from
        far to near. Units: the camera's height above ground is 1.
        """
        s, device = self.size, g.device
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

    def __call__(self, batch: int, generator: torch.Generator) -> Clip:
        """A batch of clips, random by ``generator`` (whose device is used)."""
        g, s = generator, self.size
        device = g.device
        layers = 1 + self.objects
        drive = torch.rand((batch,), generator=g, device=device) < self.driving
        d4 = drive[:, None, None, None]
        layered, driving = self._layered(batch, layers, g), self._driving(batch, layers, g)
        step = torch.where(d4, driving.step, layered.step)
        place = torch.where(d4, driving.place, layered.place)
        cut = torch.where(drive[:, None], driving.cut, layered.cut)
        distance = torch.where(drive[:, None], driving.distance, layered.distance)
        nearness = torch.where(drive[:, None, None], driving.nearness, layered.nearness)
        # Scenes differ in how crowded they are.
        crowd = torch.randint(0, self.objects + 1, (batch, 1), generator=g, device=device)
        index = torch.arange(layers, device=device)[None]
        absent = cut & (index - 1 - 2 * drive[:, None].long() >= crowd)

        surface = self._surfaces(batch, layers, cut, g)
        grid = pixel_grid(s, device)
        bend, bent = self._bend(batch, layers, g)
        bend_of = bend[:, None] * bent[:, :, None, None, None]  # (B, L, s, s, 2)
        motions = [torch.eye(3, device=device).expand(batch, layers, 3, 3)]
        for _ in range(1, self.frames):
            motions.append(step @ motions[-1])
        frames: list[Tensor] = []
        tops: list[Tensor] = []
        for f, motion in enumerate(motions):
            q = grid + f * bend_of if f else grid.expand(batch, layers, -1, -1, -1)
            inverse = torch.linalg.inv(motion)
            uv = transform(place @ inverse, q)
            rgba = F.grid_sample(
                surface, uv.reshape(-1, s, s, 2), padding_mode='reflection', align_corners=False
            ).reshape(batch, layers, 4, s, s)
            inside = (uv.abs().amax(-1) <= 1) | ~cut[..., None, None]
            near = (nearness[:, :, None] @ inverse)[:, :, 0]
            inside &= self._linear(near, q) > 0
            alpha = rgba[:, :, 3:] * (inside & ~absent[..., None, None])[:, :, None]
            alpha[:, 0] = 1
            image = rgba[:, 0, :3]
            top = torch.zeros((batch, s, s), dtype=torch.long, device=device)
            for i in range(1, layers):
                image = image + alpha[:, i] * (rgba[:, i, :3] - image)
                top = torch.where(alpha[:, i, 0] > 0.5, i, top)
            frames.append(image)
            tops.append(top)
        flows, hidden = [], []
        for f in range(self.frames - 1):
            flow, occluded = self._flow(f, grid, motions, bend, bent, tops)
            flows.append(flow)
            hidden.append(occluded)
        clip = self._light(torch.stack(frames, dim=1), g)
        depth = distance.gather(1, tops[0].flatten(1)).reshape(batch, 1, s, s)
        return Clip(clip, torch.stack(flows, dim=1), torch.stack(hidden, dim=1), depth)

    def _surfaces(self, batch: int, layers: int, cut: Tensor, g: torch.Generator) -> Tensor:
        """Colour and opacity of every layer, ``(B * L, 4, tile, tile)``."""
        tile = min(self.size, 192)
        colour = self.textures.sample(batch * layers, tile, g)
        mask = cutouts(batch * layers, tile // 2, g)
        mask = F.interpolate(mask, size=(tile, tile), mode='bilinear', align_corners=False)
        # Doubling the mask's resolution has softened its edge: harden it again.
        mask = (2 * mask - 0.5).clamp(0, 1)
        mask = torch.where(cut.reshape(-1, 1, 1, 1), mask, torch.ones_like(mask))
        return torch.cat([colour, mask], dim=1)

    @staticmethod
    def _linear(row: Tensor, q: Tensor) -> Tensor:
        """``row . (x, y, 1)``: ``(B, L, 3)`` and ``(B, L, s, s, 2)`` give ``(B, L, s, s)``."""
        r = row[:, :, None, None]
        return r[..., 0] * q[..., 0] + r[..., 1] * q[..., 1] + r[..., 2]

    def _bend(self, batch: int, layers: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Smooth displacement a frame ``(B, s, s, 2)`` px, and which layer it bends (B, L)."""
        s = self.size
        field = smooth_noise(batch, 2, 5, s, g).permute(0, 2, 3, 1)
        amount = heavy_tailed((batch, 1, 1, 1), 0.1, 0.025 * s, g)
        which = torch.randint(0, layers, (batch, 1), generator=g, device=g.device)
        bent = torch.arange(layers, device=g.device)[None] == which
        bent &= torch.rand((batch, 1), generator=g, device=g.device) < 0.7
        return amount * field, bent

    def _flow(
        self,
        f: int,
        grid: Tensor,
        motions: list[Tensor],
        bend: Tensor,
        bent: Tensor,
        tops: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Flow ``(B, 2, s, s)`` from frame f to f + 1, and pixels not seen there."""
        s = self.size
        top = tops[f]
        b = len(top)
        mine = bent.gather(1, top.flatten(1)).reshape(b, s, s, 1)
        here = grid + f * bend * mine
        between = motions[f + 1] @ torch.linalg.inv(motions[f])
        chosen = between.reshape(b, -1, 9).gather(
            1, top.reshape(b, -1, 1).expand(-1, -1, 9)
        ).reshape(b, s, s, 3, 3)
        target = torch.stack(
            [
                chosen[..., i, 0] * here[..., 0] + chosen[..., i, 1] * here[..., 1]
                + chosen[..., i, 2]
                for i in range(3)
            ],
            dim=-1,
        )  # fmt: skip
        target = target[..., :2] / target[..., 2:].clamp(min=1e-3)
        # The bent layer shows texture of q + (f + 1) bend(q) at q: solve for q.
        q = target
        field = bend.permute(0, 3, 1, 2)
        for _ in range(8):
            at = F.grid_sample(
                field, q / ((s - 1) / 2), padding_mode='border', align_corners=True
            ).permute(0, 2, 3, 1)
            q = target - (f + 1) * at * mine
        flow = (q - grid).permute(0, 3, 1, 2)
        norm = q / ((s - 1) / 2)
        there = F.grid_sample(
            tops[f + 1][:, None].float(), norm, mode='nearest', align_corners=True
        )
        outside = norm.abs().amax(-1)[:, None] > 1
        return flow, outside | (there != top[:, None])

    def _light(self, clip: Tensor, g: torch.Generator) -> Tensor:
        """A drifting soft shadow in one clip of four, and slow change of exposure."""
        b, f, _, s, _ = clip.shape
        shade = smooth_noise(b, 1, 4, s + 32, g)
        strength = uniform((b, 1, 1, 1), 0.2, 0.7, g)
        strength = strength * (torch.rand((b, 1, 1, 1), generator=g, device=g.device) < 0.25)
        gain = 1 + 0.06 * torch.randn((b, f, 1, 1, 1), generator=g, device=g.device)
        out = []
        for i in range(f):
            shift = min(6 * i, 32)
            part = shade[:, :, shift : shift + s, shift // 2 : shift // 2 + s]
            out.append(clip[:, i] * (1 - strength * torch.sigmoid(6 * part)))
        return (torch.stack(out, dim=1) * gain).clamp(0, 1)
