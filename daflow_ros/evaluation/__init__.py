# SPDX-License-Identifier: Apache-2.0
"""How far flow can be trusted: models side by side on recordings and benchmarks."""
