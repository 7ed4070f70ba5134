# SPDX-License-Identifier: Apache-2.0
"""Training of daflow_tiny, raft_tiny and the paper-size model on data this package generates."""
