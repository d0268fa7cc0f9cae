# SPDX-License-Identifier: Apache-2.0
"""Tests without processes and without ioctls. They run as root and leave nothing behind."""
