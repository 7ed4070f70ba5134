# SPDX-License-Identifier: Apache-2.0
"""The sending process of test_transport.py: best-effort images at a steady rate.

Usage: transport_peer.py WIDTH HEIGHT RATE COUNT
"""

import array
import sys
import time

import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from daflow_ros.ros.transport import use_shipped_profile


def main():
    width, height, rate, count = (int(argument) for argument in sys.argv[1:])
    use_shipped_profile()
    rclpy.init()
    node = rclpy.create_node('camera')
    publisher = node.create_publisher(Image, 'image_raw', qos_profile_sensor_data)
    deadline = time.monotonic() + 30
    while publisher.get_subscription_count() == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    # The subscription is known here before the publisher is known there.
    time.sleep(0.5)
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    message.header.frame_id = 'camera_optical'
    next_time = time.monotonic()
    for index in range(count):
        message.header.stamp.sec = index
        message.data = array.array('B', bytes([index % 256]) * (3 * width * height))
        publisher.publish(message)
        next_time += 1 / rate
        time.sleep(max(0.0, next_time - time.monotonic()))
    # Stay until the last image is read: shared memory goes with its process.
    sys.stdin.readline()
    node.destroy_node()
    rclpy.shutdown()


if __name__ == '__main__':
    main()
