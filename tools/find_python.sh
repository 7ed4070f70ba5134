#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints the first Python that the ROS wheels exist for (3.10 to 3.13) and that can make a venv.
for candidate in python3 python3.12 python3.11 python3.13 python3.10; do
  if "$candidate" -c 'import ensurepip, sys, venv
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    command -v "$candidate"
    exit 0
  fi
done
echo 'No Python 3.10 to 3.13 with venv found (Debian, Ubuntu: apt install python3-venv).' >&2
exit 1
