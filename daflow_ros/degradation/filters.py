# SPDX-License-Identifier: Apache-2.0
"""Blur kernels as transfer functions and their application by FFT.

One FFT costs the same for every kernel, so each frame may have a kernel of its own; frequencies
are in cycles per px. Kernel families follow Real-ESRGAN and RealBasicVSR (isotropic,
anisotropic, sinc), with defocus (disc) and motion (line) beside them.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def frequencies(height: int, width: int, device: torch.device) -> tuple[torch.Tensor,
                                                                       torch.Tensor]:
    """(fx (1, W/2+1), fy (H, 1)) of `torch.fft.rfft2`, cycles per px."""
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[None]
    return fx, fy


def gaussian(fx: torch.Tensor, fy: torch.Tensor, sigma_x: torch.Tensor, sigma_y: torch.Tensor,
             angle: torch.Tensor) -> torch.Tensor:
    """(F, H, W/2+1) anisotropic Gaussian; sigmas in px and angle in rad, each (F,)."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = fx * cos + fy * sin, fy * cos - fx * sin
    exponent = (sigma_x[:, None, None] * along) ** 2 + (sigma_y[:, None, None] * across) ** 2
    return torch.exp(-2 * math.pi ** 2 * exponent)


def sinc(fx: torch.Tensor, fy: torch.Tensor, cutoff: torch.Tensor,
         kernel: float = 15) -> torch.Tensor:
    """(F, H, W/2+1) circular low-pass: ringing as a sharpened, resampled video shows it.

    cutoff: (F,) rad per px, pi is Nyquist; kernel: size in px that the ideal kernel is cut to.
    """
    radius = torch.sqrt(fx ** 2 + fy ** 2)
    return torch.sigmoid((cutoff[:, None, None] / (2 * math.pi) - radius) * 2.5 * kernel)


def line(fx: torch.Tensor, fy: torch.Tensor, length: torch.Tensor,
         angle: torch.Tensor) -> torch.Tensor:
    """(F, H, W/2+1) straight uniform motion of `length` px in direction `angle`, each (F,)."""
    along = fx * angle.cos()[:, None, None] + fy * angle.sin()[:, None, None]
    return torch.special.sinc(length[:, None, None] * along)


def disc(fx: torch.Tensor, fy: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """(F, H, W/2+1) defocus by a disc of `radius` px, (F,)."""
    x = 2 * math.pi * radius[:, None, None] * torch.sqrt(fx ** 2 + fy ** 2).clamp(min=1e-6)
    return 2 * torch.special.bessel_j1(x) / x.clamp(min=1e-6)


def fast_size(size: int) -> int:
    """The next size whose prime factors are 2, 3 and 5, and even."""
    size += size % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


class FrequencyFilter:
    """Filters frames of one clip's size by transfer functions, with reflected borders.

    border: px of reflected border, at least the reach of the kernels used.
    """

    def __init__(self, clip: torch.Tensor, border: int = 16) -> None:
        height, width = clip.shape[-2:]
        self.height, self.width = height, width
        self.top = min(border, height - 1)
        self.left = min(border, width - 1)
        bottom = min(fast_size(height + 2 * self.top) - height - self.top, height - 1)
        right = min(fast_size(width + 2 * self.left) - width - self.left, width - 1)
        self.padding = (self.left, right, self.top, bottom)
        self.size = (height + self.top + bottom, width + self.left + right)
        self.fx, self.fy = frequencies(self.size[0], self.size[1], clip.device)

    def __call__(self, clip: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
        """Filter (F, C, H, W) by (F or 1, Hf, Wf)."""
        padded = F.pad(clip, self.padding, mode='reflect')
        spectrum = torch.fft.rfft2(padded)
        spectrum *= transfer[:, None]
        filtered = torch.fft.irfft2(spectrum, s=self.size)
        return filtered[..., self.top:self.top + self.height, self.left:self.left + self.width]


def blur(clip: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """Isotropic Gaussian blur of (F, C, H, W); sigma in px, one or (F,)."""
    sigmas = torch.as_tensor(sigma, dtype=clip.dtype, device=clip.device).reshape(-1)
    filter_ = FrequencyFilter(clip, border=int(3 * float(sigmas.max())) + 2)
    return filter_(clip, gaussian(filter_.fx, filter_.fy, sigmas, sigmas, 0 * sigmas))


def resize(clip: torch.Tensor, height: int, width: int, mode: str = 'bicubic') -> torch.Tensor:
    """Resize (F, C, H, W); area, bilinear and bicubic, antialiased when shrinking."""
    if (height, width) == tuple(clip.shape[-2:]):
        return clip
    if mode == 'area':
        return F.interpolate(clip, size=(height, width), mode='area')
    shrinks = height < clip.shape[-2] or width < clip.shape[-1]
    return F.interpolate(clip, size=(height, width), mode=mode, align_corners=False,
                         antialias=shrinks)
