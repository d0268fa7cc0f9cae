# SPDX-License-Identifier: Apache-2.0
"""Tests in a whole virtual machine: a kernel, a first boot and disks of its own."""
