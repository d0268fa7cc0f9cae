# SPDX-License-Identifier: Apache-2.0
"""What every tier of tests shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# Several processes take file after file from one list. What takes long comes first, so that none of
# them is still at work when the others have nothing left.
TIERS = ("vm", "system", "faults", "fs", "packages", "shell", "unit")
LONG = ("test_cloud_init", "test_package_manager", "test_held")

# Nothing here asserts a time, and nothing is remembered from one run to the next.
settings.register_profile("vmsnap", deadline=None, database=None, print_blob=True)
settings.load_profile("vmsnap")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)


def place(item: pytest.Item) -> tuple[int, bool]:
    tier = item.path.relative_to(Path(__file__).parent).parts[0]
    return TIERS.index(tier), not item.path.name.startswith(LONG)
