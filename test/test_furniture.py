# SPDX-License-Identifier: Apache-2.0
"""Drawn furniture: thin parts that hang on a broad one, and move with it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from daflow_ros.training import flying
from daflow_ros.training.flying import FlyingPairs
from daflow_ros.training.furniture import SIDE, furniture


def half_width(mask: np.ndarray) -> float:
    """Of the broadest place, px."""
    inside = cv2.copyMakeBorder((mask > 127).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    return float(cv2.distanceTransform(inside, cv2.DIST_L2, 5).max())


def test_thin_parts_hang_on_a_broad_one() -> None:
    parts, ratios = [], []
    for seed in range(60):
        broad, thin = furniture(np.random.default_rng(seed))
        assert broad.shape == thin.shape == (SIDE, SIDE) and broad.dtype == np.uint8
        whole = (np.maximum(broad, thin) > 127).astype(np.uint8)
        _, labels = cv2.connectedComponents(whole, connectivity=8)
        parts.append(np.bincount(labels[whole > 0]).max() / whole.sum())
        alone = np.where(broad > 0, 0, thin)
        assert (alone > 127).sum() > 200
        ratios.append(half_width(broad) / half_width(alone))
    # One thing, the broad part of which is several times as broad.
    assert min(parts) > 0.8 and np.mean(np.array(parts) == 1) > 0.95
    assert np.median(ratios) > 2
    again = furniture(np.random.default_rng(7))
    assert all(map(np.array_equal, again, furniture(np.random.default_rng(7))))
    assert not np.array_equal(again[1], furniture(np.random.default_rng(8))[1])


def test_legs_move_as_what_they_hang_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pairs = FlyingPairs.__new__(FlyingPairs)
    pairs.plain, pairs.sprites = 0.0, []
    pairs.photos = [rng.integers(0, 256, (600, 800, 3)).astype(np.uint8)]
    monkeypatch.setattr(flying, 'FURNITURE', 1.0)
    seen = 0
    for _ in range(6):
        behind = np.eye(3)
        layer = pairs._cut_out(rng, behind, 0.0)
        background = pairs._background(rng, 0.0)
        _, top = flying.draw([background, layer], False)
        flow = flying.exact_flow([background, layer], top)
        y, x = np.nonzero(top == 1)
        if len(x) < 400:  # most of it out of the picture
            continue
        seen += 1
        assert layer.colour.shape[:2] == layer.alpha.shape
        # All of it by one affine motion, fitted here without the layers.
        basis = np.stack([x, y, np.ones_like(x)], axis=1).astype(float)
        fitted, *_ = np.linalg.lstsq(basis, flow[y, x], rcond=None)
        assert np.abs(basis @ fitted - flow[y, x]).max() < 1e-2
    assert seen >= 3
