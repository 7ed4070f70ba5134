# SPDX-License-Identifier: Apache-2.0
"""Readers of recordings, on files written by other libraries than the one that reads."""

import shutil
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Rosbag2Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from daflow_ros.datasets.recordings import RecordingError, open_recording

HEIGHT, WIDTH, COUNT = 24, 32, 6
START = 1_700_000_000_123_456_789
FOG = Path(__file__).resolve().parents[2] / 'shared' / 'clips' / 'radiate_fog'
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'


def picture(index):
    rng = np.random.default_rng(index)
    return cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (WIDTH, HEIGHT))


def true_flow(index):
    flow = np.random.default_rng(100 + index).normal(size=(HEIGHT, WIDTH, 2)).astype(np.float32)
    flow[0, index] = np.nan
    return flow


def stamp(index):
    return START + index * 66_666_667


def types(ros1=False):
    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_KILTED)
    if not ros1:
        text = (Path(__file__).resolve().parents[1] / 'msg' / 'FlowField.msg').read_text()
        store.register(get_types_from_msg(text, 'daflow_ros/msg/FlowField'))
    return store


def header(store, index, ros1=False):
    time = store.types['builtin_interfaces/msg/Time'](
        sec=stamp(index) // 10**9, nanosec=stamp(index) % 10**9)
    kind = store.types['std_msgs/msg/Header']
    return (kind(seq=index, stamp=time, frame_id='camera') if ros1
            else kind(stamp=time, frame_id='camera'))


def image(store, index, array, encoding, ros1=False):
    data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    return store.types[IMAGE](
        header=header(store, index, ros1), height=array.shape[0], width=array.shape[1],
        encoding=encoding, is_bigendian=0, step=data.size // array.shape[0], data=data)


def jpeg(store, index, ros1=False):
    data = cv2.imencode('.jpg', picture(index)[..., ::-1])[1].reshape(-1)
    return store.types[COMPRESSED](
        header=header(store, index, ros1), format='jpeg', data=data)


def flow_field(store, index):
    empty = store.types[IMAGE](
        header=header(store, index), height=0, width=0, encoding='', is_bigendian=0, step=0,
        data=np.empty(0, np.uint8))
    kind = store.types['daflow_ros/msg/FlowField']
    return kind(
        header=header(store, index), target_stamp=header(store, index + 1).stamp,
        flow=image(store, index, true_flow(index), '32FC2'), confidence=empty, direction=0,
        model='test', weights_revision='', refinement_iterations=0, diffusion_steps=0,
        processing_latency=0.0, end_to_end_latency=0.0)


def write_bag(path, topics, plugin=StoragePlugin.MCAP, compression=None, ros1=False):
    """Write {topic: (type, function of the index)}; flow ends one frame early."""
    store = types(ros1)
    writer = (Rosbag1Writer(path) if ros1
              else Rosbag2Writer(path, version=9, storage_plugin=plugin))
    if compression:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {t: writer.add_connection(t, kind, typestore=store)
                       for t, (kind, _) in topics.items()}
        for index in range(COUNT):
            for topic, (kind, make) in topics.items():
                if 'truth' in topic and index == COUNT - 1:
                    continue
                message = make(store, index)
                data = (store.serialize_ros1(message, kind) if ros1
                        else store.serialize_cdr(message, kind))
                # Recorded 5 ms after the stamp.
                writer.write(connections[topic], stamp(index) + 5_000_000, data)
    return path


RAW = (IMAGE, lambda store, i: image(store, i, picture(i)[..., ::-1], 'bgr8'))
JPEG = (COMPRESSED, jpeg)
TRUE_IMAGE = (IMAGE, lambda store, i: image(store, i, true_flow(i), '32FC2'))
TRUE_FIELD = ('daflow_ros/msg/FlowField', flow_field)
DEPTH = (IMAGE, lambda store, i: image(store, i, np.ones((HEIGHT, WIDTH), np.uint16), '16UC1'))


def check(recording, flow=False):
    frames = list(recording.frames())
    assert len(frames) == len(recording) == COUNT
    for index, frame in enumerate(frames):
        assert frame.stamp_ns == stamp(index)
        assert frame.frame_id == 'camera'
        if recording.compressed:
            assert np.abs(frame.image.astype(int) - picture(index)).mean() < 12
        else:
            np.testing.assert_array_equal(frame.image, picture(index))
        if flow and index < COUNT - 1:
            np.testing.assert_array_equal(frame.flow, true_flow(index))
            assert not frame.valid[0, index]
            assert frame.valid.sum() == HEIGHT * WIDTH - 1
        else:
            assert frame.flow is None
            assert frame.valid is None
    assert [m.time_ns for m in recording.messages()] == [
        stamp(i) + 5_000_000 for i in range(COUNT)]


@pytest.mark.parametrize('plugin', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize('compression', [
    None, CompressionMode.FILE, CompressionMode.MESSAGE, CompressionMode.STORAGE])
def test_rosbag2(tmp_path, plugin, compression):
    if compression == CompressionMode.STORAGE and plugin == StoragePlugin.SQLITE3:
        pytest.skip('sqlite3 has no compression of its own')
    bag = write_bag(tmp_path / 'bag', {
        '/cam/image_raw': RAW, '/cam/image_raw/compressed': JPEG, '/depth/image_raw': DEPTH,
        '/ground_truth/flow': TRUE_IMAGE}, plugin, compression)
    recording = open_recording(bag)
    assert recording.topic == '/cam/image_raw'
    assert recording.flow_topic == '/ground_truth/flow'
    check(recording, flow=True)
    check(open_recording(bag, 'cam/image_raw/compressed'), flow=True)
    if compression in (None, CompressionMode.STORAGE):
        check(open_recording(next(iter([*bag.glob('*.mcap'), *bag.glob('*.db3')]))), flow=True)


def test_flow_field_as_ground_truth(tmp_path):
    bag = write_bag(tmp_path / 'bag', {'/image_raw/compressed': JPEG, '/gt/truth': TRUE_FIELD})
    recording = open_recording(bag, 'image_raw')
    assert recording.topic == '/image_raw/compressed'
    check(recording, flow=True)


def test_estimated_flow_is_no_ground_truth_unless_named(tmp_path):
    bag = write_bag(tmp_path / 'bag', {'/image_raw': RAW, '/daflow/untruth': TRUE_FIELD})
    assert open_recording(bag).flow_topic is None
    check(open_recording(bag, flow_topic='/daflow/untruth'), flow=True)
    with pytest.raises(RecordingError, match='/daflow/untruth'):
        open_recording(bag, flow_topic='/other')


def test_ros1_bag(tmp_path):
    bag = write_bag(tmp_path / 'old.bag', {
        '/camera/image_raw': (IMAGE, lambda s, i: image(s, i, picture(i), 'rgb8', True)),
        '/camera/image_raw/compressed': (COMPRESSED, lambda s, i: jpeg(s, i, True)),
        '/ground_truth/flow': (IMAGE, lambda s, i: image(s, i, true_flow(i), '32FC2', True)),
    }, ros1=True)
    check(open_recording(bag), flow=True)
    check(open_recording(bag, '/camera/image_raw/compressed'), flow=True)


def test_mcap_by_another_writer(tmp_path):
    pytest.importorskip('mcap_ros2')
    from mcap_ros2.writer import Writer

    definition = (
        'std_msgs/Header header\nstring format\nuint8[] data\n' + '=' * 80 + '\n'
        'MSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n' + '=' * 80 + '\n'
        'MSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n')
    path = tmp_path / 'other.mcap'
    with path.open('wb') as file:
        writer = Writer(file)
        schema = writer.register_msgdef('sensor_msgs/msg/CompressedImage', definition)
        for index in range(COUNT):
            data = cv2.imencode('.jpg', picture(index)[..., ::-1])[1].tobytes()
            writer.write_message('/cam/compressed', schema, {
                'header': {'stamp': {'sec': stamp(index) // 10**9,
                                     'nanosec': stamp(index) % 10**9}, 'frame_id': 'camera'},
                'format': 'jpeg', 'data': data},
                stamp(index) + 5_000_000, stamp(index) + 5_000_000)
        writer.finish()
    check(open_recording(path))


def test_a_sqlite_bag_against_plain_sql_and_rclpy(tmp_path):
    serialization = pytest.importorskip('rclpy.serialization')
    from sensor_msgs.msg import Image

    bag = write_bag(tmp_path / 'bag', {'/image_raw': RAW}, StoragePlugin.SQLITE3)
    rows = sqlite3.connect(next(bag.glob('*.db3'))).execute(
        'SELECT data FROM messages ORDER BY timestamp').fetchall()
    for (data,), ours in zip(rows, open_recording(bag).messages(), strict=True):
        message = serialization.deserialize_message(data, Image)
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == ours.stamp_ns
        assert bytes(message.data) == bytes(ours.data)
        assert (message.height, message.width, message.encoding, message.step) == (
            ours.height, ours.width, ours.encoding, ours.step)


def test_topics_to_choose_from(tmp_path):
    two = write_bag(tmp_path / 'two', {'/left/image_raw': RAW, '/right/image_raw': RAW})
    with pytest.raises(RecordingError, match=r'/left/image_raw, /right/image_raw.*--topic'):
        open_recording(two)
    check(open_recording(two, '/right/image_raw'))
    with pytest.raises(RecordingError, match='no pictures on topic /front; topics: /left/image_'):
        open_recording(two, '/front')
    none = write_bag(tmp_path / 'none', {'/depth/image': DEPTH})
    with pytest.raises(RecordingError, match=r'no topic with pictures.*depth'):
        open_recording(none)


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    """One sound file of each kind."""
    folder = tmp_path_factory.mktemp('sound')
    topics = {'/image_raw': (IMAGE, lambda s, i: image(
        s, i, np.random.default_rng(i).integers(0, 255, (60, 80, 3), dtype=np.uint8), 'rgb8'))}
    mcap = write_bag(folder / 'mcap', topics)
    sqlite = write_bag(folder / 'sqlite', topics, StoragePlugin.SQLITE3)
    ros1 = write_bag(folder / 'one.bag', {'/image_raw': (
        IMAGE, lambda s, i: image(s, i, picture(i), 'rgb8', True))}, ros1=True)
    video = folder / 'clip.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*'MJPG'), 20, (WIDTH, HEIGHT))
    for index in range(20):
        writer.write(np.full((HEIGHT, WIDTH, 3), 10 * index, np.uint8))
    writer.release()
    return {'mcap': next(mcap.glob('*.mcap')), 'sqlite': next(sqlite.glob('*.db3')),
            'ros1': ros1, 'video': video}


@pytest.mark.parametrize('kind', ['mcap', 'sqlite', 'ros1', 'video'])
@pytest.mark.parametrize('part', [0.0, 0.02, 0.3, 0.6, 0.9])
def test_cut_off_files(tmp_path, sound, kind, part):
    data = sound[kind].read_bytes()
    path = tmp_path / sound[kind].name
    path.write_bytes(data[:int(part * len(data))])
    with pytest.raises(RecordingError, match=path.name):
        list(open_recording(path).frames())


@pytest.mark.parametrize('kind', ['mcap', 'sqlite', 'ros1'])
def test_garbage_in_the_middle(tmp_path, sound, kind):
    """Damage is an error that names the file, or it hits pixels only: never another exception."""
    data = sound[kind].read_bytes()
    path = tmp_path / sound[kind].name
    refused = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        broken = bytearray(data)
        at = int(rng.integers(0, len(data) - 64))
        broken[at:at + 64] = rng.integers(0, 255, 64, dtype=np.uint8).tobytes()
        path.write_bytes(broken)
        try:
            assert len(list(open_recording(path).frames())) <= COUNT
        except RecordingError as error:
            assert path.name in str(error)
            refused += 1
    path.write_bytes(b'garbage' * 1000)
    with pytest.raises(RecordingError, match=path.name):
        open_recording(path)
    if kind != 'ros1':
        assert refused < 25


def test_a_corrupt_picture_is_named(tmp_path):
    def make(store, index):
        message = jpeg(store, index)
        if index == 3:
            message.data = message.data[:100]
        return message

    bag = write_bag(tmp_path / 'bag', {'/image_raw/compressed': (COMPRESSED, make)})
    recording = open_recording(bag)
    assert len(list(recording.messages())) == COUNT
    with pytest.raises(RecordingError, match=f'bag: picture 3 .stamp {stamp(3)} ns'):
        list(recording.frames())


def test_video_times(sound):
    recording = open_recording(sound['video'])
    frames = list(recording.frames())
    assert len(frames) == len(recording) == 20
    steps = np.diff([frame.stamp_ns for frame in frames])
    np.testing.assert_allclose(steps, 50e6, atol=1e6)
    assert frames[0].stamp_ns > 0
    for index, frame in enumerate(frames):
        assert abs(frame.image.mean() - 10 * index) < 6


def test_image_folder(tmp_path):
    for index in range(12):
        cv2.imwrite(str(tmp_path / f'frame{index}.png'), picture(index)[..., ::-1])
    recording = open_recording(tmp_path, rate=10.0)
    assert recording.compressed
    for index, frame in enumerate(recording.frames()):
        np.testing.assert_array_equal(frame.image, picture(index))
        assert frame.stamp_ns == 1_000_000_000 + index * 100_000_000
    (tmp_path / 'times.txt').write_text(
        '# stamps\n' + ''.join(f'{index}.000000001\n' for index in range(12)))
    assert [m.stamp_ns for m in open_recording(tmp_path).messages()] == [
        index * 10**9 + 1 for index in range(12)]
    (tmp_path / 'times.txt').write_text('Frame: frame0 Time: 1.5\n')
    with pytest.raises(RecordingError, match=r'no time for 11 images, first frame1\.png'):
        open_recording(tmp_path)
    for bad in ('1.0\n2.0\n', 'noon\n' * 12, 'nan\n' * 12, '-1\n' * 12):
        (tmp_path / 'times.txt').write_text(bad)
        with pytest.raises(RecordingError, match=r'times\.txt'):
            open_recording(tmp_path)
    (tmp_path / 'times.txt').unlink()
    (tmp_path / 'frame3.png').write_bytes(b'no picture')
    with pytest.raises(RecordingError, match='picture 3'):
        list(open_recording(tmp_path).frames())
    cv2.imwrite(str(tmp_path / 'frame3.bmp'), picture(3)[..., ::-1])
    (tmp_path / 'frame3.png').unlink()
    recording = open_recording(tmp_path)
    assert not recording.compressed
    np.testing.assert_array_equal(list(recording.frames())[3].image, picture(3))


def test_nothing_to_read(tmp_path):
    for path in (tmp_path / 'absent.mcap', tmp_path, Path(__file__)):
        with pytest.raises(RecordingError, match=path.name):
            open_recording(path)
    broken = write_bag(tmp_path / 'bag', {'/image_raw': RAW})
    (broken / 'metadata.yaml').write_text('rosbag2_bagfile_information: [')
    with pytest.raises(RecordingError, match='bag'):
        open_recording(broken)
    (broken / 'metadata.yaml').unlink()
    check(open_recording(broken))
    shutil.copy(next(broken.glob('*.mcap')), broken / 'second.mcap')
    with pytest.raises(RecordingError, match='2 bag files'):
        open_recording(broken)


@pytest.mark.skipif(not FOG.exists(), reason='the shared clip is absent')
def test_the_fog_clip():
    recording = open_recording(FOG)
    lines = (FOG / 'times.txt').read_text().split()
    expected = [int(text.replace('.', '')) for text in lines[3::4][:50]]
    assert [m.stamp_ns for m in recording.messages()] == expected
    assert len(recording) == 50
    first = next(recording.frames()).image
    np.testing.assert_array_equal(first[..., ::-1], cv2.imread(str(FOG / '000001.png')))
