# SPDX-License-Identifier: Apache-2.0
"""JPEG and an inter-frame video codec, in torch, batched over frames.

The JPEG model has libjpeg's tables and 4:2:0 chroma; it leaves out rounding to 8 bits between
the steps and libjpeg's smooth chroma upsampling. The codec has what shows in H.264-like video at
low bit rates: prediction from the last decoded frame by block motion, residuals quantised with a
dead zone, so that detail freezes, trails and returns with the next intra frame.
"""

from __future__ import annotations

import functools
import math

import torch
from torch.nn import functional as F

_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113,
    92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99) + (99,) * 32


@functools.cache
def _constants(device: torch.device) -> dict[str, torch.Tensor]:
    n = torch.arange(8, dtype=torch.float64)
    dct = torch.cos((2 * n[None] + 1) * n[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    to_ycc = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5],
                           [0.5, -0.418688, -0.081312]], dtype=torch.float64)
    values = {
        'dct': torch.kron(dct, dct),  # (64 coefficients, 64 pixels) of a block, row by row
        'to_ycc': to_ycc, 'to_rgb': torch.linalg.inv(to_ycc),
        'luma': torch.tensor(_LUMA), 'chroma': torch.tensor(_CHROMA),
    }
    return {name: value.to(device, torch.float32) for name, value in values.items()}


def _mix(clip: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    return torch.matmul(matrix, clip.flatten(2)).view(clip.shape)


def _blocks(planes: torch.Tensor) -> torch.Tensor:
    """(N, H, W) -> (N, H/8 * W/8, 64)."""
    count, height, width = planes.shape
    tiles = planes.view(count, height // 8, 8, width // 8, 8).transpose(2, 3)
    return tiles.reshape(count, -1, 64)


def _planes(blocks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    tiles = blocks.view(-1, height // 8, width // 8, 8, 8).transpose(2, 3)
    return tiles.reshape(-1, height, width)


def _pad_to(clip: torch.Tensor, multiple: int) -> torch.Tensor:
    height, width = clip.shape[-2:]
    return F.pad(clip, (0, -width % multiple, 0, -height % multiple), mode='replicate')


def jpeg_tables(quality: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(F, 1, 64) luma and chroma quantisation steps for qualities (F,) in [1, 100], libjpeg's."""
    q = quality.clamp(1, 100)
    scale = torch.where(q < 50, 5000 / q, 200 - 2 * q)[:, None, None]
    constants = _constants(quality.device)
    luma, chroma = (((constants[name] * scale + 50) / 100).floor().clamp(1, 255)
                    for name in ('luma', 'chroma'))
    return luma, chroma


def jpeg(clip: torch.Tensor, quality: torch.Tensor | float) -> torch.Tensor:
    """JPEG of (F, 3, H, W) RGB in [0, 1]; quality one or (F,), 1-100, 4:2:0 chroma."""
    frames, _, height, width = clip.shape
    constants = _constants(clip.device)
    qualities = torch.as_tensor(quality, dtype=torch.float32, device=clip.device).reshape(-1)
    luma, chroma = jpeg_tables(qualities.expand(frames))
    padded = _pad_to(clip, 16)
    ycc = _mix(padded, constants['to_ycc']) * 255
    rows, columns = ycc.shape[-2:]

    def coded(planes: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        h, w = planes.shape[-2:]
        coefficients = _blocks(planes) @ constants['dct'].T
        coefficients.div_(steps).round_().mul_(steps)
        return _planes(coefficients @ constants['dct'], h, w)

    y = coded(ycc[:, 0] - 128, luma) + 128
    colour = F.avg_pool2d(ycc[:, 1:], 2)
    colour = coded(colour.reshape(-1, rows // 2, columns // 2),
                   chroma.repeat_interleave(2, 0))
    colour = F.interpolate(colour.view(frames, 2, rows // 2, columns // 2), scale_factor=2.0,
                           mode='bilinear', align_corners=False)
    decoded = _mix(torch.cat([y[:, None], colour], 1), constants['to_rgb'])
    return (decoded[..., :height, :width] / 255).clamp_(0, 1)


def _global_shift(previous: torch.Tensor, current: torch.Tensor) -> tuple[int, int]:
    """Whole-px (dy, dx) between two (H, W) planes, by phase correlation."""
    a, b = torch.fft.rfft2(previous), torch.fft.rfft2(current)
    cross = b * a.conj()
    peak = torch.fft.irfft2(cross / (cross.abs() + 1e-3), s=previous.shape).argmax()
    row, column = divmod(int(peak), previous.shape[1])
    height, width = previous.shape
    return (row - height if row > height // 2 else row,
            column - width if column > width // 2 else column)


def video(clip: torch.Tensor, step: torch.Tensor | float, group: int = 12) -> torch.Tensor:
    """Inter-frame compression of (F, 3, H, W) RGB in [0, 1].

    step: quantiser step in grey values of 255, one or (F,): 8 is good, 40 poor, 80 broken.
    group: frames from one intra frame to the next. A 16x16 block is predicted from the last
    decoded frame without motion or with the frame's dominant shift, whichever is nearer, or
    coded intra where both are poor.
    """
    frames, _, height, width = clip.shape
    constants = _constants(clip.device)
    steps = torch.as_tensor(step, dtype=torch.float32, device=clip.device).reshape(-1)
    steps = steps.expand(frames)
    padded = _mix(_pad_to(clip, 16), constants['to_ycc']) * 255
    padded[:, 0] -= 128
    rows, columns = padded.shape[-2:]
    # High frequencies are quantised more coarsely in intra blocks than in residuals.
    n = torch.arange(8, device=clip.device)
    ramp = 1 + (n[:, None] + n[None]).reshape(64) / 7

    def quantised(residual: torch.Tensor, q: torch.Tensor, weights: torch.Tensor,
                  dead_zone: float) -> torch.Tensor:
        h, w = residual.shape[-2:]
        coefficients = (_blocks(residual) @ constants['dct'].T) / (q * weights)
        kept = torch.sign(coefficients) * (coefficients.abs() + dead_zone).floor()
        return _planes((kept * q * weights) @ constants['dct'], h, w)

    def upsampled(mask: torch.Tensor, size: int) -> torch.Tensor:
        return mask.repeat_interleave(size, -1).repeat_interleave(size, -2)

    decoded: list[torch.Tensor] = []
    for index in range(frames):
        current, q = padded[index], steps[index]
        chroma = F.avg_pool2d(current[1:], 2)
        if index % group == 0:
            y = quantised(current[:1], q, ramp, 0.4)
            colour = quantised(chroma, 1.2 * q, ramp, 0.4)
        else:
            last_y, last_c = decoded[-1][:1], decoded[-1][1:]
            dy, dx = _global_shift(last_y[0, ::2, ::2], current[0, ::2, ::2])
            candidates = [last_y, last_y.roll((2 * dy, 2 * dx), (1, 2)),
                          torch.zeros_like(last_y)]
            half = F.avg_pool2d(last_c, 2)
            colours = [half, half.roll((dy, dx), (1, 2)), torch.zeros_like(half)]
            errors = torch.cat([F.avg_pool2d((current[:1] - c).abs(), 16) for c in candidates])
            mean = upsampled(F.avg_pool2d(current[:1], 16), 16)
            errors[2] = F.avg_pool2d((current[:1] - mean).abs(), 16)[0] + 0.5 * q
            best = errors.argmin(0, keepdim=True)
            large, small = upsampled(best, 16), upsampled(best, 8)
            predicted = torch.stack(candidates).gather(0, large[None])[0]
            predicted_c = torch.stack(colours).gather(
                0, small[None].expand(1, 2, -1, -1))[0]
            flat = torch.ones_like(ramp)
            y = predicted + quantised(current[:1] - predicted, q, flat, 0.25)
            colour = predicted_c + quantised(chroma - predicted_c, 1.2 * q, flat, 0.25)
        colour = F.interpolate(colour[None], size=(rows, columns), mode='bilinear',
                               align_corners=False)[0]
        decoded.append(torch.cat([y, colour]))
    result = torch.stack(decoded)
    result[:, 0] += 128
    rgb = _mix(result, constants['to_rgb']) / 255
    return rgb[..., :height, :width].clamp_(0, 1)
