# SPDX-License-Identifier: Apache-2.0
"""Models named on the command line: NAME or NAME@WEIGHTS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daflow_ros.estimators import ESTIMATORS, EstimatorError, FlowEstimator, load_estimator


@dataclass(frozen=True)
class ModelSpec:
    """A model, its weights, and the label that it has in the tables."""

    name: str
    weights: str | None
    label: str

    def load(self, device: str) -> FlowEstimator:
        """Make the estimator; how often it refines is asked for pair by pair, as by the node.

        Raises:
            EstimatorError: see `load_estimator`.

        """
        return load_estimator(self.name, device=device, weights=self.weights)


def parse_models(text: str) -> list[ModelSpec]:
    """Read `dis,raft_small@raft-small.pth`.

    The label is the name; where a name occurs more than once, with its weights' name as well.

    Raises:
        EstimatorError: an unknown name, the same model twice, or none at all.

    """
    words = [word.strip() for word in text.split(',') if word.strip()]
    if not words:
        raise EstimatorError('no model named')
    parts = [word.partition('@')[::2] for word in words]
    names = [name for name, _ in parts]
    specs: list[ModelSpec] = []
    for name, weights in parts:
        if name not in ESTIMATORS:
            raise EstimatorError(f'unknown model {name!r}; there are {", ".join(ESTIMATORS)}')
        twice = names.count(name) > 1 and weights
        label = f'{name}@{Path(weights).stem}' if twice else name
        if any(spec.label == label for spec in specs):
            label = f'{name}@{weights}'
        if any(spec.label == label for spec in specs):
            raise EstimatorError(f'model {label} is named twice')
        specs.append(ModelSpec(name, weights or None, label))
    return specs
