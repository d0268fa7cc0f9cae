# SPDX-License-Identifier: Apache-2.0
"""Sessions on real filesystems: root, loop devices, the installed program as a process.

Nothing of vmsnap is imported here; the tests see what a user sees.
"""
