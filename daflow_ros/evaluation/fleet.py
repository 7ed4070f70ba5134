# SPDX-License-Identifier: Apache-2.0
"""Many recordings at once, on Ray: this machine's cores or an existing cluster.

Each recording is one task. What a task has finished is in the output folder, which all machines
of a cluster must see under the same path, as they must see the recordings: a second run finds it
there and does only the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from daflow_ros.datasets.benchmarks import is_benchmark
from daflow_ros.datasets.recordings import VIDEO_SUFFIXES
from daflow_ros.evaluation.runner import Settings, SourceResult, evaluate_source

_BAGS = frozenset({'.mcap', '.db3', '.bag'})


class FleetError(ValueError):
    """Ray is not installed or cannot be reached."""


def _recordings_in(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file():
            known = path.suffix.lower() in _BAGS | VIDEO_SUFFIXES
        else:
            known = (path / 'metadata.yaml').exists() or any(
                child.suffix in _BAGS for child in path.iterdir()
            )
        if known:
            yield path


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Replace a folder of recordings by the recordings in it.

    A bag (a folder with metadata.yaml), a benchmark and a folder of images stay what they are;
    a folder that holds one recording or more and no metadata.yaml is taken apart.
    """
    found: list[str] = []
    for source in sources:
        path = Path(source)
        inside: list[Path] = []
        if path.is_dir() and not (path / 'metadata.yaml').exists() and not is_benchmark(path):
            inside = list(_recordings_in(path))
        found += [str(child) for child in inside] or [source]
    return list(dict.fromkeys(found))


def evaluate_fleet(
    sources: Sequence[str], settings: Settings, output: str | Path, address: str,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[list[SourceResult], dict[str, str]]:
    """Evaluate all sources on Ray.

    Args:
        sources: paths, the same on all machines.
        settings: of the run.
        output: folder, the same on all machines.
        address: `local` starts Ray on this machine; `auto` or host:port joins a cluster.
        progress: told of each source that is done.

    Returns:
        The results in the order of the sources, and what failed with its reason.

    Raises:
        FleetError: no Ray, or none at the address.

    """
    try:
        import ray
    except ImportError as error:
        raise FleetError("Ray is not installed: pip install 'daflow_ros[fleet]'") from error
    try:
        if address == 'local':
            ray.init(address='local', include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise FleetError(f'no Ray at {address}: {error}') from error
    output = str(Path(output).resolve())
    results: dict[str, SourceResult] = {}
    failed: dict[str, str] = {}
    try:
        gpu = settings.device != 'cpu' and ray.cluster_resources().get('GPU', 0) > 0
        # A task that lost its machine is tried once more; one that failed is not.
        task = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0, max_retries=1)(evaluate_source)
        running: dict[Any, str] = {
            task.remote(str(Path(source).resolve()), settings, output): source
            for source in sources
        }
        while running:
            [done], _ = ray.wait(list(running), num_returns=1)
            source = running.pop(done)
            count = f'{len(sources) - len(running)}/{len(sources)}'
            try:
                results[source] = ray.get(done)
                before = '' if results[source].fresh else ', done before'
                progress(f'{count}: {source}{before}')
            except ray.exceptions.RayTaskError as error:
                failed[source] = str(error.cause or error)
                progress(f'{count}: {source} failed')
            except ray.exceptions.RayError as error:
                failed[source] = f'{source}: {type(error).__name__}: {error}'.splitlines()[0]
                progress(f'{count}: {source} failed')
    finally:
        ray.shutdown()
    return [results[source] for source in sources if source in results], failed
