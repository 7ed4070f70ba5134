# SPDX-License-Identifier: Apache-2.0
"""Generated clips: the flow is exact, checked by images that encode their own coordinates."""

import cv2
import numpy as np
import pytest
import torch

from daflow_ros.training.scenes import SceneGenerator, transform
from daflow_ros.training.sprites import SpriteBank, open_imagery, prefiltered
from daflow_ros.training.textures import TextureBank


class CoordinateTextures(TextureBank):
    """Smooth linear ramps: bilinear sampling of them is exact, so residuals are errors of flow."""

    def __init__(self):
        super().__init__(None)

    def sample(self, count, size, generator, procedural=0.0):
        axis = torch.linspace(0.1, 0.9, size)
        y, x = torch.meshgrid(axis, axis, indexing='ij')
        one = torch.stack([x, y, 0.5 * (x + y)])
        return one.expand(count, -1, -1, -1).clone()


class Unlit(SceneGenerator):
    """Without shadows and exposure, which change brightness but not motion."""

    def _light(self, clip, g):
        return clip


@pytest.mark.parametrize('driving', [0.0, 1.0])
def test_flow_maps_each_visible_pixel_to_its_own_surface_point(driving):
    generator = torch.Generator().manual_seed(3)
    scenes = Unlit(CoordinateTextures(), size=96, frames=3, driving=driving)
    clip = scenes(6, generator)
    for f in range(2):
        flow = clip.flow[:, f]
        assert torch.isfinite(flow).all()
        axis = torch.arange(96.0)
        y, x = torch.meshgrid(axis, axis, indexing='ij')
        target = torch.stack([x, y]) + flow
        grid = (2 * target / 95 - 1).permute(0, 2, 3, 1)
        warped = torch.nn.functional.grid_sample(
            clip.frames[:, f + 1], grid, align_corners=True, padding_mode='border'
        )
        error = (warped - clip.frames[:, f]).abs().amax(dim=1, keepdim=True)
        seen = ~clip.occluded[:, f]
        # Soft edges of cut-outs and the mirrored seams of textures are not ramps: the median
        # and the nine tenths are.
        assert error[seen].median() < 2e-4
        assert error[seen].quantile(0.9) < 5e-3
        still = (clip.frames[:, f + 1] - clip.frames[:, f]).abs().amax(dim=1, keepdim=True)
        assert error[seen].mean() < 0.35 * still[seen].mean()


def test_motion_is_heavy_tailed_and_bounded():
    generator = torch.Generator().manual_seed(0)
    scenes = SceneGenerator(TextureBank(None), size=64)
    speed = torch.cat([scenes(16, generator).flow[:, 0].norm(dim=1).flatten(1) for _ in range(12)])
    per_clip = speed.mean(dim=1)
    assert (per_clip < 1).float().mean() > 0.1
    assert (per_clip > 6).float().mean() > 0.1
    assert speed.quantile(0.95) < 64


def test_same_seed_same_clip():
    scenes = SceneGenerator(TextureBank(None), size=64)
    a = scenes(2, torch.Generator().manual_seed(5))
    b = scenes(2, torch.Generator().manual_seed(5))
    c = scenes(2, torch.Generator().manual_seed(6))
    assert torch.equal(a.frames, b.frames) and torch.equal(a.flow, b.flow)
    assert not torch.equal(a.frames, c.frames)


def test_transform_of_points_behind_the_camera_stays_finite():
    homography = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])
    points = torch.tensor([[[1.0, -5.0], [2.0, 4.0]]])
    out = transform(homography, points)
    assert torch.isfinite(out).all()
    assert torch.allclose(out[0, 1], torch.tensor([0.5, 1.0]))


def test_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='no JPEG or PNG'):
        TextureBank(tmp_path)


@pytest.fixture
def imagery(tmp_path):
    """A photograph and a sprite: a red disc of many shades, green where it is transparent."""
    for name in ('photos', 'sprites'):
        (tmp_path / name).mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'photos' / 'a.png'), noise)
    y, x = np.mgrid[-60:60, -80:80]
    disc = (x**2 + y**2 < 50**2)[..., None]
    ramp = np.stack([45 + 0.9 * y, 45 + 0.9 * x, 255 + 0 * x, 255 + 0 * x], axis=-1)
    bgra = np.where(disc, ramp, [0, 255, 0, 0]).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'sprites' / 'disc.png'), bgra)
    cv2.imwrite(str(tmp_path / 'sprites' / 'opaque.png'), noise[:64, :64])
    return tmp_path


def test_sprites_keep_their_outline_and_no_colour_of_what_is_clear(imagery):
    bank, sprites = open_imagery(imagery)
    assert len(bank) == 1 and len(sprites.pictures) == 1
    out = sprites.sample(8, 128, torch.Generator().manual_seed(0))
    assert out.shape == (8, 4, 128, 128) and 0 <= out.min() and out.max() <= 1
    alpha = out[:, 3]
    # A disc of 50 px in a picture of 160 px, fitted into 124.
    area = torch.pi * (50 * 252 / 160 / 2) ** 2
    assert (alpha.sum(dim=(1, 2)) / area - 1).abs().max() < 0.03
    assert (out[:, 0] > out[:, 1] + 0.2).all()
    with pytest.raises(FileNotFoundError, match='with transparency'):
        SpriteBank(imagery / 'photos')


def test_scenes_show_sprites_that_move_with_the_flow(imagery):
    _, sprites = open_imagery(imagery)
    scenes = Unlit(TextureBank(None), size=128, driving=0.0, sprites=sprites)
    clip = scenes(8, torch.Generator().manual_seed(2))
    axis = torch.arange(128.0)
    target = torch.stack(torch.meshgrid(axis, axis, indexing='xy')) + clip.flow[:, 0]
    first = clip.frames[:, 0]

    def error(target):
        grid = (2 * target / 127 - 1).permute(0, 2, 3, 1)
        warped = torch.nn.functional.grid_sample(clip.frames[:, 1], grid, align_corners=True)
        return (warped - first).abs().amax(dim=1, keepdim=True)

    red = (first[:, :1] > first[:, 1:2] + 0.3) & (first[:, :1] > first[:, 2:] + 0.3)
    seen = red & ~clip.occluded[:, 0]
    assert seen.float().mean() > 0.01
    assert error(target)[seen].median() < 0.25 * error(target + 1)[seen].median()


def test_what_is_seen_from_afar_does_not_alias():
    checks = ((torch.arange(128)[:, None] + torch.arange(128)) % 2).float()
    surface = torch.stack([checks, checks])[:, None]
    near, far = prefiltered(surface, torch.tensor([1.0, 4.0]))[:, 0]
    assert torch.equal(near, checks)
    assert (far - 0.5).abs().max() < 1e-6
