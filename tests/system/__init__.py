# SPDX-License-Identifier: Apache-2.0
"""Tests in a booted system: systemd, journal, installed units and a `/` that can be frozen.

The system is a container whose root is an ext4 superblock of its own, on a loop device."""
