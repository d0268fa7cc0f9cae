# SPDX-License-Identifier: Apache-2.0
"""The agents that vmsnap knows: every module of this folder that has an `AGENT`. A new platform is
a new file; nothing else lists them."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from vmsnap import platforms
from vmsnap.platforms.agent import Agent


@functools.cache
def agents() -> Mapping[str, Agent]:
    """By their names, in alphabetical order."""
    modules = sorted(module.name for module in pkgutil.iter_modules(platforms.__path__))
    loaded = (importlib.import_module(f"{platforms.__name__}.{name}") for name in modules)
    found = (getattr(module, "AGENT", None) for module in loaded)
    return {agent.name: agent for agent in found if isinstance(agent, Agent)}
