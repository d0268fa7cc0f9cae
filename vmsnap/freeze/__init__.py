# SPDX-License-Identifier: Apache-2.0
"""Which filesystems are frozen, and that they are certainly thawed: plan, guard, freezer, thaw."""
