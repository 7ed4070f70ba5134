# SPDX-License-Identifier: Apache-2.0
#
# From a bare Debian or Ubuntu machine with git, make, cmake, gcc, g++ and Python 3.10 to 3.13 with
# venv. No ROS distribution is needed or used: .venv holds the ROS wheels. In a ROS workspace use
# colcon instead.

VENV ?= .venv
PYTHON ?= $(shell tools/find_python.sh)
SOURCE ?=
bin := $(abspath $(VENV))/bin

# The wheels in .venv must not mix with a distribution that the shell has sourced.
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH
unexport ROS_DISTRO ROS_VERSION RMW_IMPLEMENTATION

sources := $(shell find daflow_ros msg config launch scripts cmake -type f ! -name '*.pyc') \
  CMakeLists.txt package.xml setup.py pyproject.toml

.PHONY: help setup demo test lint test-colcon test-jazzy develop clean

help:
	@echo 'make demo               replay a recording in bad weather through the live node'
	@echo 'make demo SOURCE=path   the same with a bag, a video or a folder of images of yours'
	@echo 'make test               lint, tests, colcon build and colcon test'
	@echo 'make lint               ruff and mypy'
	@echo 'make setup              only create $(VENV) and install everything into it'
	@echo 'make develop            use the sources in place; again after a change of msg/'
	@echo 'make test-jazzy         build against the ROS 2 Jazzy wheels'

# --- Environment ---

$(VENV)/.ready: requirements.txt requirements-ros.txt requirements-dev.txt tools/install.sh
	tools/install.sh '$(PYTHON)' '$(VENV)'
	touch $@

# The package, installed by pip; the sources in place after `make develop`.
$(VENV)/.installed: $(VENV)/.ready $(sources)
	test -e $(VENV)/.develop || \
	  $(bin)/python -m pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	touch $@

setup: $(VENV)/.installed

develop: $(VENV)/.ready
	tools/develop.sh '$(VENV)'
	touch $(VENV)/.develop $(VENV)/.installed

# --- Use ---

demo: setup
	$(bin)/daflow demo $(if $(SOURCE),'$(SOURCE)')

# --- Checks ---

lint: $(VENV)/.ready
	$(bin)/ruff check .
	$(bin)/mypy

test: lint test-colcon setup
	$(bin)/pytest -q

test-colcon: $(VENV)/.ready
	tools/test_colcon.sh '$(VENV)'

test-jazzy:
	tools/test_jazzy.sh '$(PYTHON)'

clean:
	rm -rf build install log dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
