# SPDX-License-Identifier: Apache-2.0
"""Files of flow: Middlebury `.flo`, KITTI 16-bit `.png`, Spring `.flo5`, `.npy`, `.pfm`.

All hold (H, W, 2) pixels, u right, v down. In memory an unknown vector is NaN and its `valid`
False. Sizes in a header are compared with the length of the file before anything is allocated.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

Flow = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SUFFIXES = ('.flo', '.png', '.flo5', '.npy', '.pfm')

# Middlebury: a component beyond this is unknown; writers use 1e10.
UNKNOWN = 1e9
# Compressed files can claim any size: 16384 x 16384 vectors are enough.
_LARGEST = 2 * 2**28
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'


class FlowFormatError(ValueError):
    """A file that does not hold the flow it should; the message names the file."""


def read_flow(path: str | Path) -> tuple[Flow, Mask]:
    """Read a flow file by its suffix.

    Args:
        path: `.flo`, `.png` (KITTI), `.flo5` (Spring, at its stored double resolution), `.npy`
            (TartanAir) or `.pfm` (FlyingThings3D).

    Returns:
        flow, float32 (H, W, 2) px, NaN where unknown; valid, bool (H, W).

    Raises:
        FlowFormatError: corrupt, truncated or of another kind; names the file.
        FileNotFoundError: no such file.

    """
    path = Path(path)
    readers = {
        '.flo': _read_flo, '.png': _read_png, '.flo5': _read_flo5,
        '.npy': _read_npy, '.pfm': _read_pfm,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FlowFormatError(f'{path}: not one of {", ".join(SUFFIXES)}')
    data = path.read_bytes()
    try:
        flow = reader(data)
    except FlowFormatError as error:
        raise FlowFormatError(f'{path}: {error}') from None
    except (ValueError, OSError, KeyError, EOFError, MemoryError, OverflowError) as error:
        raise FlowFormatError(f'{path}: unreadable flow: {error}') from error
    valid = np.isfinite(flow).all(axis=-1)
    with np.errstate(invalid='ignore'):
        valid &= (np.abs(flow) <= UNKNOWN).all(axis=-1)
    flow[~valid] = np.nan
    return flow, valid


def write_flow(
    path: str | Path, flow: npt.NDArray[np.floating], valid: Mask | None = None
) -> None:
    """Write a flow file by its suffix.

    Args:
        path: where to write; the suffix chooses the format (see `read_flow`).
        flow: (H, W, 2) px; NaN is unknown.
        valid: (H, W) bool; False is unknown. Default: all that is finite.

    Raises:
        FlowFormatError: an unknown suffix, or a valid vector that the format cannot hold
            (KITTI: u and v in [-512, 512) px, steps of 1/64 px).
        ValueError: shapes that do not fit.

    """
    path = Path(path)
    flow = np.array(flow, dtype=np.float32)
    if flow.ndim != 3 or flow.shape[2] != 2 or not flow.size:
        raise ValueError(f'flow is (H, W, 2), given {flow.shape}')
    known = np.isfinite(flow).all(axis=-1)
    if valid is not None:
        if valid.shape != known.shape:
            raise ValueError(f'mask {valid.shape} does not fit flow {flow.shape}')
        known &= valid.astype(bool)
    writers = {
        '.flo': _write_flo, '.png': _write_png, '.flo5': _write_flo5,
        '.npy': _write_npy, '.pfm': _write_pfm,
    }
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise FlowFormatError(f'{path}: not one of {", ".join(SUFFIXES)}')
    try:
        data = writer(flow, known)
    except FlowFormatError as error:
        raise FlowFormatError(f'{path}: {error}') from None
    path.write_bytes(data)


def _read_flo(data: bytes) -> Flow:
    if data[:4] != b'PIEH':
        raise FlowFormatError('no Middlebury flow: it does not begin with PIEH')
    if len(data) < 12:
        raise FlowFormatError('truncated header')
    width, height = struct.unpack('<ii', data[4:12])
    if width < 1 or height < 1:
        raise FlowFormatError(f'impossible size {width}x{height}')
    expected = 12 + 8 * width * height
    if len(data) != expected:
        raise FlowFormatError(f'{len(data)} bytes where {width}x{height} needs {expected}')
    return np.frombuffer(data, '<f4', offset=12).reshape(height, width, 2).astype(np.float32)


def _write_flo(flow: Flow, known: Mask) -> bytes:
    flow[~known] = 10 * UNKNOWN
    height, width = known.shape
    return b'PIEH' + struct.pack('<ii', width, height) + flow.astype('<f4').tobytes()


def check_png(data: bytes) -> tuple[int, int, int, int]:
    """Walk a PNG's chunks; returns width, height, bit depth and colour type.

    OpenCV fills what a truncated file lacks with zeros and says so on stderr only, and zeros
    are a plausible flow.

    Raises:
        FlowFormatError: no PNG, a wrong checksum, or an end before its time.

    """
    if not data.startswith(_PNG_SIGNATURE):
        raise FlowFormatError('no PNG')
    position, header = 8, None
    while True:
        if position + 12 > len(data):
            raise FlowFormatError('truncated PNG')
        length, kind = struct.unpack('>I4s', data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if len(checksum) < 4:
            raise FlowFormatError('truncated PNG')
        if zlib.crc32(kind + body) != struct.unpack('>I', checksum)[0]:
            raise FlowFormatError(f'corrupt PNG: wrong checksum of {kind!r}')
        if header is None:
            if kind != b'IHDR' or length != 13:
                raise FlowFormatError('corrupt PNG: no header')
            header = struct.unpack('>IIBB', body[:10])
        if kind == b'IEND':
            return header
        position += 12 + length


def _read_png(data: bytes) -> Flow:
    import cv2

    width, height, depth, colour = check_png(data)
    if depth != 16 or colour != 2:
        raise FlowFormatError('no KITTI flow: it is not a PNG of 3 x 16 bits')
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape != (height, width, 3) or image.dtype != np.uint16:
        raise FlowFormatError('corrupt PNG')
    # OpenCV orders channels B, G, R: valid, v, u.
    flow = (image[..., :0:-1].astype(np.float32) - 2**15) / 64
    flow[image[..., 0] == 0] = np.nan
    return np.ascontiguousarray(flow)


def _write_png(flow: Flow, known: Mask) -> bytes:
    import cv2

    levels = np.rint(np.where(known[..., None], flow, 0) * 64.0 + 2**15)
    if levels.min() < 0 or levels.max() > 2**16 - 1:
        raise FlowFormatError('KITTI flow holds u and v in [-512, 512) px only')
    image = np.zeros((*known.shape, 3), np.uint16)
    image[..., :0:-1] = levels
    image[..., 0] = known
    image[~known] = 0
    done, data = cv2.imencode('.png', image)
    if not done:
        raise FlowFormatError('OpenCV could not encode the PNG')
    return data.tobytes()


def _hdf5() -> type:
    try:
        import h5py
    except ImportError as error:
        raise FlowFormatError('.flo5 needs h5py: pip install h5py') from error
    return h5py.File


def _read_flo5(data: bytes) -> Flow:
    with _hdf5()(io.BytesIO(data), 'r') as file:
        if 'flow' not in file:
            raise FlowFormatError('no dataset "flow" in it')
        dataset = file['flow']
        if len(getattr(dataset, 'shape', ())) != 3 or dataset.shape[2] != 2:
            raise FlowFormatError('"flow" is not (H, W, 2)')
        if dataset.size > _LARGEST:
            raise FlowFormatError(f'"flow" claims the size {dataset.shape}')
        return np.asarray(dataset[()], dtype=np.float32)


def _write_flo5(flow: Flow, known: Mask) -> bytes:
    flow[~known] = np.nan
    buffer = io.BytesIO()
    with _hdf5()(buffer, 'w') as file:
        file.create_dataset('flow', data=flow, compression='gzip', compression_opts=5)
    return buffer.getvalue()


def _read_npy(data: bytes) -> Flow:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] != 2:
        raise FlowFormatError('not an array (H, W, 2)')
    if array.dtype.kind not in 'fiu':
        raise FlowFormatError(f'{array.dtype} is no flow')
    return array.astype(np.float32)


def _write_npy(flow: Flow, known: Mask) -> bytes:
    flow[~known] = np.nan
    buffer = io.BytesIO()
    np.save(buffer, flow, allow_pickle=False)
    return buffer.getvalue()


def _read_pfm(data: bytes) -> Flow:
    lines = data[:200].split(b'\n', 3)
    if lines[0].strip() != b'PF' or len(lines) < 4:
        raise FlowFormatError('no colour PFM: it does not begin with PF')
    width, height = (int(word) for word in lines[1].split())
    scale = float(lines[2])
    if width < 1 or height < 1 or scale == 0:
        raise FlowFormatError(f'impossible size {width}x{height} or scale {scale}')
    offset = sum(len(line) + 1 for line in lines[:3])
    expected = offset + 12 * width * height
    if len(data) != expected:
        raise FlowFormatError(f'{len(data)} bytes where {width}x{height} needs {expected}')
    kind = '<f4' if scale < 0 else '>f4'
    image = np.frombuffer(data, kind, offset=offset).reshape(height, width, 3)
    # Rows are stored from the bottom up; the third channel is unused.
    return image[::-1, :, :2].astype(np.float32)


def _write_pfm(flow: Flow, known: Mask) -> bytes:
    flow[~known] = np.nan
    height, width = known.shape
    image = np.zeros((height, width, 3), '<f4')
    image[..., :2] = flow
    return f'PF\n{width} {height}\n-1.0\n'.encode() + image[::-1].tobytes()
