# SPDX-License-Identifier: Apache-2.0
"""Generated clips with exact dense flow and occlusion masks.

A scene is a stack of textured planes (`layers.py`). Every plane moves by one homography a frame;
on top of it the plane may bend (a smooth field, inverted by fixed-point iteration, so that the
flow stays exact).

All of it is batched tensor work on the generator's device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.training.layers import driving, heavy_tailed, layered
from daflow_ros.training.sprites import SpriteBank, prefiltered, shaded, shapes
from daflow_ros.training.textures import TextureBank, smooth_noise, uniform


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
    u, v, w = (m[..., i, 0] * x + (m[..., i, 1] * y + m[..., i, 2]) for i in range(3))
    # Points behind the camera would wrap around; they lie outside any plane's extent anyway.
    w = w.clamp_(min=1e-3).reciprocal_()
    return torch.stack([u * w, v * w], dim=-1).clamp_(-1e4, 1e4)


class SceneGenerator:
    """Batches of :class:`Clip`.

    Args:
        textures: where surfaces come from.
        size: frame side in px.
        frames: frames a clip, 2 or more.
        objects: most cut-outs a scene.
        reach: largest camera translation as a share of ``size`` (objects move as much again).
        driving: share of driving scenes.
        sprites: cut-outs with outlines of their own, six of ten; None: drawn shapes only.
    """

    def __init__(
        self,
        textures: TextureBank,
        size: int = 192,
        frames: int = 2,
        objects: int = 6,
        reach: float = 0.25,
        driving: float = 0.35,
        sprites: SpriteBank | None = None,
    ) -> None:
        self.textures = textures
        self.size = size
        self.frames = frames
        self.objects = objects
        self.reach = reach
        self.driving = driving
        self.sprites = sprites

    def __call__(self, batch: int, generator: torch.Generator) -> Clip:
        """A batch of clips, random by ``generator`` (whose device is used)."""
        g, s = generator, self.size
        device = g.device
        layers = 1 + self.objects
        drive = torch.rand((batch,), generator=g, device=device) < self.driving
        d4 = drive[:, None, None, None]
        flat, deep = (
            layered(batch, layers, s, self.reach, g),
            driving(batch, layers, s, g),
        )
        step = torch.where(d4, deep.step, flat.step)
        place = torch.where(d4, deep.place, flat.place)
        cut = torch.where(drive[:, None], deep.cut, flat.cut)
        distance = torch.where(drive[:, None], deep.distance, flat.distance)
        nearness = torch.where(drive[:, None, None], deep.nearness, flat.nearness)
        # Scenes differ in how crowded they are.
        crowd = torch.randint(0, self.objects + 1, (batch, 1), generator=g, device=device)
        index = torch.arange(layers, device=device)[None]
        absent = cut & (index - 1 - 2 * drive[:, None].long() >= crowd)

        grid = pixel_grid(s, device)
        bend, bent = self._bend(batch, layers, g)
        # What is there: the scene and the layer of each.
        scene, layer = (~absent).nonzero().unbind(dim=1)
        cut_out = cut[scene, layer]
        surface = self._surfaces(place[scene, layer], grid, cut_out, g)
        bend_of = bend[scene] * bent[scene, layer][:, None, None, None]
        motions = [torch.eye(3, device=device).expand(batch, layers, 3, 3)]
        for _ in range(1, self.frames):
            motions.append(step @ motions[-1])
        frames: list[Tensor] = []
        tops: list[Tensor] = []
        for f, motion in enumerate(motions):
            q = grid + f * bend_of if f else grid.expand(len(scene), -1, -1, -1)
            inverse = torch.linalg.inv(motion)
            uv = transform((place @ inverse)[scene, layer], q)
            rgba = F.grid_sample(
                surface, uv, padding_mode='reflection', align_corners=False
            )
            inside = (uv.abs().amax(-1) <= 1) | ~cut_out[:, None, None]
            near = (nearness[:, :, None] @ inverse)[scene, layer, 0]
            inside &= self._linear(near, q) > 0
            rgba[:, 3] *= inside
            image = torch.zeros((batch, 3, s, s), device=device)
            top = torch.zeros((batch, s, s), dtype=torch.long, device=device)
            for i in range(layers):
                mine = layer == i
                over = scene[mine]
                alpha = rgba[mine, 3:] if i else 1.0
                image[over] += alpha * (rgba[mine, :3] - image[over])
                if i:
                    top[over] = torch.where(rgba[mine, 3] > 0.5, i, top[over])
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

    def _surfaces(self, place: Tensor, grid: Tensor, cut: Tensor, g: torch.Generator) -> Tensor:
        """Colour and opacity of N layers, ``(N, 4, tile, tile)``, as fine as is seen."""
        tile = min(max(self.size, 192), 512)
        count = len(cut)
        surface = torch.ones((count, 4, tile, tile), device=g.device)
        drawn = torch.ones_like(cut)
        if self.sprites is not None:
            taken = cut & (torch.rand(count, generator=g, device=g.device) < 0.6)
            surface[taken] = self.sprites.sample(int(taken.sum()), tile, g)
            drawn = ~taken
        surface[drawn, :3] = self.textures.sample(int(drawn.sum()), tile, g)
        drawn &= cut
        surface[drawn, :3] = shaded(surface[drawn, :3], g)
        mask = shapes(int(drawn.sum()), tile // 2, g)
        mask = F.interpolate(mask, size=(tile, tile), mode='bilinear', align_corners=False)
        # Doubling the mask's resolution has softened its edge: harden it again.
        surface[drawn, 3:] = (2 * mask - 0.5).clamp(0, 1)
        # Texels from a pixel to the next, where the layer is seen at first.
        coarse = grid[::8, ::8]
        here, right, below = (
            transform(place, coarse + coarse.new_tensor(shift))
            for shift in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
        )
        step = torch.maximum((right - here).norm(dim=-1), (below - here).norm(dim=-1))
        seen = ((here.abs().amax(dim=-1) <= 1) | ~cut[:, None, None]) & (step < 0.2)
        step = step.masked_fill(~seen, torch.nan).flatten(1).nanmedian(dim=1).values
        return prefiltered(surface, tile / 2 * step.nan_to_num(0))

    @staticmethod
    def _linear(row: Tensor, q: Tensor) -> Tensor:
        """``row . (x, y, 1)``: ``(N, 3)`` and ``(N, s, s, 2)`` give ``(N, s, s)``."""
        r = row[:, None, None]
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
