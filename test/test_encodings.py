# SPDX-License-Identifier: Apache-2.0
"""Decoding of image encodings against references that share nothing with the package."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest

from daflow_ros.datasets.encodings import (
    ENCODINGS,
    MalformedImageError,
    UnknownEncodingError,
    decode_compressed,
    decode_image,
    image_array,
    to_rgb,
)

HEIGHT, WIDTH = 12, 16


@dataclass
class Message:
    height: int = HEIGHT
    width: int = WIDTH
    encoding: str = 'rgb8'
    is_bigendian: int = 0
    step: int = 3 * WIDTH
    data: Any = b''
    format: str = ''


def picture(seed=0):
    """Return smooth random uint8 (H, W, 3) RGB."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


def message_of(array, encoding, padding=0, big=False):
    """Serialise rows by hand, one by one."""
    rows = []
    for row in array:
        samples = np.ascontiguousarray(row).astype(row.dtype.newbyteorder('>' if big else '<'))
        rows.append(samples.tobytes() + b'\xa5' * padding)
    return Message(encoding=encoding, is_bigendian=int(big), step=len(rows[0]),
                   data=b''.join(rows))


def yuv_of(rgb):
    """Return BT.601 video-range Y, U, V of an RGB picture by the standard's formula."""
    r, g, b = (rgb[..., i] / 255.0 for i in range(3))
    y = 16 + 65.481 * r + 128.553 * g + 24.966 * b
    u = 128 - 37.797 * r - 74.203 * g + 112.0 * b
    v = 128 + 112.0 * r - 93.786 * g - 18.214 * b
    return tuple(np.round(c).astype(np.uint8) for c in (y, u, v))


def flat(colour):
    return np.broadcast_to(np.array(colour, np.uint8), (HEIGHT, WIDTH, 3)).copy()


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(('encoding', 'order'), [
    ('rgb8', (0, 1, 2)), ('bgr8', (2, 1, 0)), ('rgba8', (0, 1, 2, None)),
    ('bgra8', (2, 1, 0, None)), ('8UC3', (2, 1, 0)),
])
def test_colour_orders_and_padded_rows(encoding, order, padding):
    rgb = picture()
    planes = [np.full((HEIGHT, WIDTH), 7, np.uint8) if c is None else rgb[..., c] for c in order]
    message = message_of(np.stack(planes, -1), encoding, padding)
    np.testing.assert_array_equal(decode_image(message), rgb)


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('encoding', ['mono16', '16UC1', 'rgb16', 'bgr16', 'rgba16', 'bgra16'])
def test_sixteen_bits_in_both_byte_orders(encoding, big):
    rgb = picture()
    if encoding in ('mono16', '16UC1'):
        source, expected = rgb[..., 0], np.repeat(rgb[..., :1], 3, axis=2)
    else:
        order = (0, 1, 2) if encoding.startswith('rgb') else (2, 1, 0)
        source, expected = rgb[..., order], rgb
        if 'a' in encoding:
            source = np.concatenate([source, np.full((HEIGHT, WIDTH, 1), 9, np.uint8)], -1)
    # 257 * v is v in both bytes: a swap would go unseen, so the low byte gets its own value.
    wide = source.astype(np.uint16) * 257 // 2 * 2
    message = message_of(wide, encoding, padding=6, big=big)
    np.testing.assert_array_equal(
        image_array(message).reshape(wide.shape), wide)
    assert np.abs(decode_image(message).astype(int) - expected).max() <= 1


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('bits', [8, 16])
def test_bayer_by_its_definition(pattern, bits):
    """A flat colour survives the mosaic; the four letters are the pixels of a 2x2 cell."""
    colour = (200, 90, 30)
    mosaic = np.empty((HEIGHT, WIDTH), np.uint8 if bits == 8 else np.uint16)
    scale = 1 if bits == 8 else 257
    for i, letter in enumerate(pattern):
        mosaic[i // 2::2, i % 2::2] = colour['rgb'.index(letter)] * scale
    out = decode_image(message_of(mosaic, f'bayer_{pattern}{bits}'))
    np.testing.assert_array_equal(out, flat(colour))


@pytest.mark.parametrize('encoding', ['yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'])
def test_yuv422(encoding):
    rgb = picture().repeat(2, axis=1)[:, :WIDTH]  # pairs of pixels share their chroma
    y, u, v = yuv_of(rgb)
    chroma = np.where(np.arange(WIDTH) % 2 == 0, u, v)
    pair = (chroma, y) if encoding in ('yuv422', 'uyvy') else (y, chroma)
    out = decode_image(message_of(np.stack(pair, -1), encoding, padding=4))
    assert np.abs(out.astype(int) - rgb).max() <= 4


@pytest.mark.parametrize('encoding', ['nv12', 'nv21', 'nv24'])
def test_semi_planar(encoding):
    rgb = picture()
    if encoding != 'nv24':
        rgb = rgb.repeat(2, axis=0).repeat(2, axis=1)[:HEIGHT, :WIDTH]
    y, u, v = yuv_of(rgb)
    first, second = (v, u) if encoding == 'nv21' else (u, v)
    chroma = np.stack([first, second], -1)
    if encoding != 'nv24':
        chroma = chroma[::2, ::2]
    planes = np.concatenate([y, chroma.reshape(-1, WIDTH)])
    message = message_of(planes, encoding)
    assert np.abs(decode_image(message).astype(int) - rgb).max() <= 4


def test_mono8_and_every_name_has_a_test():
    grey = picture()[..., 0]
    np.testing.assert_array_equal(
        decode_image(message_of(grey, 'mono8', padding=1)), np.repeat(grey[..., None], 3, 2))
    assert len(ENCODINGS) == 31


@pytest.mark.parametrize('change', [
    {'data': b''}, {'data': bytes(3 * WIDTH * HEIGHT - 1)}, {'step': 3 * WIDTH - 1},
    {'height': 0}, {'width': 0}, {'height': 1 << 20, 'width': 1 << 20},
    {'encoding': 'nv12', 'height': 11},
])
def test_contradictory_messages(change):
    message = Message(data=bytes(3 * WIDTH * HEIGHT))
    for key, value in change.items():
        setattr(message, key, value)
    with pytest.raises(MalformedImageError):
        decode_image(message)


@pytest.mark.parametrize('encoding', ['', 'rgb9', '32FC1', '8SC3', '8UC9', 'C', 'mono'])
def test_unknown_encodings(encoding):
    with pytest.raises(UnknownEncodingError):
        decode_image(message_of(np.zeros((HEIGHT, WIDTH, 4), np.float32), encoding))


def test_matrices_are_read_as_they_are():
    flow = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH, 2)).astype(np.float32)
    for big in (False, True):
        np.testing.assert_array_equal(
            image_array(message_of(flow, '32FC2', padding=8, big=big)), flow)


def test_the_last_row_may_lack_its_padding():
    rgb = picture()
    message = message_of(rgb, 'rgb8', padding=10)
    message.data = message.data[:-10]
    np.testing.assert_array_equal(decode_image(message), rgb)


def test_compressed():
    rgb = picture()
    png = cv2.imencode('.png', rgb[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_compressed(Message(data=png, format='png')), rgb)
    grey = cv2.imencode('.png', rgb[..., 0])[1].tobytes()
    np.testing.assert_array_equal(
        decode_compressed(Message(data=grey, format='mono8; png compressed'))[..., 1], rgb[..., 0])
    jpeg = cv2.imencode('.jpg', flat((200, 90, 30))[..., ::-1])[1].tobytes()
    out = decode_compressed(Message(data=jpeg + bytes(500), format='bgr8; jpeg compressed bgr8'))
    assert np.abs(out.astype(int) - (200, 90, 30)).max() <= 3
    for bad in (b'', b'garbage', jpeg[:len(jpeg) // 2], png[:40]):
        with pytest.raises(MalformedImageError):
            decode_compressed(Message(data=bad, format='jpeg'))


def test_compressed_bayer_keeps_its_pattern():
    mosaic = np.full((HEIGHT, WIDTH), 90, np.uint8)
    mosaic[::2, ::2], mosaic[1::2, 1::2] = 200, 30
    png = cv2.imencode('.png', mosaic)[1].tobytes()
    out = decode_compressed(Message(data=png, format='bayer_rggb8; png compressed '))
    np.testing.assert_array_equal(out, flat((200, 90, 30)))


def test_the_result_is_writable_and_independent():
    source = np.ascontiguousarray(picture())
    out = to_rgb(source, 'rgb8')
    out[:] = 0
    assert source.any()
