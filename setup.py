# SPDX-License-Identifier: Apache-2.0
"""Installs the package with pip, for machines without a ROS workspace.

colcon does not read this file: CMakeLists.txt is the build. Here pip drives the same CMake, into
a stage folder, and takes the messages, their libraries and the shared files from there. ROS comes
from the wheels in the environment that pip installs into (requirements-ros.txt), or from a sourced
distribution.
"""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NAME = 'daflow_ros'


def requirements(name):
    """The requirements that a requirements file lists."""
    lines = (line.partition('#')[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


class BuildWithCMake(build_py):
    """Builds the Python package and, by CMake, the messages."""

    def run(self):
        """Build into ``build_lib``; name the libraries and shared files as data files."""
        # A file that was deleted from the sources must not stay in the wheel.
        shutil.rmtree(Path(self.build_lib) / NAME, ignore_errors=True)
        super().run()
        if self.editable_mode:
            raise SystemExit('pip install -e does not build messages: use `make develop`')
        stage = self.build_stage()
        [package] = stage.glob(f'**/*-packages/{NAME}')
        shutil.copytree(
            package,
            Path(self.build_lib) / NAME,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns('__pycache__', '*.c'),
        )
        files = {}
        for path in sorted([*stage.glob('lib/*.so*'), *stage.glob(f'lib/{NAME}/*')]):
            files.setdefault(path.parent, []).append(path)
        for path in sorted((stage / 'share').rglob('*')):
            # The prefixes of the machine that built the wheel mean nothing elsewhere.
            if path.is_file() and 'parent_prefix_path' not in path.parts:
                files.setdefault(path.parent, []).append(path)
        self.distribution.data_files = [
            (str(folder.relative_to(stage)), [os.path.relpath(path, ROOT) for path in paths])
            for folder, paths in files.items()
        ]

    def build_stage(self):
        """Configure, build and install with CMake; return the stage folder."""
        build = ROOT / 'build' / f'pip-cp{sys.version_info.major}{sys.version_info.minor}'
        stage = build / 'stage'
        shutil.rmtree(build, ignore_errors=True)
        environment = dict(os.environ)
        # pip's isolated build environment, which hides the wheels from the interpreter.
        environment.pop('PYTHONPATH', None)
        options = [f'-DPython3_EXECUTABLE={sys.executable}', '-DBUILD_TESTING=OFF']
        if (Path(sys.prefix) / 'share' / 'ament_cmake').is_dir():
            environment['AMENT_PREFIX_PATH'] = environment['CMAKE_PREFIX_PATH'] = sys.prefix
            environment['PATH'] = f'{sys.prefix}/bin{os.pathsep}{environment["PATH"]}'
            hook = ROOT / 'cmake' / 'wheel_prefix.cmake'
            options.append(f'-DCMAKE_PROJECT_{NAME}_INCLUDE={hook}')
        elif os.environ.get('AMENT_PREFIX_PATH'):
            environment['PYTHONPATH'] = os.environ.get('PYTHONPATH', '')
        else:
            raise SystemExit(
                'No ROS 2 found: install its wheels first (pip install -r requirements-ros.txt) '
                'or source a distribution (source /opt/ros/$ROS_DISTRO/setup.bash).'
            )
        for tool in ('cmake', 'c++'):
            if shutil.which(tool) is None:
                raise SystemExit(f'{tool} is missing (Debian, Ubuntu: cmake, g++).')
        jobs = str(os.cpu_count() or 1)
        for command in (
            ['cmake', '-S', str(ROOT), '-B', str(build), f'-DCMAKE_INSTALL_PREFIX={stage}',
             *options],
            ['cmake', '--build', str(build), '--parallel', jobs],
            ['cmake', '--install', str(build)],
        ):
            subprocess.run(command, check=True, env=environment)
        return stage


class BinaryDistribution(Distribution):
    """Holds compiled type support, so that its wheel is for one platform and Python."""

    def has_ext_modules(self):
        """Say that the wheel is not pure Python."""
        return True


setup(
    name=NAME,
    version=ElementTree.parse(ROOT / 'package.xml').findtext('version'),
    description='Degradation-aware dense optical flow for ROS 2',
    long_description=(ROOT / 'README.md').read_text() if (ROOT / 'README.md').is_file() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={
        NAME: ['py.typed', 'weights/*', 'weights/**/*', 'evaluation/*.j2', 'evaluation/*.csv'],
    },
    install_requires=requirements('requirements.txt'),
    extras_require={
        'fleet': ['ray>=2.9'],
        'ros': requirements('requirements-ros.txt'),
        'test': requirements('requirements-dev.txt'),
    },
    entry_points={'console_scripts': ['daflow = daflow_ros.cli:main']},
    cmdclass={'build_py': BuildWithCMake},
    distclass=BinaryDistribution,
    zip_safe=False,
)
