#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/install.sh PYTHON VENV
# Creates the virtual environment and installs everything but the package itself.
set -eu
python=$1
venv=$2
[ -n "$python" ] || exit 1

for tool in cmake gcc g++; do
  if ! command -v "$tool" >/dev/null; then
    echo "$tool is missing (Debian, Ubuntu: apt install build-essential cmake)." >&2
    exit 1
  fi
done

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"

# Without an NVIDIA GPU the CUDA build of torch would be gigabytes for nothing: take the newest CPU
# build that pip's configured sources have (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS may name them).
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  torch='torch>=2.4'
  if ! nvidia-smi >/dev/null 2>&1; then
    cpu=$($pip index versions torch 2>/dev/null | tr ' ,' '\n\n' | grep -m 1 '+cpu$' || true)
    if [ -n "$cpu" ]; then
      torch="torch==$cpu"
    else
      echo 'pip finds no CPU build of torch: installing the default one, which may be large.' >&2
    fi
  fi
  $pip install "$torch"
fi
$pip install -r requirements.txt -r requirements-ros.txt -r requirements-dev.txt
$pip check
