# SPDX-License-Identifier: Apache-2.0
"""Conversions of messages, whichever implementation is in force, and how it is chosen."""

import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
from daflow_ros.msg import FlowField
from sensor_msgs.msg import CompressedImage, Image, PointField
from std_msgs.msg import Header

from daflow_ros.datasets.encodings import ENCODINGS, MalformedImageError, UnknownEncodingError
from daflow_ros.ros import conversions, image_bridge
from daflow_ros.ros import point_cloud2 as own_point_cloud2

HEIGHT, WIDTH = 8, 12


def picture():
    """Smooth uint8 (H, W, 3) RGB whose chroma is constant over 2x2 blocks."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] // 2 * 2
    return np.stack([60 + 8 * x, 200 - 9 * y, 90 + 5 * x], -1).astype(np.uint8)


def yuv(rgb):
    """BT.601, video range, by the standard's matrix."""
    matrix = np.array(
        [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
    )
    return np.rint(rgb / 255.0 @ matrix.T + (16, 128, 128)).astype(np.uint8)


def encode(encoding, rgb):
    """Rows of samples of an encoding, written from its definition; None where colour is lost."""
    if encoding.startswith('nv'):
        planes = yuv(rgb)
        chroma = planes[..., [2, 1]] if encoding == 'nv21' else planes[..., 1:]
        chroma = chroma if encoding == 'nv24' else chroma[::2, ::2]
        return np.concatenate([planes[..., 0], chroma.reshape(-1, WIDTH)])
    if encoding in ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'):
        planes = yuv(rgb)
        chroma = np.where(np.arange(WIDTH) % 2, planes[..., 2], planes[..., 1])
        luma_first = encoding in ('yuv422_yuy2', 'yuyv')
        order = (planes[..., 0], chroma) if luma_first else (chroma, planes[..., 0])
        return np.stack(order, -1)
    wide = rgb.astype(np.uint16) * 257 if '16' in encoding else rgb
    if encoding.startswith('bayer'):
        mosaic = np.empty((HEIGHT, WIDTH), wide.dtype)
        for index, letter in enumerate(encoding[6:10]):
            row, column = divmod(index, 2)
            mosaic[row::2, column::2] = wide[row::2, column::2, 'rgb'.index(letter)]
        return mosaic
    if encoding.startswith('mono') or encoding.endswith('C1'):
        return wide[..., 0]
    alpha = np.full((HEIGHT, WIDTH, 1), 7, wide.dtype)
    order = wide if encoding.startswith('rgb') else wide[..., ::-1]
    return np.concatenate([order, alpha], -1) if _has_alpha(encoding) else order


def _has_alpha(encoding):
    return encoding.endswith('C4') or encoding.startswith(('rgba', 'bgra'))


def message(samples, encoding, padding=0, big=False):
    """Serialise row by row; the padding is not zero, so that reading it shows."""
    rows = [
        row.astype(row.dtype.newbyteorder('>' if big else '<')).tobytes() + b'\xa5' * padding
        for row in samples
    ]
    return Image(
        header=Header(frame_id='optical'), height=HEIGHT, width=WIDTH, encoding=encoding,
        is_bigendian=int(big), step=len(rows[0]), data=b''.join(rows),
    )  # fmt: skip


@pytest.mark.parametrize('encoding', ENCODINGS)
@pytest.mark.parametrize('padding', [0, 4], ids=['tight', 'padded'])
def test_every_encoding(encoding, padding):
    rgb = picture()
    if encoding.startswith('bayer'):
        rgb[:] = (210, 80, 30)  # demosaicing is exact on a flat colour alone
    expected = rgb
    if encoding.startswith('mono') or encoding.endswith('C1'):
        expected = np.repeat(rgb[..., :1], 3, axis=2)
    tolerance = 4 if encoding.startswith(('nv', 'yu', 'uy')) else 1 if '16' in encoding else 0
    for big in (False, True) if '16' in encoding else (False,):
        samples = encode(encoding, rgb)
        out = conversions.image_to_rgb(message(samples, encoding, padding, big))
        assert out.shape == rgb.shape and out.dtype == np.uint8
        assert np.abs(out.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ('change', 'error'),
    [
        ({'data': b''}, MalformedImageError),
        ({'data': b'\0' * (3 * WIDTH * HEIGHT - 1)}, MalformedImageError),
        ({'step': 5}, MalformedImageError),
        ({'step': 2**32 - 1}, MalformedImageError),
        ({'height': 0}, MalformedImageError),
        ({'width': 2**32 - 1, 'height': 2**32 - 1, 'step': 2**32 - 1}, MalformedImageError),
        ({'encoding': 'rgb9'}, UnknownEncodingError),
        ({'encoding': '32FC1', 'step': 4 * WIDTH}, UnknownEncodingError),
        ({'encoding': ''}, UnknownEncodingError),
    ],
)
def test_malformed_images_are_told_apart(change, error):
    image = message(picture(), 'rgb8')
    for key, value in change.items():
        setattr(image, key, value)
    with pytest.raises(error):
        conversions.image_to_rgb(image)


def test_the_decoded_image_outlives_the_message():
    image = message(picture(), 'rgb8')
    out = conversions.image_to_rgb(image)
    image.data = b'\0' * len(image.data)
    np.testing.assert_array_equal(out, picture())


def test_compressed_images():
    pil = pytest.importorskip('PIL.Image')
    import io

    rgb = np.broadcast_to(np.uint8([200, 90, 30]), (HEIGHT, WIDTH, 3))
    for kind, tolerance in (('JPEG', 4), ('PNG', 0)):
        stream = io.BytesIO()
        pil.fromarray(rgb).save(stream, kind)
        packed = CompressedImage(format=kind.lower(), data=stream.getvalue())
        out = conversions.compressed_to_rgb(packed)
        assert np.abs(out.astype(int) - rgb).max() <= tolerance
        packed.data = packed.data[: len(packed.data) // 2]
        with pytest.raises(MalformedImageError):
            conversions.compressed_to_rgb(packed)
    for data in (b'', b'not a picture'):
        with pytest.raises(MalformedImageError):
            conversions.compressed_to_rgb(CompressedImage(format='jpeg', data=data))


def test_published_jpeg_is_rgb_for_others():
    pil = pytest.importorskip('PIL.Image')
    import io

    rgb = np.full((HEIGHT, WIDTH, 3), (200, 90, 30), np.uint8)
    packed = conversions.rgb_to_compressed(rgb, Header(frame_id='optical'), 90)
    out = np.asarray(pil.open(io.BytesIO(bytes(packed.data))))
    assert np.abs(out.astype(int) - rgb).max() <= 4
    assert 'jpeg' in packed.format and packed.header.frame_id == 'optical'


def test_images_of_arrays():
    flow = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 2)).astype(np.float32)
    image = conversions.array_to_image(flow[:, ::-1], '32FC2', Header(frame_id='optical'))
    assert (image.height, image.width, image.step) == (HEIGHT, WIDTH, 8 * WIDTH)
    assert (image.encoding, image.header.frame_id) == ('32FC2', 'optical')
    out = np.frombuffer(bytes(image.data), '<f4').reshape(flow.shape)
    np.testing.assert_array_equal(out, flow[:, ::-1])


def test_the_stand_in_keeps_the_interface():
    bridge = image_bridge.CvBridge()
    rgb = picture()
    image = bridge.cv2_to_imgmsg(rgb, encoding='rgb8', header=Header(frame_id='f'))
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(image), rgb)
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(image, 'bgr8'), rgb[..., ::-1])
    assert bridge.imgmsg_to_cv2(image, desired_encoding='mono8').shape == (HEIGHT, WIDTH)
    assert bridge.cv2_to_imgmsg(rgb.astype('>u2')[..., 0]).is_bigendian == 1
    assert bridge.cv2_to_imgmsg(rgb).encoding == '8UC3'
    packed = bridge.cv2_to_compressed_imgmsg(rgb[..., ::-1], 'png')
    np.testing.assert_array_equal(bridge.compressed_imgmsg_to_cv2(packed), rgb[..., ::-1])
    for bad in (
        lambda: bridge.cv2_to_imgmsg(rgb, 'mono8'),
        lambda: bridge.cv2_to_imgmsg(rgb.astype(np.float32), 'rgb8'),
        lambda: bridge.cv2_to_imgmsg(rgb, 'rgb9'),
        lambda: bridge.cv2_to_imgmsg(rgb[:0]),
        lambda: bridge.imgmsg_to_cv2(image, 'hsv8'),
        lambda: bridge.imgmsg_to_cv2(Image(), 'rgb8'),
        lambda: bridge.cv2_to_compressed_imgmsg(rgb, 'nothing'),
    ):
        with pytest.raises(image_bridge.CvBridgeError):
            bad()


class FaultyBridge(image_bridge.CvBridge):
    """A bridge with the faults that distributions' bridges have had."""

    def imgmsg_to_cv2(self, img_msg, desired_encoding='passthrough'):
        if img_msg.encoding.startswith('nv'):
            raise image_bridge.CvBridgeError('[nv12] is not a recognized image encoding')
        if '16' in img_msg.encoding:
            img_msg.is_bigendian = 0
        return super().imgmsg_to_cv2(img_msg, desired_encoding)

    def compressed_imgmsg_to_cv2(self, cmprs_img_msg, desired_encoding='passthrough'):
        data = np.frombuffer(cmprs_img_msg.data, np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR)  # bgr8, whatever was asked for


def test_a_bridge_is_used_for_what_it_does_right():
    choice = conversions.try_bridge(FaultyBridge())
    wrong = {name for name in ENCODINGS if '16' in name or name.startswith('nv')} | {'compressed'}
    assert {*ENCODINGS, 'compressed', 'writing'} - choice.abilities == wrong
    assert isinstance(choice.bridge_for('rgb8'), FaultyBridge)
    assert not isinstance(choice.bridge_for('mono16'), FaultyBridge)
    assert 'own conversions for' in choice.reason and 'nv12' in choice.reason
    assert conversions.try_bridge(object()).bridge is None
    whole = conversions.try_bridge(image_bridge.CvBridge())
    assert whole.reason == 'cv_bridge of the distribution'


@pytest.mark.parametrize('module', [conversions.point_cloud2(), own_point_cloud2])
def test_point_clouds(module):
    fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(('x', 'y', 'u'))
    ]
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    points[2, 2] = np.nan
    cloud = module.create_cloud(Header(frame_id='optical'), fields, points)
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (1, 4, 12, 48)
    assert not cloud.is_bigendian and cloud.header.frame_id == 'optical'
    raw = np.frombuffer(bytes(cloud.data), '<f4').reshape(4, 3)
    np.testing.assert_array_equal(raw, points)
    out = module.read_points(cloud)
    np.testing.assert_array_equal(out['u'], points[:, 2])
    assert len(module.read_points(cloud, field_names=['u'], skip_nans=True)) == 3
    assert module.read_points(cloud, field_names=['x'], uvs=[1, 3])['x'].tolist() == [3.0, 9.0]


def test_filling_a_flow_field_costs_a_fraction_of_assigning_an_array():
    """A ratio in one run, hardly a matter of the machine: 720p flow, the way of the node."""
    flow = np.random.default_rng(0).normal(size=(720, 1280, 2)).astype(np.float32)
    fill = []
    for _ in range(3):
        begin = time.perf_counter()
        field = FlowField(flow=conversions.array_to_image(flow, '32FC2', Header()))
        fill.append(time.perf_counter() - begin)
    assert len(field.flow.data) == flow.nbytes
    naive = Image()
    begin = time.perf_counter()
    naive.data = flow.view(np.uint8).reshape(-1)
    assign = time.perf_counter() - begin
    print(f'fill {min(fill) * 1e3:.1f} ms, assign {assign * 1e3:.0f} ms')
    assert min(fill) < 0.05 * assign
