# SPDX-License-Identifier: Apache-2.0
"""The thread that owns the estimator and serves the frame buffers of one or more cameras."""

from __future__ import annotations

import sys
import time
from threading import Condition, Thread
from typing import Any, Protocol

import numpy as np

from daflow_ros.estimators import EstimatorError, FlowEstimate, FlowEstimator
from daflow_ros.ros.frame_buffer import Pair
from daflow_ros.ros.iteration_budget import IterationBudget


class Client(Protocol):
    """A camera, as the server sees it. All three are called on the server's thread."""

    def take(self) -> Pair | None:
        """The pair to work on next, or None."""

    def finished(self, pair: Pair, estimate: FlowEstimate) -> None:
        """Flow of a pair that was taken."""

    def failed(self, pair: Pair, error: Exception) -> None:
        """The estimator raised on a pair that was taken."""


class ModelServer:
    """Runs one estimator for all cameras, off the executor's threads.

    Cameras are served in turn: one that has a pair waits for at most one pair of every other.

    Args:
        estimator: the model; only the server's thread calls it.
    """

    def __init__(self, estimator: FlowEstimator) -> None:
        self.estimator = estimator
        self.iterations = 0
        self.deadline = 0.0
        #: Longest that a pair has taken so far, s.
        self.longest = 0.0
        self._budget = IterationBudget()
        self._clients: list[Client] = []
        self._condition = Condition()
        self._stopping = False
        self._busy_since: float | None = None
        self._thread = Thread(target=self._run, name='model_server', daemon=True)

    def add(self, client: Client) -> None:
        """Serve one more camera."""
        with self._condition:
            self._clients.append(client)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def notify(self) -> None:
        """Tell that a camera may have a pair."""
        with self._condition:
            self._condition.notify()

    def stop(self, timeout: float) -> bool:
        """Stop after the pair in work, waiting at most ``timeout`` s; whether it has stopped."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def busy_for(self) -> float:
        """Seconds since the pair in work was begun, 0 while there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _next(self) -> tuple[Client, Pair] | None:
        for index, client in enumerate(self._clients):
            pair = client.take()
            if pair is not None:
                self._clients.append(self._clients.pop(index))
                return client, pair
        return None

    def _run(self) -> None:
        while True:
            with self._condition:
                work = self._next()
                while work is None and not self._stopping:
                    self._condition.wait()
                    work = self._next()
                if self._stopping:
                    return
            assert work is not None
            client, pair = work
            self._busy_since = time.monotonic()
            try:
                estimate = self._estimate(pair)
                self.longest = max(self.longest, self.busy_for)
                client.finished(pair, estimate)
            except Exception as error:  # a model may raise anything, and the node must live
                client.failed(pair, error)
            finally:
                self._busy_since = None

    def _estimate(self, pair: Pair) -> FlowEstimate:
        """Flow of a pair, with a second try after the device's memory ran out.

        Raises:
            EstimatorError: among others a result that is not finite or not of the images' size.
        """
        try:
            estimate = self._run_model(pair)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            retry = True
        else:
            retry = False
        if retry:
            # Outside of the handler: its traceback would keep the tensors that filled the memory.
            empty_cache()
            try:
                estimate = self._run_model(pair)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                height, width = pair.reference.image.shape[:2]
                raise EstimatorError(
                    f'out of device memory at {width}x{height}, twice: {error}'
                ) from None
        shape = estimate.flow.shape
        if shape != (*pair.reference.image.shape[:2], 2):
            raise EstimatorError(f'the flow is {shape}, the image {pair.reference.image.shape}')
        if not np.isfinite(estimate.flow).all():
            raise EstimatorError('the flow is not finite')
        return estimate

    def _run_model(self, pair: Pair) -> FlowEstimate:
        iterations = self.iterations or None
        timed = self.estimator.default_iterations > 0
        if timed and self.deadline > 0:
            full = self.iterations or self.estimator.default_iterations
            iterations = self._budget.choose(full, self.deadline)
        estimate = self.estimator.estimate(
            pair.reference.image, pair.target.image, iterations=iterations
        )
        if timed and estimate.iterations > 0:
            self._budget.measured(estimate.iterations, estimate.processing_time)
        return estimate


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is CUDA's out of memory."""
    # A model that runs on CUDA has imported torch; nothing else has to.
    torch: Any = sys.modules.get('torch')
    while torch is not None and error is not None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return True
        error = error.__cause__
    return False


def empty_cache() -> None:
    """Give the device memory that torch holds in reserve back."""
    torch: Any = sys.modules.get('torch')
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
