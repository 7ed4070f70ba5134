#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/develop.sh VENV
# Installs the generated messages into the environment and puts the source tree on its path, so
# that `daflow_ros` is the sources in place (they extend their path with the messages).
set -eu
venv=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/develop
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')

"$venv/bin/python" -m pip uninstall --quiet --yes daflow_ros
rm -rf "$site/daflow_ros"
export AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv" PATH="$venv/bin:$PATH"
cmake -S "$root" -B "$build" -DCMAKE_INSTALL_PREFIX="$venv" -DBUILD_TESTING=OFF \
  -DPython3_EXECUTABLE="$venv/bin/python" -DDAFLOW_MESSAGES_ONLY=ON \
  -DCMAKE_PROJECT_daflow_ros_INCLUDE="$root/cmake/wheel_prefix.cmake"
cmake --build "$build" --parallel "$(nproc)"
cmake --install "$build" >"$build/install.log"
# With these gone the folder is a portion of the package, and the sources are the package.
rm -rf "$site/daflow_ros/__init__.py" "$site/daflow_ros/__pycache__"
echo "$root" >"$site/daflow_ros_develop.pth"
cat >"$venv/bin/daflow" <<EOF
#!$venv/bin/python
import sys

from daflow_ros.cli import main

# Spawned processes (memory of the benchmark) import this file.
if __name__ == '__main__':
    sys.exit(main())
EOF
chmod +x "$venv/bin/daflow"
