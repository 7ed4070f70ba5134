# SPDX-License-Identifier: Apache-2.0
"""Pictures for tests."""

import cv2
import numpy as np


def photograph(rng, height, width):
    """Noise at several scales, uint8 ``(height, width, 3)``."""
    layers = [
        cv2.resize(
            rng.normal(0, 30, (height // step, width // step, 3)), (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        for step in (4, 16, 64)
    ]  # fmt: skip
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)
