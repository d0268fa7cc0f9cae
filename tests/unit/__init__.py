# SPDX-License-Identifier: Apache-2.0
"""Tests without processes and without ioctls. Any user can run them; they leave nothing behind."""
