# SPDX-License-Identifier: Apache-2.0
"""Parameters of the flow node: one frozen dataclass, its limits, and how it meets rclpy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

FORWARD, BACKWARD = 'forward', 'backward'
AUTO_MODEL = 'auto'


class ParameterError(ValueError):
    """A value that the node cannot work with; the message names the parameter and its limits."""


@dataclass(frozen=True)
class ParameterInfo:
    """What is known of a parameter.

    Attributes:
        default: its value unless told otherwise; its type is the parameter's.
        description: one or two sentences with the unit.
        minimum, maximum: inclusive limits of a number, None for none.
        choices: the only values allowed, empty for any.
        read_only: only an override at start sets it.
        needs_cleanup: it can be set only while the node is unconfigured.
    """

    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = False
    needs_cleanup: bool = False


def _parameter(default: Any, description: str, **limits: Any) -> Any:
    info = ParameterInfo(default, description, **limits)
    return field(default=default, metadata={'info': info})


@dataclass(frozen=True)
class NodeParameters:
    """Every parameter of the node, checked.

    Raises:
        ParameterError: see :func:`check`.
    """

    model: str = _parameter(
        AUTO_MODEL,
        'Estimator, as `daflow models` lists them; auto is daflow_tiny where its weights are '
        'installed and dis where not.',
        needs_cleanup=True,
    )
    device: str = _parameter(
        'auto',
        'Where networks run: auto (CUDA where there is one), cpu, cuda or cuda:N.',
        needs_cleanup=True,
    )
    weights: str = _parameter(
        '',
        'Checkpoint file or folder of the model; empty for what the package ships. Nothing is '
        'ever downloaded.',
        needs_cleanup=True,
    )
    dtype: str = _parameter(
        'float32',
        'Precision of networks; float16 and bfloat16 are faster on a GPU. Networks only: dis, '
        'dis_fast and farneback ignore it.',
        choices=('float32', 'float16', 'bfloat16'), needs_cleanup=True,
    )  # fmt: skip
    consistency: bool = _parameter(
        False,
        'Run the model backwards too, and set the confidence to 0 where the two flows disagree: '
        'twice the time. Networks only: dis, dis_fast and farneback ignore it.',
        needs_cleanup=True,
    )
    looks: int = _parameter(
        0,
        'How often daflow_tiny and raft_tiny estimate a pair before which rain or snow falls, 1 '
        'to 8: each time after the first without what falls along the last flow. 0 for the '
        'default of the model, 3; 1 keeps the time of a pair the same in all weather. Iterations '
        'below the default of the model, as a deadline asks for, go with one look.',
        minimum=0, maximum=8, needs_cleanup=True,
    )  # fmt: skip
    cameras: tuple[str, ...] = _parameter(
        ('',),
        'Names of the cameras that share the model. Camera NAME is read from NAME/image_raw and '
        'published under ~/NAME/; the empty name is read from image_raw and published under ~/.',
        needs_cleanup=True,
    )
    compressed: bool = _parameter(
        False,
        'Subscribe to image_raw/compressed (JPEG, PNG) instead of image_raw.',
        needs_cleanup=True,
    )
    iterations: int = _parameter(
        0,
        'Refinement iterations a pair; 0 for the default of the model. With 1, daflow_tiny and '
        'raft_tiny leave their matcher out and look once: half of the time on a CPU.',
        minimum=0, maximum=64,
    )  # fmt: skip
    deadline: float = _parameter(
        0.0,
        'Time that a pair may take in the estimator, s: iterations are cut to keep it. 0 for no '
        'limit.',
        minimum=0.0, maximum=60.0,
    )  # fmt: skip
    stride: int = _parameter(
        1, 'Frames from one image of a pair to the other.', minimum=1, maximum=32
    )
    min_interval: float = _parameter(
        0.0,
        'Least time between frames that are used, s: frames that follow sooner are dropped. 0 '
        'uses every frame.',
        minimum=0.0, maximum=60.0,
    )  # fmt: skip
    max_interval: float = _parameter(
        1.0,
        'Longest time from one image of a pair to the other, s. Pairs further apart are dropped.',
        minimum=0.001, maximum=3600.0,
    )  # fmt: skip
    direction: str = _parameter(
        FORWARD,
        'forward: flow from the older to the newer frame, on the older one; backward: from the '
        'newer to the older, on the newer one.',
        choices=(FORWARD, BACKWARD),
    )
    idle_without_subscribers: bool = _parameter(
        True, 'Estimate nothing while nobody subscribes to an output.'
    )
    viz_max_flow: float = _parameter(
        0.0,
        'Flow drawn in full colour, px a pair; 0 scales every picture by its longest vector.',
        minimum=0.0, maximum=10000.0,
    )  # fmt: skip
    viz_overlay: float = _parameter(
        0.0,
        'Share of the camera image under the colours of ~/flow_viz: 0 colours alone, 1 the image.',
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    viz_arrows: int = _parameter(
        0, 'Grid of arrows drawn into ~/flow_viz, px; 0 for none.', minimum=0, maximum=512
    )
    viz_jpeg_quality: int = _parameter(
        85, 'JPEG quality of ~/flow_viz/compressed.', minimum=1, maximum=100
    )
    points_step: int = _parameter(
        16, 'Grid on which ~/flow_points samples the flow, px.', minimum=1, maximum=512
    )
    image_timeout: float = _parameter(
        2.0,
        'Time without images after which /diagnostics warns, s.',
        minimum=0.1, maximum=3600.0,
    )  # fmt: skip
    status_period: float = _parameter(
        1.0,
        'Period of ~/stats and /diagnostics, s.',
        minimum=0.1, maximum=60.0, read_only=True,
    )  # fmt: skip
    autostart: bool = _parameter(
        True,
        'Configure and activate at start; false leaves both to a lifecycle manager.',
        read_only=True,
    )

    @property
    def estimator_options(self) -> dict[str, Any]:
        """Options of the estimator that are not at their default; OpenCV's models have none.

        Who sets ``model: dis`` in a file with options of a network means DIS as it is.
        """
        from daflow_ros.estimators import ESTIMATORS, default_estimator

        name = default_estimator() if self.model == AUTO_MODEL else self.model
        if ESTIMATORS[name].weights == 'none':
            return {}
        names = ('dtype', 'consistency', 'looks')
        return {n: getattr(self, n) for n in names if getattr(self, n) != PARAMETERS[n].default}

    def __post_init__(self) -> None:
        for name in PARAMETERS:
            check(name, getattr(self, name))
        object.__setattr__(self, 'cameras', tuple(self.cameras))
        if self.min_interval >= self.max_interval:
            raise ParameterError(
                f'min_interval {self.min_interval} s must be below max_interval '
                f'{self.max_interval} s'
            )


#: Every parameter by name, in the order of the dataclass.
PARAMETERS: dict[str, ParameterInfo] = {
    item.name: item.metadata['info'] for item in fields(NodeParameters)
}

_CAMERA_NAME = re.compile(r'([A-Za-z]\w*(/[A-Za-z]\w*)*)?')
_DEVICE = re.compile(r'auto|cpu|cuda(:\d+)?')


def check(name: str, value: Any) -> None:
    """Check one value alone.

    Raises:
        ParameterError: wrong type, out of range, none of the choices, not a number.
    """
    info = PARAMETERS[name]
    kind = type(info.default)
    if kind is tuple:
        _check_cameras(value)
        return
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise ParameterError(f'{name} must be of type {kind.__name__}, given {value!r}')
    # A comparison with NaN is false, so NaN is refused too.
    if info.minimum is not None and not value >= info.minimum:
        raise ParameterError(f'{name} must be at least {info.minimum}, given {value}')
    if info.maximum is not None and not value <= info.maximum:
        raise ParameterError(f'{name} must be at most {info.maximum}, given {value}')
    if info.choices and value not in info.choices:
        raise ParameterError(f'{name} must be one of {", ".join(info.choices)}, given {value!r}')
    if name == 'model':
        _check_model(value)
    if name == 'device' and not _DEVICE.fullmatch(value):
        raise ParameterError(f'device must be auto, cpu, cuda or cuda:N, given {value!r}')


def _check_model(value: str) -> None:
    from daflow_ros.estimators import ESTIMATORS

    if value != AUTO_MODEL and value not in ESTIMATORS:
        near = get_close_matches(value, ESTIMATORS, n=1)
        hint = f' (did you mean {near[0]}?)' if near else ''
        raise ParameterError(
            f'model {value!r} is unknown{hint}; there are {AUTO_MODEL}, {", ".join(ESTIMATORS)}'
        )


def _check_cameras(value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not value:
        raise ParameterError(f'cameras must be a list of names, given {value!r}')
    for name in value:
        if not isinstance(name, str) or not _CAMERA_NAME.fullmatch(name):
            raise ParameterError(f'{name!r} cannot be a camera: names are like left or rig/left')
    if len(set(value)) != len(value):
        raise ParameterError(f'cameras are named twice: {", ".join(value)}')


def _descriptor(info: ParameterInfo) -> Any:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(description=info.description, read_only=info.read_only)
    if info.minimum is not None and info.maximum is not None:
        if isinstance(info.default, float):
            limits = FloatingPointRange(from_value=info.minimum, to_value=info.maximum)
            descriptor.floating_point_range = [limits]
        else:
            limits = IntegerRange(from_value=int(info.minimum), to_value=int(info.maximum))
            descriptor.integer_range = [limits]
    constraints = []
    if info.choices:
        constraints.append(f'one of {", ".join(info.choices)}')
    if info.needs_cleanup:
        constraints.append('can be set only while the node is unconfigured')
    descriptor.additional_constraints = '; '.join(constraints)
    return descriptor


def declare(node: Any) -> dict[str, str]:
    """Declare every parameter on a node.

    An override that rclpy refuses leaves the default in place.

    Returns:
        Reason by parameter for the refused ones; empty if all is well.
    """
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    refused = {}
    for name, info in PARAMETERS.items():
        default = list(info.default) if isinstance(info.default, tuple) else info.default
        try:
            node.declare_parameter(name, default, _descriptor(info))
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            refused[name] = str(error)
            node.declare_parameter(name, default, _descriptor(info), ignore_override=True)
    return refused


def read(
    node: Any, changes: dict[str, Any] | None = None, refused: dict[str, str] | None = None
) -> NodeParameters:
    """Values of a node's declared parameters.

    Args:
        node: with the parameters declared.
        changes: values that take the place of the node's.
        refused: what :func:`declare` returned, less what was set since.

    Raises:
        ParameterError: a value, or two together, that the node cannot work with, all in one line.
    """
    values = {name: node.get_parameter(name).value for name in PARAMETERS}
    values.update(changes or {})
    problems = list((refused or {}).values())
    for name, value in values.items():
        try:
            check(name, value)
        except ParameterError as error:
            problems.append(str(error))
    if problems:
        raise ParameterError('; '.join(problems))
    return NodeParameters(**values)


def is_valid(node: Any) -> bool:
    """Whether the values that a node has now are ones that it can work with."""
    try:
        read(node)
    except ParameterError:
        return False
    return True


def unknown_overrides(node: Any) -> list[str]:
    """Lines about overrides (command line, YAML) that name no parameter: likely misspelt."""
    lines = []
    for name in getattr(node, '_parameter_overrides', {}):
        if not node.has_parameter(name) and not name.startswith('qos_overrides.'):
            near = get_close_matches(name, PARAMETERS, n=1)
            hint = f', did you mean {near[0]}?' if near else ''
            lines.append(f'parameter {name} is unknown and has no effect{hint}')
    return lines
