# SPDX-License-Identifier: Apache-2.0
"""Recordings, benchmarks and the demo sequence: sources of frames and of ground truth."""
