# SPDX-License-Identifier: Apache-2.0
"""Flow fields as arrays: padding, warping, consistency, colours, metrics and file formats.

The lowest floor of the package. `padding` and `warping` need torch, the others only numpy;
nothing is imported here, so that a reader of flow files does not pay for torch.
"""
