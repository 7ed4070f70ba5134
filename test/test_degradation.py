# SPDX-License-Identifier: Apache-2.0
"""Degradations: repeatable, graded, coherent in time, aligned, and right against references."""

import argparse

import cv2
import numpy as np
import pytest
import torch

from daflow_ros.commands import degrade as command
from daflow_ros.degradation import (
    DEGRADATIONS,
    apply_degradation,
    compression,
    degrade,
    filters,
    random_degradation,
)
from daflow_ros.degradation.particles import moving_layer
from daflow_ros.degradation.sampling import Sampler

WEATHER = ('rain', 'snow', 'fog', 'dust', 'night', 'glare')


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def textured(height, width, seed=0):
    """A smooth random colour image with detail at several scales, uint8."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cell, weight in ((40, 0.5), (12, 0.3), (4, 0.2)):
        small = rng.random((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        image += weight * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return (image.clip(0, 1) * 255).astype(np.uint8)


def still(frames, height=96, width=128, seed=0):
    return np.repeat(textured(height, width, seed)[None], frames, 0)


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 10 * np.log10(255 ** 2 / max(error, 1e-9))


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def best_shift(a, b):
    """Peak of the normalised circular cross-correlation and its (dy, dx)."""
    a, b = a - a.mean(), b - b.mean()
    cross = np.fft.irfft2(np.fft.rfft2(a).conj() * np.fft.rfft2(b), s=a.shape)
    cross /= np.sqrt((a * a).sum() * (b * b).sum())
    dy, dx = np.unravel_index(cross.argmax(), cross.shape)
    dy, dx = (int(d) - n if d > n // 2 else int(d)
              for d, n in zip((dy, dx), a.shape, strict=True))
    return float(cross.max()), dy, dx


def sub_pixel_shift(a, b):
    """(dx, dy) from a to b: parabola through the correlation at whole-pixel shifts."""
    # Neither the lowest frequencies (veils, lamps) nor noise tell the place of detail.
    a, b = (cv2.GaussianBlur(g, None, 1.5) - cv2.GaussianBlur(g, None, 10) for g in (a, b))
    height, width = a.shape
    core = a[8:-8, 8:-8]

    def score(dx, dy):
        return correlation(core, b[8 + dy:height - 8 + dy, 8 + dx:width - 8 + dx])

    def vertex(below, at, above):
        return (below - above) / (2 * (below - 2 * at + above))

    middle = score(0, 0)
    return (vertex(score(-1, 0), middle, score(1, 0)), vertex(score(0, -1), middle, score(0, 1)))


@pytest.mark.parametrize('name', DEGRADATIONS)
def test_shape_range_and_seed(name):
    clip = still(3, 67, 91)
    first = degrade(clip, name, 3, seed=4)
    assert first.shape == clip.shape and first.dtype == np.uint8
    assert psnr(first, clip) < 45  # it does something
    np.testing.assert_array_equal(first, degrade(clip, name, 3, seed=4))
    if name not in ('pixelate', 'saturation'):  # these draw nothing, or one of two
        assert (first != degrade(clip, name, 3, seed=5)).any()
    np.testing.assert_array_equal(degrade(clip[:1], name, 2, 1)[0], degrade(clip[0], name, 2, 1))


@pytest.mark.parametrize('name', DEGRADATIONS)
def test_severity_is_monotone(name):
    clip = still(2, 96, 96, seed=1)
    values = [np.mean([psnr(degrade(clip, name, severity, seed), clip) for seed in range(4)])
              for severity in (1, 2.5, 5)]
    assert values[0] > values[1] > values[2]
    assert values[0] > values[2] + 3


@pytest.mark.parametrize('name', ('paper', 'severe', 'rain', 'night', 'video', 'spatter'))
def test_batch_equals_single(name):
    clips = torch.stack([torch.from_numpy(still(2, 48, 64, seed)) for seed in range(3)])
    clips = clips.permute(0, 1, 4, 2, 3).float() / 255
    severities = torch.tensor([1.0, 3.0, 4.5])
    batch = apply_degradation(clips, name, severities, torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(9)
    for index in range(3):
        single = apply_degradation(clips[index:index + 1], name, float(severities[index]),
                                   generator)
        torch.testing.assert_close(batch[index], single[0], rtol=0, atol=0)


@pytest.mark.parametrize('name', [n for n in DEGRADATIONS if n not in ('spatter', 'wet_lens')])
@pytest.mark.parametrize('severity', (1, 3))
def test_the_image_is_not_moved(name, severity):
    """A half-pixel shift by a resize or a kernel would falsify the ground-truth flow."""
    image = textured(160, 192, seed=2)
    shifts = [sub_pixel_shift(image.mean(-1), degrade(image, name, severity, seed).mean(-1))
              for seed in range(6)]
    assert np.abs(np.mean(shifts, 0)).max() < 0.15


def test_sub_pixel_shift_sees_a_quarter_pixel():
    image = textured(160, 192, seed=2).mean(-1)
    moved = cv2.warpAffine(image, np.float64([[1, 0, 0.25], [0, 1, -0.5]]), (192, 160),
                           flags=cv2.INTER_LINEAR)
    np.testing.assert_allclose(sub_pixel_shift(image, moved), (0.25, -0.5), atol=0.06)


@pytest.mark.parametrize('quality', (8, 30, 60, 90))
@pytest.mark.parametrize('size', ((96, 128), (75, 101)))
def test_jpeg_agrees_with_libjpeg(quality, size):
    image = textured(*size, seed=3)
    _, coded = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    reference = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    ours = (compression.jpeg(tensor, quality)[0] * 255).permute(1, 2, 0).numpy()
    # Ours must be much nearer to libjpeg's result than the original is, and lose as much.
    assert psnr(ours, reference) > max(38, psnr(image, reference) + 4)
    assert psnr(ours, image) == pytest.approx(psnr(reference, image), abs=0.5)


def test_video_codec_predicts_from_the_last_frame():
    clip = torch.from_numpy(still(4, 64, 96)).permute(0, 3, 1, 2).float() / 255
    coarse = compression.video(clip, 50)
    # Nothing moves, so nothing is left to code: the decoded frames converge.
    change = (coarse[1:] - coarse[:-1]).abs().mean((1, 2, 3))
    assert change[1] < 0.01 and change[2] < 0.01
    moving = torch.stack([clip[0].roll(4 * index, -1) for index in range(4)])
    assert (compression.video(moving, 50)[3] - coarse[3]).abs().mean() > 0.02
    errors = [float((compression.video(moving, q) - moving).square().mean()) for q in (2, 20, 60)]
    assert errors[0] < errors[1] < errors[2] and errors[0] < 5e-4


@pytest.mark.parametrize('sigma', (0.7, 2.0, 4.5))
def test_gaussian_blur_against_opencv(sigma):
    image = textured(64, 80, seed=4).astype(np.float32) / 255
    reference = cv2.GaussianBlur(image, (41, 41), sigma, borderType=cv2.BORDER_REFLECT_101)
    ours = filters.blur(torch.from_numpy(image).permute(2, 0, 1)[None], sigma)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - reference).max() < 0.02


def test_disc_and_line_kernels_have_their_size():
    impulse = torch.zeros(1, 1, 96, 96)
    impulse[..., 48, 48] = 1
    filter_ = filters.FrequencyFilter(impulse)
    ys, xs = torch.meshgrid(torch.arange(96.) - 48, torch.arange(96.) - 48, indexing='ij')
    disc = filter_(impulse, filters.disc(filter_.fx, filter_.fy, torch.tensor([6.0])))[0, 0]
    assert disc.sum().item() == pytest.approx(1, abs=0.02)
    assert disc[(xs ** 2 + ys ** 2) < 4 ** 2].mean().item() == pytest.approx(
        1 / (np.pi * 36), rel=0.1)
    assert disc[(xs ** 2 + ys ** 2) > 9 ** 2].abs().max() < 0.1 / (np.pi * 36)
    line = filter_(impulse, filters.line(filter_.fx, filter_.fy, torch.tensor([11.0]),
                                         torch.tensor([0.0])))[0, 0]
    np.testing.assert_allclose(line[48, 44:53], 1 / 11, rtol=0.15)
    assert line[48, 58:].abs().max() < 0.02 and line[:47].abs().max() < 1e-5


def test_particles_move_by_their_velocity():
    offsets = torch.tensor([[0.0, 0.0], [3.0, 7.0], [6.0, 14.0]])
    layer = moving_layer((80, 96), 0.004, offsets, Sampler(1), radius=0.8, streak=5, angle=1.2)
    assert layer.shape == (3, 1, 80, 96) and layer.max() > 0.5
    np.testing.assert_allclose(layer[1, 0, 7:, 3:], layer[0, 0, :-7, :-3], atol=1e-4)
    np.testing.assert_allclose(layer[2, 0, 14:, 6:], layer[0, 0, :-14, :-6], atol=1e-4)


@pytest.mark.parametrize('name', ('rain', 'snow'))
def test_falling_particles_are_the_same_from_frame_to_frame(name):
    """The shift of the second frame also brings the third; other clips do not match at all."""
    kept, other, falls = [], [], []
    for seed in range(4):
        plain = np.full((3, 160, 192, 3), 60, np.uint8)
        # 2.0 keeps drops off the lens, which stand still by design.
        frames = degrade(plain, name, 2.0, seed).mean(-1)
        frames = frames - cv2.GaussianBlur(frames.mean(0), None, 15)  # the veil
        peak, dy, _ = best_shift(frames[0], frames[1])
        kept.append(peak)
        falls.append(dy)
        unrelated = degrade(plain, name, 2.0, seed + 100).mean(-1)
        unrelated = unrelated - cv2.GaussianBlur(unrelated.mean(0), None, 15)
        other.append(best_shift(frames[0], unrelated[1])[0])
    assert np.median(kept) > 1.3 * np.median(other)
    assert np.median(falls) > 1


@pytest.mark.parametrize('name', ('fog', 'dust', 'glare', 'spatter', 'wet_lens'))
def test_slow_weather_changes_slowly(name):
    plain = np.full((2, 96, 128, 3), 90, np.uint8)
    within, between = [], []
    for seed in range(4):
        a = cv2.GaussianBlur(degrade(plain, name, 4, seed).mean(-1).transpose(1, 2, 0), None, 2)
        b = cv2.GaussianBlur(degrade(plain, name, 4, seed + 50).mean(-1).transpose(1, 2, 0),
                             None, 2)
        within.append(np.abs(a[..., 1] - a[..., 0]).mean())
        between.append(np.abs(b[..., 0] - a[..., 0]).mean())
    assert np.mean(within) < 0.35 * np.mean(between)


@pytest.mark.parametrize('name', ('rain', 'snow', 'fog', 'dust', 'spatter', 'glare', 'flicker',
                                  'brightness', 'motion_blur', 'jpeg', 'contrast', 'glass_blur'))
def test_a_long_clip_in_pieces_is_the_whole(name):
    clip = still(5, 48, 64)
    whole = degrade(clip, name, 4, seed=3)
    pieces = [degrade(clip[:2], name, 4, 3), degrade(clip[2:], name, 4, 3, start=2)]
    tolerance = 8 if name == 'fog' else 1  # fog has a little noise, new in each frame
    assert np.abs(whole.astype(int) - np.concatenate(pieces)).max() <= tolerance


def test_noise_does_not_repeat_from_piece_to_piece():
    clip = still(2, 48, 64)
    assert (degrade(clip, 'noise', 3, 1) != degrade(clip, 'noise', 3, 1, start=2)).mean() > 0.8


def test_sensor_noise_is_new_in_each_frame():
    plain = np.full((2, 96, 128, 3), 120, np.uint8)
    for name in ('noise', 'gaussian_noise', 'night'):
        frames = degrade(plain, name, 3, 1).astype(np.float64).mean(-1)
        noise = [f - cv2.GaussianBlur(f, None, 3) for f in frames]
        assert abs(correlation(*noise)) < 0.05


def test_fog_follows_depth():
    clip = torch.from_numpy(still(1, 64, 96)).permute(0, 3, 1, 2)[None].float() / 255
    depth = torch.full((1, 1, 64, 96), 5.0)
    depth[..., 48:] = 50.0
    foggy = apply_degradation(clip, 'fog', 3, torch.Generator().manual_seed(0), depth=depth)
    near, far = foggy[..., :40].std(), foggy[..., 56:].std()
    assert far < 0.5 * near
    with pytest.raises(RuntimeError):
        apply_degradation(clip, 'fog', 3, torch.Generator(), depth=depth[..., 1:])


def test_random_degradation_mixes():
    clip = torch.from_numpy(still(2, 64, 64, seed=6)).permute(0, 3, 1, 2)[None].float() / 255
    batch = clip.expand(160, -1, -1, -1, -1)
    mixed = random_degradation(batch, torch.Generator().manual_seed(2))
    assert mixed.shape == batch.shape and mixed.min() >= 0 and mixed.max() <= 1
    error = (mixed - batch).square().mean((1, 2, 3, 4))
    untouched = (error == 0).float().mean().item()
    assert 0.08 < untouched < 0.24  # a seventh
    assert (error < 3e-3).float().mean() > 0.15 and (error > 0.01).float().mean() > 0.3
    again = random_degradation(batch[:8], torch.Generator().manual_seed(2))
    other = random_degradation(batch[:8], torch.Generator().manual_seed(3))
    assert torch.equal(again, random_degradation(batch[:8], torch.Generator().manual_seed(2)))
    assert not torch.equal(again, other)
    assert torch.equal(random_degradation(batch[:2].half(), torch.Generator()).isnan().any(),
                       torch.tensor(False))


@pytest.mark.parametrize(('clip', 'name', 'severity'), [
    (np.zeros((1, 64, 64, 3), np.uint8), 'drizzle', 3),
    (np.zeros((1, 64, 64, 3), np.uint8), 'rain', 0),
    (np.zeros((1, 64, 64, 3), np.uint8), 'rain', 5.1),
    (np.zeros((1, 64, 64, 3), np.float32), 'rain', 3),
    (np.zeros((1, 64, 64), np.uint8), 'rain', 3),
    (np.zeros((1, 16, 64, 3), np.uint8), 'rain', 3),
])
def test_bad_input_is_named(clip, name, severity):
    with pytest.raises(ValueError, match=r'unknown degradation|severity|expected|at least'):
        degrade(clip, name, severity, 0)


def run_command(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_contact_sheet(tmp_path, capsys):
    for index in range(2):
        cv2.imwrite(str(tmp_path / f'{index}.png'), textured(60, 80, index))
    sheet = tmp_path / 'sheet' / 'out.png'
    sheet.parent.mkdir()
    assert run_command(tmp_path, '--output', sheet, '--names', 'rain,night', '--width', 64) == 0
    image = cv2.imread(str(sheet))
    assert image.shape == (3 * (48 + 14), 4 * 66, 3)  # clean and two rows; 1, 3, 5, 5 again
    clean, rainy = image[14:62, :64], image[76:124, 132:196]
    assert np.abs(clean.astype(int) - rainy).mean() > 10
    assert run_command(tmp_path, '--names', 'drizzle') == 1
    assert 'drizzle' in capsys.readouterr().err
    assert run_command(tmp_path / 'absent.png') == 1
    (tmp_path / 'empty').mkdir()
    assert run_command(tmp_path / 'empty') == 1
