# SPDX-License-Identifier: Apache-2.0
"""The flow node in a process of its own, for tools that need one to talk to."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

#: Seconds that the node gets to end after each signal.
STOP_TIMEOUT = 10.0


class NodeProcessError(RuntimeError):
    """The node has ended or does not start; the message holds the end of its log."""


class NodeProcess:
    """``daflow node`` as a child process.

    Ctrl-C in the terminal does not reach it: whoever started it stops it, after its own work.

    Args:
        log: file for its output.
        parameters: ROS parameters of the node.
        remaps: names it is given.
        arguments: further arguments of ``daflow node``.
    """

    def __init__(
        self,
        log: Path,
        parameters: Mapping[str, Any],
        remaps: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        command = [sys.executable, '-m', 'daflow_ros.cli', 'node', *arguments, '--ros-args']
        for old, new in (remaps or {}).items():
            command += ['-r', f'{old}:={new}']
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += ['-p', f'{name}:={text}']
        self.log = log
        with log.open('wb') as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def log_tail(self, lines: int = 15) -> str:
        """End of the node's output."""
        text = self.log.read_text(encoding='utf-8', errors='replace')
        return '\n'.join(text.splitlines()[-lines:])

    def check(self) -> None:
        """Raise unless the node is running.

        Raises:
            NodeProcessError: it has ended.
        """
        status = self._process.poll()
        if status is not None:
            raise NodeProcessError(
                f'the node has ended with status {status}; its log {self.log} ends with\n'
                f'{self.log_tail()}'
            )

    def stop(self) -> int:
        """End the node, politely at first; returns its exit status."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                continue
        return int(self._process.wait())
