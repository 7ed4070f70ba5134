# SPDX-License-Identifier: Apache-2.0
"""The demo: four seconds of driving down a rainy street, with exact ground-truth flow.

Rendered deterministically on first use from procedural textures, then degraded with the package's
own rain, sensor noise and JPEG, and written as an MCAP bag like that of a camera driver.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from daflow_ros.datasets import demo_textures as textures
from daflow_ros.datasets.planar_scene import Camera, Plane, RenderedFrame, Texture, render

#: Changes whenever the rendered bytes would.
VERSION = 1

WIDTH, HEIGHT, FRAMES, RATE = 640, 480, 60, 15.0
FOCAL = 470.0  # px
SPEED = 3.6 / RATE  # m per frame
START_NS = 1_767_225_600_000_000_000  # 2026-01-01, a stamp that looks like one
FRAME_ID = 'camera_optical_frame'
IMAGE_TOPIC = '/camera/image_raw/compressed'
INFO_TOPIC = '/camera/camera_info'
FLOW_TOPIC = '/ground_truth/flow'

_SKY, _FAR, _GROUND, _KERB, _WALL, _SHADOW, _OBJECT = range(7)

Vector = NDArray[np.float64]


def _vector(x: float, y: float, z: float) -> Vector:
    return np.array([x, y, z], np.float64)


def _camera() -> Camera:
    """A camera at 1.45 m, driving forward in the right lane, slightly swaying and shaking."""
    intrinsics = np.array(
        [[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, 0.46 * HEIGHT], [0, 0, 1]], np.float64)

    def centre(time: float) -> Vector:
        return _vector(1.75 + 0.12 * np.sin(0.11 * time), -1.45 + 0.012 * np.sin(1.3 * time),
                       SPEED * time)

    def rotation(time: float) -> Vector:
        yaw = 0.018 * np.sin(0.09 * time + 0.4) + 0.0012 * np.sin(2.1 * time)
        pitch = 0.0045 * np.sin(0.75 * time) + 0.0016 * np.sin(2.6 * time + 1.0)
        roll = 0.007 * np.sin(0.21 * time) + 0.0015 * np.sin(1.9 * time + 2.0)
        return cv2.Rodrigues(_vector(pitch, 0, 0))[0] @ cv2.Rodrigues(_vector(0, yaw, 0))[0] @ (
            cv2.Rodrigues(_vector(0, 0, roll))[0])

    return Camera(intrinsics, centre, rotation)


def _vehicle(random: np.random.Generator, x: float, z: float, size: tuple[float, float, float],
             paint: tuple[float, float, float], oncoming: bool = False, bus: bool = False,
             position: Callable[[float], Vector] | None = None) -> list[Plane]:
    """Build the two visible faces and the shadow of a box-like vehicle.

    ``x`` is its middle, ``z`` the face towards the camera, ``size`` (width, height, length) in m.
    """
    width, height, length = size
    end = Texture(textures.vehicle_end(random, 360, paint, not oncoming, width / height))
    side = Texture(textures.vehicle_side(random, 300, paint, length / height, bus))
    inner = x + width / 2 if x < 1.0 else x - width / 2
    near, far = _vector(inner, -height, z), _vector(inner, -height, z + length)
    along = far - near
    return [
        Plane(Texture(textures.shadow()), _vector(x - width / 2 - 0.15, -0.002, z - 0.25),
              _vector(width + 0.3, 0, 0), _vector(0, 0, length + 0.5), _SHADOW, position,
              shade=True),
        Plane(side, far if oncoming else near, -along if oncoming else along,
              _vector(0, height, 0), _OBJECT, position),
        Plane(end, _vector(x - width / 2, -height, z), _vector(width, 0, 0),
              _vector(0, height, 0), _OBJECT, position),
    ]


def _moving(x: float, z: float, sway: float = 0.0) -> Callable[[float], Vector]:
    """Constant velocity in m per frame, with a walker's or a chassis' small sway (m)."""
    return lambda time: _vector(x * time, -abs(sway * np.sin(0.5 * time)), z * time)


def _street(random: np.random.Generator) -> list[Plane]:
    """Build the scene: x to the right, y down from the road, z along the street; m."""
    planes = [
        Plane(Texture(textures.clouds(random, 768)), _vector(-2.5, -1.6, 1), _vector(5, 0, 0),
              _vector(0, 1.75, 0), _SKY, infinite=True),
        Plane(Texture(textures.skyline(random, 256, 768)), _vector(-26, -15, 150),
              _vector(52, 0, 0), _vector(0, 15.5, 0), _FAR),
        Plane(Texture(textures.asphalt(random, 2560, 864, 96.0), (1, 6)), _vector(-4.5, 0, 160),
              _vector(9, 0, 0), _vector(0, 0, -162), _GROUND),
    ]
    trees = [Texture(textures.tree(random, 512)) for _ in range(4)]
    for side in (-1, 1):
        pavement = Texture(textures.paving(random, 864, 324, 54), (1, 18))
        planes += [
            Plane(pavement, _vector(4.5 * side, -0.13, 160), _vector(3.2 * side, 0, 0),
                  _vector(0, 0, -162), _KERB),
            Plane(Texture(textures.paving(random, 648, 54, 162), (1, 30)),
                  _vector(4.5 * side, -0.13, 160), _vector(0, 0.14, 0), _vector(0, 0, -162),
                  _KERB),
        ]
        z = -4.0
        while z < 132:
            length, height = random.uniform(9.5, 14.0), random.uniform(9.5, 14.5)
            scale = 56.0
            front = textures.facade(random, round(height * scale), round(length * scale), scale,
                                    shop=bool(random.random() < 0.6))
            if side > 0:  # u runs from right to left here
                front = np.ascontiguousarray(front[:, ::-1])
            # Each house stands a little forward or back, and overlaps its neighbour.
            x = (7.6 + random.uniform(-0.12, 0.12)) * side
            planes.append(Plane(Texture(front), _vector(x, -height - 0.1, z),
                                _vector(0, 0, length + 0.15), _vector(0, height, 0), _WALL))
            z += length
        for z in np.arange(9.0 if side < 0 else 15.0, 120.0, 13.0):
            size = random.uniform(5.0, 6.2)
            planes.append(Plane(
                trees[int(random.integers(len(trees)))], _vector(5.6 * side - size / 2, -size, z),
                _vector(size, 0, 0), _vector(0, size - 0.1, 0), _OBJECT))
        for z in np.arange(12.0 if side < 0 else 22.0, 120.0, 24.0):
            left = 4.95 * side
            planes.append(Plane(
                Texture(textures.lamp(768)), _vector(left, -6.4, z + 3.0),
                _vector(-1.6 * side, 0, 0), _vector(0, 6.3, 0), _OBJECT))
    walk: list[tuple[float, float, float]] = [(5.4, 11.5, 0.09), (-5.2, 15.0, 0.08),
                                              (6.3, 26.0, -0.08), (-6.2, 31.0, -0.09)]
    for x, z, speed in walk:
        planes.append(Plane(
            Texture(textures.pedestrian(random, 400)), _vector(x - 0.55, -2.28, z),
            _vector(1.1, 0, 0), _vector(0, 2.16, 0), _OBJECT, _moving(0, speed, 0.025)))
    # Parked at the kerb.
    planes += _vehicle(random, -3.55, 17.0, (1.8, 2.1, 4.8), (58, 92, 120), oncoming=True)
    planes += _vehicle(random, 3.75, 27.0, (1.8, 2.0, 4.6), (190, 186, 176))
    planes += _vehicle(random, -3.6, 40.0, (1.8, 2.0, 4.8), (150, 58, 44), oncoming=True)
    # Driving: a van ahead that is caught up with, a bus and a van coming.
    planes += _vehicle(random, 1.85, 9.5, (1.95, 2.3, 5.0), (222, 176, 52),
                       position=_moving(0.002, 0.8 * SPEED, 0.012))
    planes += _vehicle(random, -1.3, 46.0, (2.45, 3.1, 11.0), (176, 40, 40), oncoming=True,
                       bus=True, position=_moving(0, -0.46, 0.01))
    planes += _vehicle(random, -1.4, 84.0, (1.9, 2.2, 5.0), (96, 130, 90), oncoming=True,
                       position=_moving(0, -0.5, 0.01))
    return planes


def render_sequence(
    frames: int = FRAMES, size: tuple[int, int] = (HEIGHT, WIDTH), progress: bool = False,
) -> Iterator[RenderedFrame]:
    """Render the street in clear weather, the same on every call.

    Args:
        frames: how many, from the first.
        size: (height, width) px; the field of view stays that of the whole sequence.
        progress: show a progress bar.
    """
    random = np.random.default_rng(20260101)
    planes, camera = _street(random), _camera()
    scale = size[1] / WIDTH
    # Pixel centres at whole numbers: the corner of the picture lies at -0.5.
    grid = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5], [0, 0, 1]])
    camera = Camera(grid @ camera.intrinsics, camera.centre, camera.rotation)
    # NumPy and OpenCV leave the interpreter's lock: threads use what cores there are.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rendered = pool.map(lambda index: render(planes, camera, float(index), size),
                            range(frames))
        yield from tqdm(rendered, 'rendering', frames, unit='frame', disable=not progress)


def degraded(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put the demo's weather and sensor over a clip, uint8 (F, H, W, 3) RGB."""
    from daflow_ros.degradation import degrade

    return degrade(degrade(images, 'rain', 3, 7), 'gaussian_noise', 1, 8)


def demo_bag(folder: str | os.PathLike[str] | None = None, *, progress: bool = False) -> Path:
    """Path of the demo's rosbag2 (MCAP), rendered if it is not there yet.

    Topics: the pictures (``CompressedImage``, JPEG), ``CameraInfo``, and the true flow from each
    picture to the next (``Image`` 32FC2 of full size, every frame but the last, stamp of the
    first of the two). The flow is exact but for rounding to 1/256 px, which lets it be stored in
    a third of the space; about 50 MB in all.

    Args:
        folder: where it is kept; by default in the user's cache.
        progress: show progress bars.

    Raises:
        OSError: the folder cannot be written.
    """
    if folder is None:
        cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
        folder = Path(cache) / 'daflow_ros'
    bag = Path(folder) / f'demo_street_v{VERSION}'
    if (bag / 'metadata.yaml').exists():
        return bag
    bag.parent.mkdir(parents=True, exist_ok=True)
    # Written aside, so that an interrupted rendering is not taken for the demo.
    with TemporaryDirectory(dir=bag.parent, prefix='rendering-') as aside:
        partial = Path(aside) / bag.name
        frames = list(render_sequence(progress=progress))
        if progress:
            tqdm.write('adding rain and sensor noise', file=sys.stderr)
        images = degraded(np.stack([frame.image for frame in frames]))
        write_sequence(partial, images, [frame.flow for frame in frames[:-1]],
                       _camera().intrinsics, progress=progress)
        if bag.exists():
            shutil.rmtree(bag)
        partial.replace(bag)
    return bag


def write_sequence(
    bag: Path, images: NDArray[np.uint8], flows: list[NDArray[np.float32]],
    intrinsics: NDArray[np.float64], progress: bool = False,
) -> None:
    """Write pictures (F, H, W, 3) RGB and flow (F - 1 times (H, W, 2) px) as a rosbag2."""
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    height, width = images.shape[1:3]
    fx, fy = intrinsics[0, 0], intrinsics[1, 1]
    cx, cy = intrinsics[0, 2], intrinsics[1, 2]
    region = types['sensor_msgs/msg/RegionOfInterest'](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    writer = Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with writer:
        kinds = {IMAGE_TOPIC: 'sensor_msgs/msg/CompressedImage',
                 INFO_TOPIC: 'sensor_msgs/msg/CameraInfo', FLOW_TOPIC: 'sensor_msgs/msg/Image'}
        connections = {topic: writer.add_connection(topic, kind, typestore=store)
                       for topic, kind in kinds.items()}
        for index, image in enumerate(tqdm(images, 'writing', unit='frame', disable=not progress)):
            stamp_ns = START_NS + round(index * 1e9 / RATE)
            header = types['std_msgs/msg/Header'](
                stamp=types['builtin_interfaces/msg/Time'](
                    sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id=FRAME_ID)
            jpeg = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
            messages = {
                INFO_TOPIC: types[kinds[INFO_TOPIC]](
                    header=header, height=height, width=width, distortion_model='plumb_bob',
                    d=np.zeros(5), k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1]),
                    r=np.eye(3).reshape(-1),
                    p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1, 0]), binning_x=0,
                    binning_y=0, roi=region),
                IMAGE_TOPIC: types[kinds[IMAGE_TOPIC]](
                    header=header, format='rgb8; jpeg compressed bgr8', data=jpeg.reshape(-1)),
            }
            if index < len(flows):
                flow = np.round(flows[index] * 256.0) / np.float32(256.0)
                messages[FLOW_TOPIC] = types[kinds[FLOW_TOPIC]](
                    header=header, height=height, width=width, encoding='32FC2', is_bigendian=0,
                    step=8 * width, data=flow.astype('<f4').view(np.uint8).reshape(-1))
            for topic, message in messages.items():
                writer.write(connections[topic], stamp_ns,
                             store.serialize_cdr(message, kinds[topic]))
