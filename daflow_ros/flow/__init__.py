# SPDX-License-Identifier: Apache-2.0
"""Flow fields as arrays: matching, consistency, mending, colours, metrics and file formats.

The lowest floor of the package. `padding` needs torch, the others numpy and OpenCV; nothing is
imported here, so that a reader of flow files does not pay for torch.
"""
