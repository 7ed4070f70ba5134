# SPDX-License-Identifier: Apache-2.0
"""Networks: RAFT, SEA-RAFT, the DiT4SR transformer, its lifting, DPT heads and DA-Flow."""
