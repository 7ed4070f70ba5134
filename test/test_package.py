# SPDX-License-Identifier: Apache-2.0
"""The package as it is built and installed: manifests, messages, files."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import daflow_ros

ROOT = Path(__file__).resolve().parents[1]
FIELD = re.compile(r'^\s*([\w/]+(?:\[\d*\])?)\s+(\w+)(=\w+)?\s*(#.*)?$')


def tracked_files():
    """Files of the source tree that git knows or would take in."""
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip('not a git checkout')
    return [path for path in map(Path, listed.stdout.splitlines()) if (ROOT / path).is_file()]


def test_versions_agree():
    manifest = ElementTree.parse(ROOT / 'package.xml').findtext('version')
    assert daflow_ros.__version__ == manifest
    assert f'{manifest} (' in (ROOT / 'CHANGELOG.rst').read_text()


def test_manifest_is_valid():
    catkin_pkg = pytest.importorskip('catkin_pkg.package')
    package = catkin_pkg.parse_package(str(ROOT / 'package.xml'))
    warnings = []
    package.validate(warnings=warnings)
    assert warnings == []
    assert package.package_format == 3
    assert {'rosidl_interface_packages'} == {group.name for group in package.member_of_groups}


def test_manifest_declares_imported_ros_packages():
    """Every ROS package that the code imports is a dependency in package.xml."""
    manifest = ElementTree.parse(ROOT / 'package.xml').getroot()
    declared = {element.text for element in manifest if element.tag.endswith('depend')}
    known = re.compile(
        r'^\s*(?:from|import) '
        r'(rclpy|\w+_msgs|\w+_interfaces|std_srvs|cv_bridge|launch|launch_ros|ament_index_python'
        r'|sensor_msgs_py|message_filters|diagnostic_updater|tf2_ros|rosbag2_py)\b',
        re.MULTILINE,
    )
    used = {}
    for folder in ('daflow_ros', 'launch', 'scripts'):
        for path in (ROOT / folder).rglob('*'):
            if path.is_file() and path.suffix in ('.py', ''):
                for name in known.findall(path.read_text()):
                    used.setdefault(name, path)
    assert {name: path for name, path in used.items() if name not in declared} == {}
    assert 'rclpy' in used


@pytest.mark.parametrize('name', ['FlowField', 'FlowStats'])
def test_message_matches_its_source(name):
    """The generated message has the fields of the .msg file, each with a comment."""
    messages = pytest.importorskip('daflow_ros.msg')
    fields, undocumented, previous = {}, [], ''
    for line in (ROOT / 'msg' / f'{name}.msg').read_text().splitlines():
        match = FIELD.match(line)
        if match and not line.startswith('#'):
            kind, field, constant, comment = match.groups()
            if constant:
                assert getattr(getattr(messages, name), field) == int(constant[1:])
            else:
                fields[field] = kind
            # A comment above may stand for a run of fields.
            if not comment and not previous:
                undocumented.append(field)
        else:
            previous = line.strip()
    assert undocumented == []
    generated = {
        field: kind.replace('/msg/', '/')
        for field, kind in getattr(messages, name).get_fields_and_field_types().items()
    }
    same = {'float': 'float32', 'double': 'float64'}
    assert {field: same.get(kind, kind) for field, kind in generated.items()} == fields


def test_messages_convert_from_arrays():
    """A message keeps what is put into each kind of field, through serialization."""
    messages = pytest.importorskip('daflow_ros.msg')
    serialization = pytest.importorskip('rclpy.serialization')
    field = messages.FlowField(model='dis', refinement_iterations=65535, direction=1)
    field.header.frame_id = 'camera_optical'
    field.target_stamp.sec, field.target_stamp.nanosec = 2**31 - 1, 999_999_999
    field.flow.data = bytes(range(256))
    copy = serialization.deserialize_message(
        serialization.serialize_message(field), messages.FlowField
    )
    assert copy == field
    stats = messages.FlowStats(received=2**64 - 1, rate=29.5)
    assert stats.received == 2**64 - 1


def test_core_imports_without_ros():
    """Every module outside the rim imports where rclpy and the messages do not exist."""
    code = f"""
import importlib, pathlib, pkgutil, sys
class NoRos:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {{'rclpy', 'sensor_msgs', 'std_msgs', 'rcl_interfaces'}} \\
                or name.startswith('daflow_ros.msg'):
            raise ModuleNotFoundError(f'hidden: {{name}}')
sys.meta_path.insert(0, NoRos())
sys.path.insert(0, {str(ROOT)!r})
import daflow_ros
assert not {{'rclpy', 'torch', 'cv2'}} & set(sys.modules), 'import daflow_ros is not lazy'
count = 0
for floor in ('flow', 'models', 'estimators', 'degradation', 'datasets', 'training', 'evaluation'):
    package = importlib.import_module('daflow_ros.' + floor)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):
        importlib.import_module(module.name)
        count += 1
import daflow_ros.cli
print(count)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


#: From the lowest; folders of one floor may import each other.
FLOORS = (
    ('allocator', 'flow'),
    ('models',),
    ('estimators',),
    ('degradation', 'datasets', 'training', 'evaluation'),
    ('msg', 'ros'),
    ('commands', 'cli'),
)


def imports_of(path):
    """Dotted names of all that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: a relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_floors():
    """No folder imports from a floor above its own, and rclpy is for the rim alone."""
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    package = ROOT / 'daflow_ros'
    faults, seen = [], set()
    for path in package.rglob('*.py'):
        part = path.relative_to(package).parts[0].removesuffix('.py')
        if part == '__init__':  # the library's face, which takes its names from estimators
            continue
        for name in imports_of(path):
            root, _, rest = name.partition('.')
            other = rest.partition('.')[0]
            if root == 'daflow_ros' and other not in ('', '__version__'):
                seen.add((part, other))
                if floor_of[other] > floor_of[part]:
                    faults.append(f'{path.relative_to(ROOT)} imports {name}')
            elif root == 'rclpy' and part != 'ros':
                faults.append(f'{path.relative_to(ROOT)} imports rclpy')
    assert faults == []
    assert {('commands', 'ros'), ('estimators', 'models'), ('cli', 'allocator')} <= seen


def test_source_files():
    """SPDX header, line length, and nothing that belongs to one machine."""
    foreign = re.compile('|'.join(['/ro' + 'ot/', '/wo' + 'rk/', '/ho' + r'me/\w+/\w']))
    faults = []
    for path in tracked_files():
        suffixes = ('.py', '.sh', '.msg', '.cmake', '.yaml', '.toml')
        if path.suffix not in suffixes and path.name not in ('Makefile', 'run', 'CMakeLists.txt'):
            continue
        text = (ROOT / path).read_text()
        if text.strip() and 'SPDX-License-Identifier: Apache-2.0' not in text[:200]:
            faults.append(f'{path}: no SPDX header')
        for number, line in enumerate(text.splitlines(), 1):
            # As ruff, leaving aside what speaks to the linters.
            if len(re.sub(r'  # (type: ignore|noqa).*', '', line)) > 99:
                faults.append(f'{path}:{number}: longer than 99 columns')
            if foreign.search(line):
                faults.append(f'{path}:{number}: a path of one machine')
    assert faults == []


def test_every_python_folder_is_a_package():
    """setup.py installs packages only: a folder without __init__.py would be left out."""
    folders = {path.parent for path in tracked_files() if path.suffix == '.py'}
    missing = [
        str(folder)
        for folder in sorted(folders)
        if folder.parts[:1] == ('daflow_ros',) and not (ROOT / folder / '__init__.py').is_file()
    ]
    assert missing == []


def test_imports_are_required():
    """Every library is in requirements.txt or package.xml, or imported where it may fail."""
    packages = {'PIL': 'pillow', 'cv2': 'opencv-python', 'yaml': 'PyYAML'}
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    required = {re.split(r'[^\w-]', line)[0] for line in lines if line and line[0] != '#'}
    manifest = ElementTree.parse(ROOT / 'package.xml').getroot()
    required |= {element.text for element in manifest if element.tag.endswith('depend')}
    imported = {}
    for path in (ROOT / 'daflow_ros').rglob('*.py'):
        tree = ast.parse(path.read_text())
        optional = {
            statement
            for node in ast.walk(tree)
            if isinstance(node, ast.Try)
            and any('ImportError' in ast.dump(handler) for handler in node.handlers)
            for statement in node.body
        }
        for node in ast.walk(tree):
            if node in optional:
                continue
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            imported.update({name.split('.')[0]: path.name for name in names})
    known = set(sys.stdlib_module_names) | {'daflow_ros'}
    foreign = {packages.get(name, name): path for name, path in imported.items()}
    missing = {name: path for name, path in foreign.items() if name not in known | required}
    assert missing == {}


def test_requirements_are_installed():
    """requirements.txt can be met, and this environment meets it (names and lowest versions)."""
    requirements = pytest.importorskip('packaging.requirements')
    for line in (ROOT / 'requirements.txt').read_text().splitlines():
        if line and not line.startswith('#'):
            requirement = requirements.Requirement(line)
            try:
                version = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                # A distribution's Debian packages carry other names for a few (OpenCV, PyYAML).
                continue
            assert requirement.specifier.contains(version, prereleases=True), line
