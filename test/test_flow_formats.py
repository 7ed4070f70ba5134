# SPDX-License-Identifier: Apache-2.0
"""Flow files against other programs' readers and writers, and damaged files."""

import struct
import zlib

import cv2
import h5py
import numpy as np
import pytest

from daflow_ros.flow.formats import SUFFIXES, FlowFormatError, read_flow, write_flow


@pytest.fixture
def flow():
    rng = np.random.default_rng(7)
    field = rng.uniform(-80, 80, (23, 31, 2)).astype(np.float32)
    # KITTI's steps of 1/64 px, so that all formats can hold it exactly.
    return np.rint(field * 64) / 64


@pytest.fixture
def valid():
    mask = np.random.default_rng(8).random((23, 31)) > 0.2
    mask[0, 0] = False
    return mask


def decode_png16(data):
    """16-bit RGB PNG with nothing but zlib."""
    assert data[:8] == b'\x89PNG\r\n\x1a\n'
    position, body = 8, b''
    while position < len(data):
        length, kind = struct.unpack('>I4s', data[position:position + 8])
        chunk = data[position + 8:position + 8 + length]
        if kind == b'IHDR':
            width, height, depth, colour = struct.unpack('>IIBB', chunk[:10])
            assert (depth, colour) == (16, 2)
        if kind == b'IDAT':
            body += chunk
        position += 12 + length
    raw = zlib.decompress(body)
    stride, rows, previous = 6 * width, [], bytes(6 * width)
    for y in range(height):
        kind = raw[y * (stride + 1)]
        line = bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for i in range(stride):
            left = line[i - 6] if i >= 6 else 0
            up, corner = previous[i], previous[i - 6] if i >= 6 else 0
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) // 2
            elif kind == 4:
                p = left + up - corner
                guess = min((left, up, corner), key=lambda c: abs(p - c))
            else:
                guess = 0
            line[i] = (line[i] + guess) & 255
        rows.append(bytes(line))
        previous = bytes(line)
    return np.frombuffer(b''.join(rows), '>u2').reshape(height, width, 3).astype(np.int64)


def encode_png16(image):
    height, width, _ = image.shape
    lines = b''.join(b'\0' + row.astype('>u2').tobytes() for row in image)

    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack(
            '>I', zlib.crc32(kind + body)
        )

    header = struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(
        b'IDAT', zlib.compress(lines)
    ) + chunk(b'IEND', b'')


def test_flo_is_opencvs(tmp_path, flow):
    write_flow(tmp_path / 'ours.flo', flow)
    assert np.array_equal(cv2.readOpticalFlow(str(tmp_path / 'ours.flo')), flow)
    cv2.writeOpticalFlow(str(tmp_path / 'theirs.flo'), flow)
    read, valid = read_flow(tmp_path / 'theirs.flo')
    assert np.array_equal(read, flow) and valid.all() and read.dtype == np.float32
    assert (tmp_path / 'ours.flo').read_bytes() == (tmp_path / 'theirs.flo').read_bytes()


def test_flo_unknown_vectors(tmp_path, flow):
    flow[3, 4] = 1.666e9
    flow[5, 6, 1] = np.nan
    cv2.writeOpticalFlow(str(tmp_path / 'a.flo'), flow)
    read, valid = read_flow(tmp_path / 'a.flo')
    assert not valid[3, 4] and not valid[5, 6] and valid.sum() == valid.size - 2
    assert np.isnan(read[3, 4]).all() and np.isnan(read[5, 6]).all()


def test_kitti_png_decoded_by_hand(tmp_path, flow, valid):
    write_flow(tmp_path / 'a.png', flow, valid)
    levels = decode_png16((tmp_path / 'a.png').read_bytes())
    assert np.array_equal(levels[..., 2], valid)
    assert np.array_equal(((levels[..., :2] - 2**15) / 64)[valid], flow[valid])
    assert (levels[~valid] == 0).all()


def test_kitti_png_encoded_by_hand(tmp_path, flow, valid):
    image = np.dstack((flow * 64 + 2**15, valid)).astype(np.int64)
    image[~valid] = 0
    (tmp_path / 'a.png').write_bytes(encode_png16(image))
    read, known = read_flow(tmp_path / 'a.png')
    assert np.array_equal(known, valid) and np.array_equal(read[valid], flow[valid])
    assert np.isnan(read[~valid]).all()


def test_kitti_png_refuses_what_it_cannot_hold(tmp_path, flow):
    flow[0, 0, 0] = 512
    with pytest.raises(FlowFormatError, match=r'a\.png.*512'):
        write_flow(tmp_path / 'a.png', flow)
    assert not (tmp_path / 'a.png').exists()
    write_flow(tmp_path / 'a.png', flow, flow[..., 0] < 512)


def test_flo5_is_h5pys(tmp_path, flow, valid):
    write_flow(tmp_path / 'a.flo5', flow, valid)
    with h5py.File(tmp_path / 'a.flo5') as file:
        stored = file['flow'][()]
    assert np.array_equal(np.isfinite(stored).all(-1), valid)
    assert np.array_equal(stored[valid], flow[valid])
    with h5py.File(tmp_path / 'b.flo5', 'w') as file:
        file.create_dataset('flow', data=np.where(valid[..., None], flow, np.nan))
    read, known = read_flow(tmp_path / 'b.flo5')
    assert np.array_equal(known, valid) and np.array_equal(read[valid], flow[valid])


def test_npy(tmp_path, flow):
    np.save(tmp_path / 'a.npy', flow)
    assert np.array_equal(read_flow(tmp_path / 'a.npy')[0], flow)
    write_flow(tmp_path / 'b.npy', flow)
    assert np.array_equal(np.load(tmp_path / 'b.npy'), flow)
    np.save(tmp_path / 'c.npy', np.array([{'a': 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FlowFormatError, match=r'c\.npy'):
        read_flow(tmp_path / 'c.npy')


@pytest.mark.parametrize('order', ['<', '>'])
def test_pfm_of_both_byte_orders(tmp_path, flow, order):
    # The scale's sign says the byte order; rows go from the bottom up.
    body = b''
    for row in flow[::-1]:
        for u, v in row:
            body += struct.pack(order + 'fff', u, v, 0)
    header = f'PF\n31 23\n{-1.0 if order == "<" else 1.0}\n'.encode()
    (tmp_path / 'a.pfm').write_bytes(header + body)
    assert np.array_equal(read_flow(tmp_path / 'a.pfm')[0], flow)
    if order == '<':
        write_flow(tmp_path / 'b.pfm', flow)
        assert (tmp_path / 'b.pfm').read_bytes() == header + body
        assert np.array_equal(cv2.imread(str(tmp_path / 'b.pfm'), -1)[..., :0:-1], flow)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_damaged_files_are_named(tmp_path, flow, suffix):
    path = tmp_path / f'good{suffix}'
    write_flow(path, flow)
    data = path.read_bytes()
    again, valid = read_flow(path)
    assert np.array_equal(again, flow) and valid.all()
    damaged = {
        'empty': b'', 'truncated': data[: len(data) // 2], 'short': data[:-1],
        'garbage': bytes(range(256)) * 8, 'tiny': data[:6],
    }
    for name, content in damaged.items():
        bad = tmp_path / f'{name}{suffix}'
        bad.write_bytes(content)
        with pytest.raises(FlowFormatError, match=name):
            read_flow(bad)


def test_png_with_a_flipped_bit_is_refused(tmp_path, flow):
    write_flow(tmp_path / 'a.png', flow)
    data = bytearray((tmp_path / 'a.png').read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'a.png').write_bytes(data)
    with pytest.raises(FlowFormatError, match='checksum'):
        read_flow(tmp_path / 'a.png')


def test_huge_header_allocates_nothing(tmp_path):
    (tmp_path / 'a.flo').write_bytes(b'PIEH' + struct.pack('<ii', 2**30, 2**30))
    (tmp_path / 'a.pfm').write_bytes(b'PF\n1000000 1000000\n-1.0\n')
    for name in ('a.flo', 'a.pfm'):
        with pytest.raises(FlowFormatError, match='needs'):
            read_flow(tmp_path / name)


def test_eight_bit_png_and_unknown_suffix(tmp_path, flow):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FlowFormatError, match='16 bits'):
        read_flow(tmp_path / 'a.png')
    with pytest.raises(FlowFormatError, match='not one of'):
        write_flow(tmp_path / 'a.txt', flow)
    with pytest.raises(FileNotFoundError):
        read_flow(tmp_path / 'missing.flo')
