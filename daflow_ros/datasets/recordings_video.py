# SPDX-License-Identifier: Apache-2.0
"""Video files as recordings, through OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from daflow_ros.datasets.recordings import ImageData, Recording, RecordingError
from daflow_ros.datasets.recordings_images import FRAME_ID, START_NS


def open_video(path: Path) -> Recording:
    """Open a video file; stamps are its own time, counted from one second.

    Raises:
        RecordingError: OpenCV cannot read it. Reading raises it where the video breaks off
            before the number of frames that its header promises.
    """
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise RecordingError(path, 'not a video that OpenCV reads, or cut off')
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        if not capture.grab():
            raise RecordingError(path, 'no frame in it can be decoded')
    finally:
        capture.release()
    if not 0.1 <= rate <= 1000:
        raise RecordingError(path, f'a frame rate of {rate:g} Hz')

    def messages() -> Iterator[ImageData]:
        capture = cv2.VideoCapture(str(path))
        index, last_ns = 0, -1
        try:
            while True:
                got, bgr = capture.read()
                if not got:
                    break
                # The container's time where it runs forward (variable rates), else the rate's.
                time_ns = round(float(capture.get(cv2.CAP_PROP_POS_MSEC)) * 1e6)
                if time_ns <= last_ns:
                    time_ns = last_ns + round(1e9 / rate)
                last_ns = time_ns
                height, width = bgr.shape[:2]
                yield ImageData(START_NS + time_ns, START_NS + time_ns, FRAME_ID, height, width,
                                'bgr8', 0, 3 * width, np.asarray(bgr, np.uint8).reshape(-1))
                index += 1
        finally:
            capture.release()
        # Containers count frames loosely at the end, by one or two.
        if count > 0 and index < count - max(2, count // 50):
            raise RecordingError(path, f'breaks off after {index} of {count} frames')

    return Recording(path, '/image_raw', False, {'/image_raw': 'sensor_msgs/msg/Image'},
                     max(count, 1), messages)
