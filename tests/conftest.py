# SPDX-License-Identifier: Apache-2.0
"""What every tier of tests shares."""

from __future__ import annotations

from hypothesis import settings

# Nothing here asserts a time, and nothing is remembered from one run to the next.
settings.register_profile("vmsnap", deadline=None, database=None, print_blob=True)
settings.load_profile("vmsnap")
