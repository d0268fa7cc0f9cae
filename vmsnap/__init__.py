# SPDX-License-Identifier: Apache-2.0
"""Application-consistent snapshots of a Linux VM, from inside it."""

__version__ = "0.1.0"
