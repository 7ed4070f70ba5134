# SPDX-License-Identifier: Apache-2.0
"""Verbs of the `daflow` command line, one module each."""
