# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``sensor_msgs_py.point_cloud2`` where no ROS distribution provides it.

The two calls that the package uses, with the same arguments. Which of the two modules is in force
is decided in :mod:`daflow_ros.ros.conversions`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2, PointField

from daflow_ros.ros.image_bridge import byte_array

_TYPES = {
    PointField.INT8: 'i1', PointField.UINT8: 'u1', PointField.INT16: 'i2', PointField.UINT16: 'u2',
    PointField.INT32: 'i4', PointField.UINT32: 'u4', PointField.FLOAT32: 'f4',
    PointField.FLOAT64: 'f8',
}  # fmt: skip


def _layout(fields: Sequence[Any], point_step: int, big: bool) -> np.dtype[Any]:
    order = '>' if big else '<'
    return np.dtype(
        {
            'names': [field.name or f'unnamed_field_{i}' for i, field in enumerate(fields)],
            'formats': [
                (order + _TYPES[field.datatype], (field.count,))
                if field.count > 1
                else order + _TYPES[field.datatype]
                for field in fields
            ],
            'offsets': [field.offset for field in fields],
            'itemsize': point_step,
        }
    )


def create_cloud(header: Any, fields: Iterable[Any], points: Any) -> PointCloud2:
    """Fill a ``sensor_msgs/PointCloud2``.

    Args:
        header: ``std_msgs/Header``.
        fields: ``sensor_msgs/PointField``, in the order of the columns of ``points``.
        points: (N, F) values, or a structured array of N points with these fields.

    Raises:
        ValueError: points that do not fit the fields.
    """
    fields = list(fields)
    size = max(f.offset + max(f.count, 1) * int(_TYPES[f.datatype][1]) for f in fields)
    layout = _layout(fields, size, big=False)
    values = np.asarray(points)
    if values.dtype.names is None:
        values = values.reshape(-1, len(fields))
        packed: NDArray[Any] = np.zeros(len(values), dtype=layout)
        for column, name in enumerate(layout.names or ()):
            packed[name] = values[:, column]
    else:
        packed = values.reshape(-1).astype(layout)
    return PointCloud2(
        header=header,
        height=1,
        width=len(packed),
        fields=fields,
        is_bigendian=False,
        point_step=layout.itemsize,
        row_step=layout.itemsize * len(packed),
        data=byte_array(packed.view(np.uint8)),
        is_dense=False,
    )


def read_points(
    cloud: Any,
    field_names: Sequence[str] | None = None,
    skip_nans: bool = False,
    uvs: Any = None,
    reshape_organized_cloud: bool = False,
) -> NDArray[Any]:
    """Points of a ``sensor_msgs/PointCloud2`` as a structured array of their fields.

    Args:
        cloud: the message.
        field_names: only these fields, None for all.
        skip_nans: leave out points with a NaN in one of the fields, unless the cloud is dense.
        uvs: indices of the points to read, None for all.
        reshape_organized_cloud: (height, width) instead of (N,) for a cloud with rows.

    Raises:
        ValueError: less data than the message's sizes say, an unknown field.
    """
    layout = _layout(cloud.fields, cloud.point_step, cloud.is_bigendian)
    count = cloud.width * cloud.height
    data = np.frombuffer(cloud.data, dtype=np.uint8)
    if cloud.row_step > cloud.width * cloud.point_step:
        rows = data[: cloud.height * cloud.row_step].reshape(cloud.height, cloud.row_step)
        data = np.ascontiguousarray(rows[:, : cloud.width * cloud.point_step]).reshape(-1)
    if data.size < count * cloud.point_step:
        raise ValueError(f'{data.size} bytes do not hold {count} points of {cloud.point_step}')
    points = np.frombuffer(data.tobytes(), dtype=layout, count=count)
    if field_names is not None:
        unknown = set(field_names) - set(layout.names or ())
        if unknown:
            raise ValueError(f'the cloud has no fields {", ".join(sorted(unknown))}')
        points = points[list(field_names)]
    if bool(cloud.is_bigendian) != (sys.byteorder == 'big'):
        points = points.astype(points.dtype.newbyteorder('='))
    if skip_nans and not cloud.is_dense:
        keep = np.ones(len(points), dtype=bool)
        for name in points.dtype.names or ():
            finite = ~np.isnan(points[name])
            keep &= finite if finite.ndim == 1 else finite.all(axis=1)
        points = points[keep]
    if uvs is not None:
        points = points[np.asarray(list(uvs), dtype=int)]
    if reshape_organized_cloud and cloud.height > 1:
        points = points.reshape(cloud.height, cloud.width)
    return points
