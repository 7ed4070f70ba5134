# SPDX-License-Identifier: Apache-2.0
"""The Fast DDS profile that carries camera images, and what shared memory has room for.

With Fast DDS as it comes the shared-memory segment is smaller than a 640x480 rgb8 frame, and
best-effort images are lost almost all. The profile shipped in ``config/fastdds.xml`` gives each
process a larger segment. Fast DDS reads it when the first participant is created, so the
environment has to be set before ``rclpy.init``, in both processes.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from daflow_ros.ros.share import share_file

#: Environment variable that names the profile, for Fast DDS 3 (ROS 2 Kilted and later) and for
#: the versions before it (Jazzy), which do not know the new name.
PROFILE_VARIABLE = 'FASTDDS_DEFAULT_PROFILES_FILE'
OLD_PROFILE_VARIABLE = 'FASTRTPS_DEFAULT_PROFILES_FILE'
#: Segment of Fast DDS without a profile, bytes.
DEFAULT_SEGMENT_SIZE = 512 * 1024
SHARED_MEMORY = Path('/dev/shm')  # noqa: S108

# Fast DDS (fastrtps_ before version 3) names a segment after 16 hexadecimal digits and keeps a
# file NAME_el beside it, which its process holds locked while it lives.
_SEGMENT = re.compile(r'(fastrtps|fastdds)_[0-9a-f]{16}')
# A port, likewise: a queue that one process reads and any other may write to.
_PORT = re.compile(r'(fastrtps|fastdds)_port[0-9]+')


@dataclass(frozen=True)
class SharedMemory:
    """Room in the shared memory that Fast DDS uses.

    Attributes:
        total: size of the file system, bytes.
        free: free bytes.
        segments: segments of Fast DDS there, of living and dead processes.
        stale: segments whose process is gone (killed before it could clean up).
    """

    total: int
    free: int
    segments: tuple[Path, ...]
    stale: tuple[Path, ...]

    @property
    def stale_bytes(self) -> int:
        """Bytes that the stale segments hold."""
        return sum(path.stat().st_size for path in self.stale if path.exists())


def profile_variable(prefixes: Sequence[str] | None = None) -> str:
    """Name of the environment variable that the installed Fast DDS reads.

    Only that one may be set: Fast DDS 3 reads a profile under the old name a second time and then
    refuses it.

    Args:
        prefixes: install prefixes to look in, None for those of the ROS environment.
    """
    if prefixes is None:
        prefixes = [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]
    for prefix in prefixes:
        share = Path(prefix) / 'share'
        if prefix and (share / 'fastdds').is_dir():
            return PROFILE_VARIABLE
        # The package's name up to version 2.
        if prefix and (share / 'fastrtps').is_dir():
            return OLD_PROFILE_VARIABLE
    return PROFILE_VARIABLE


def user_profile(environ: Mapping[str, str] | None = None) -> Path | None:
    """The profile that the environment names, under either name, or None."""
    environ = os.environ if environ is None else environ
    for variable in (PROFILE_VARIABLE, OLD_PROFILE_VARIABLE):
        if environ.get(variable):
            return Path(environ[variable])
    return None


def use_shipped_profile(environ: MutableMapping[str, str] | None = None) -> Path:
    """Name the shipped profile in the environment unless the user has named one.

    To be called before ``rclpy.init``; child processes inherit the setting.

    Returns:
        The profile that is named then.

    Raises:
        FileNotFoundError: the shipped profile is not installed.
    """
    environ = os.environ if environ is None else environ
    named = user_profile(environ)
    if named is not None:
        return named
    profile = share_file('config', 'fastdds.xml')
    environ[profile_variable()] = str(profile)
    return profile


def segment_size(profile: Path | None) -> int | None:
    """Shared-memory segment that a profile gives each process, bytes.

    Args:
        profile: an XML profile of Fast DDS; None for Fast DDS without a profile.

    Returns:
        The segment's size, or None where the profile switches shared memory off.

    Raises:
        ValueError: the file cannot be read or is not XML of Fast DDS profiles.
    """
    if profile is None:
        return DEFAULT_SEGMENT_SIZE
    try:
        root = ElementTree.parse(profile).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f'{profile}: cannot read the Fast DDS profile: {error}') from error
    transports = {}
    builtin, used = True, []
    for element in root.iter():
        tag = _local_name(element)
        if tag == 'transport_descriptor':
            values = {_local_name(child): (child.text or '').strip() for child in element}
            transports[values.get('transport_id', '')] = values
        elif tag == 'useBuiltinTransports':
            builtin = (element.text or '').strip().lower() != 'false'
        elif tag == 'userTransports':
            used += [(child.text or '').strip() for child in element]
    sizes = []
    for name in used:
        values = transports.get(name, {})
        if values.get('type') == 'SHM':
            sizes.append(int(values.get('segment_size') or DEFAULT_SEGMENT_SIZE))
    if sizes:
        return max(sizes)
    return DEFAULT_SEGMENT_SIZE if builtin else None


def shared_memory(folder: Path = SHARED_MEMORY) -> SharedMemory | None:
    """What is in the shared memory; None on a system without ``/dev/shm``."""
    if not folder.is_dir():
        return None
    usage = shutil.disk_usage(folder)
    segments, stale = [], []
    for path in sorted(folder.iterdir()):
        if _SEGMENT.fullmatch(path.name):
            segments.append(path)
            if not _is_held(path.with_name(path.name + '_el')):
                stale.append(path)
    return SharedMemory(usage.total, usage.free, tuple(segments), tuple(stale))


def own_segments(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Shared-memory segments that Fast DDS made for this process."""
    return [path for path in _locked_here(folder) if _SEGMENT.fullmatch(path.name)]


def own_segment_size() -> int | None:
    """Shared-memory segment that Fast DDS made for this process, bytes, as the kernel tells it.

    Returns:
        The size, or None while this process has no participant or Fast DDS uses no shared memory.
    """
    return max((path.stat().st_size for path in own_segments()), default=None)


def remove_own_files(folder: Path = SHARED_MEMORY) -> None:
    """Remove what Fast DDS keeps in shared memory for this process.

    For a process that ends without closing its participants. Besides its segment these are the
    ports that it alone reads; who writes to one makes a new one for its next reader.
    """
    for path in _locked_here(folder):
        for name in (path.name, f'sem.{path.name}_mutex', f'{path.name}_el'):
            with suppress(OSError):
                path.with_name(name).unlink()


def _locked_here(folder: Path) -> list[Path]:
    """Segments and ports of Fast DDS whose lock file this process holds locked."""
    try:
        descriptors = os.listdir('/proc/self/fd')
    except OSError:  # not Linux
        return []
    paths = []
    for descriptor in descriptors:
        try:
            lock = Path(os.readlink(f'/proc/self/fd/{descriptor}'))
            info = Path(f'/proc/self/fdinfo/{descriptor}').read_text()
        except OSError:
            continue
        path = lock.with_name(lock.name.removesuffix('_el'))
        known = _SEGMENT.fullmatch(path.name) or _PORT.fullmatch(path.name)
        # Fast DDS opens the lock files of others too, to see whether they live.
        if known and lock.name.endswith('_el') and 'FLOCK' in info:
            paths.append(path)
    return [path for path in paths if path.parent == folder.resolve()]


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the lock file; True where that cannot be told."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _local_name(element: ElementTree.Element) -> str:
    """Tag without its XML namespace."""
    return element.tag.rpartition('}')[2]
