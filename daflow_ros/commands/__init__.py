# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``daflow``: each module has ``add_arguments(parser)`` and ``run(args) -> int``."""
