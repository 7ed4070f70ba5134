#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/test_colcon.sh VENV [PYTEST_OPTION...]
# colcon build and colcon test in a temporary workspace against the ROS wheels of the environment.
# Without options the tests that concern the installed package are run; all of them are run by
# pytest (make test) and by colcon test in a workspace of yours.
set -eu
venv=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- -k 'package or launch or transport'
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv" PATH="$venv/bin:$PATH"
export COLCON_LOG_PATH="$work/log"

colcon build --paths "$root" --event-handlers console_cohesion+ --cmake-args \
  -DPython3_EXECUTABLE="$venv/bin/python" \
  -DCMAKE_PROJECT_daflow_ros_INCLUDE="$root/cmake/wheel_prefix.cmake" >build.log 2>&1 ||
  { cat build.log; exit 1; }
prefix=$work/install/daflow_ros
for file in bin/daflow lib/daflow_ros/daflow_node share/daflow_ros/config/fastdds.xml; do
  test -f "$prefix/$file" || { echo "colcon did not install $file"; exit 1; }
done
help=$(PYTHONPATH=$(echo "$prefix"/lib/python3.*/site-packages) "$prefix/bin/daflow" --help)
case $help in
  *doctor*) ;;
  *) echo "daflow --help said: $help"; exit 1 ;;
esac
for option; do
  quoted="${quoted-} '$option'"
done
PYTEST_ADDOPTS="$quoted" colcon test --paths "$root" --event-handlers console_direct+ \
  --return-code-on-test-failure
colcon test-result --verbose
