# SPDX-License-Identifier: Apache-2.0
"""Warping by a flow field, and forward-backward consistency of two."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def sample_bilinear(
    image: npt.NDArray[np.floating], x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Sample `image` (H, W) or (H, W, C) at pixel coordinates; NaN outside of the image."""
    image = np.asarray(image, dtype=np.float32)
    height, width = image.shape[:2]
    with np.errstate(invalid='ignore'):
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x = np.where(inside, x, 0).astype(np.float32)
    y = np.where(inside, y, 0).astype(np.float32)
    x0, y0 = x.astype(np.intp), y.astype(np.intp)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = x - x0, y - y0
    if image.ndim == 3:
        fx, fy, inside = fx[..., None], fy[..., None], inside[..., None]
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return np.where(inside, top * (1 - fy) + bottom * fy, np.float32(np.nan))


def warp(
    image: npt.NDArray[np.floating], flow: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """Sample `image` (H, W[, C]) at p + flow(p), flow (H, W, 2) px; NaN outside of the image."""
    height, width = image.shape[:2]
    if flow.shape != (height, width, 2):
        raise ValueError(f'flow {flow.shape} does not fit image {image.shape}')
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return sample_bilinear(image, x + flow[..., 0], y + flow[..., 1])


def warp_bordered(
    image: npt.NDArray[Any], flow: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """As :func:`warp`, in the type of `image` and with its border repeated outside (OpenCV).

    Args:
        image: (H, W) or (H, W, C), uint8 or float32.
        flow: (H, W, 2) px, finite.

    Returns:
        The warped image, and bool (H, W), where it is sampled inside.

    """
    height, width = flow.shape[:2]
    there = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    there += flow
    x, y = there[..., 0], there[..., 1]
    warped = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return warped, (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def forward_backward_error(
    flow_fw: npt.NDArray[np.floating], flow_bw: npt.NDArray[np.floating]
) -> npt.NDArray[np.float32]:
    """How far a pixel lands from itself, there and back.

    Args:
        flow_fw: (H, W, 2) px, first to second image.
        flow_bw: (H, W, 2) px, second to first image.

    Returns:
        (H, W) float32 px; NaN where the forward flow leaves the image or is not finite.

    """
    there_and_back = flow_fw + warp(flow_bw, flow_fw)
    return np.hypot(there_and_back[..., 0], there_and_back[..., 1]).astype(np.float32)


def forward_backward_mask(
    flow_fw: npt.NDArray[np.floating],
    flow_bw: npt.NDArray[np.floating],
    alpha1: float = 0.01,
    alpha2: float = 0.5,
) -> npt.NDArray[np.bool_]:
    """Pixels whose forward and backward flow agree, (H, W) bool.

    |f + b'|^2 < alpha1 (|f|^2 + |b'|^2) + alpha2, with b' the backward flow at the target
    (Sundaram, Brox and Keutzer 2010, as UnFlow uses it). False outside of the image.
    """
    back = warp(flow_bw, flow_fw)
    with np.errstate(invalid='ignore'):
        squared = np.sum((flow_fw + back) ** 2, axis=-1)
        bound = alpha1 * (np.sum(flow_fw**2, axis=-1) + np.sum(back**2, axis=-1)) + alpha2
        return squared < bound
