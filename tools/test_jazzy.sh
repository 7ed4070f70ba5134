#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/test_jazzy.sh PYTHON
# colcon build against the ROS 2 Jazzy wheels in a throwaway environment, then the
# transport tests between two processes.
set -eu
python=$1
[ -n "$python" ] || exit 1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=$work/venv
"$python" -m venv "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
  -r "$root/tools/requirements-jazzy.txt"
cd "$work"
export AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv" PATH="$venv/bin:$PATH"
export COLCON_LOG_PATH="$work/log"

colcon build --paths "$root" --event-handlers console_cohesion+ --cmake-args \
  -DPython3_EXECUTABLE="$venv/bin/python" \
  -DCMAKE_PROJECT_daflow_ros_INCLUDE="$root/cmake/wheel_prefix.cmake" >build.log 2>&1 ||
  { cat build.log; exit 1; }
tail -n 2 build.log

prefix=$work/install/daflow_ros
site=$(echo "$prefix"/lib/python3.*/site-packages)
export LD_LIBRARY_PATH="$prefix/lib" PYTHONPATH="$site"
"$venv/bin/python" -m pytest -q -p no:cacheprovider "$root/test/test_transport.py"
