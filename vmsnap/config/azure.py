# SPDX-License-Identifier: Apache-2.0
"""Azure's own files below /etc/azure, so that an existing Azure VM works unchanged."""

from __future__ import annotations

import configparser
from typing import Any

from vmsnap.config.formats import ConfigError, load_ini, shown
from vmsnap.config.settings import seconds

# How Azure's extension calls us (platforms/agent.py). An app of Azure's file that is these is none.
AZURE_HOOKS = {"pre": "/etc/vmsnap/azure/pre", "post": "/etc/vmsnap/azure/post"}
LONGEST_SCRIPT = 1800.0  # seconds; Azure's framework allows no more
# The databases of its workload.conf for which `vmsnap init --quiesce` has scripts.
QUIESCED = {"mysql": "mysql", "mariadb": "mariadb", "postgres": "postgresql"}


def parse_vmbackup(text: str, path: str, values: dict[str, Any]) -> None:
    """Read `MountsToSkip` (separated by commas), `timeout` and `fsfreeze` of Azure's vmbackup.conf.
    Raises ConfigError."""
    parser = load_ini(text, path)
    if not parser.has_section("SnapshotThread"):
        return
    section = parser["SnapshotThread"]
    skipped = [mount.strip() for mount in section.get("MountsToSkip", "").split(",")]
    values["exclude"] = tuple(mount for mount in skipped if mount)
    if section.get("timeout", "").strip():
        try:
            values["hold"] = seconds(0.1, 86400)(section["timeout"])
        except ValueError as e:
            raise ConfigError(
                f"{path}: key 'timeout': found {section['timeout']!r}, expected {e}"
            ) from None

    if section.get("fsfreeze", "").strip():
        try:
            values["freeze"] = section.getboolean("fsfreeze")
        except ValueError:
            raise ConfigError(
                f"{path}: key 'fsfreeze': found {section['fsfreeze']!r}, expected True or False"
            ) from None


def workload_of(text: str, path: str) -> str:
    """The database that Azure's framework for databases is to quiesce by itself, "" if none: of its
    workload.conf. Raises ConfigError."""
    return load_ini(text, path).get("workload", "workload_name", fallback="").strip()


def parse_plugin_host(text: str, path: str) -> tuple[float, tuple[str, ...]]:
    """Return the cap of every script's budget in seconds, and the paths of the apps' files.

    The format is that of Azure's VMSnapshotPluginHost.conf. Raises ConfigError.
    """
    parser = load_ini(text, path)
    if not parser.has_section("pre_post"):
        raise ConfigError(f"{path}: found no section [pre_post], expected one")
    section = parser["pre_post"]
    cap = float(
        whole_number(section, "timeoutInSeconds", path, least=1, default=int(LONGEST_SCRIPT))
    )
    configs = []
    for index in range(whole_number(section, "numberOfPlugins", path, least=0, most=100)):
        name = section.get(f"pluginName{index}")
        if name != "ScriptRunner":
            raise ConfigError(
                f"{path}: key 'pluginName{index}': found {shown(name)}, expected ScriptRunner"
            )
        config = section.get(f"pluginConfigPath{index}")
        if not config or not config.startswith("/"):
            raise ConfigError(
                f"{path}: key 'pluginConfigPath{index}': found {shown(config)}, "
                "expected an absolute path"
            )
        configs.append(config)
    return min(cap, LONGEST_SCRIPT), tuple(configs)


def whole_number(
    section: configparser.SectionProxy,
    key: str,
    path: str,
    least: int,
    most: int | None = None,
    default: int | None = None,
) -> int:
    value = section.get(key)
    if value is None and default is not None:
        return default
    wanted = f"a whole number, at least {least}" + (f" and at most {most}" if most else "")
    if value is None or not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ConfigError(f"{path}: key {key!r}: found {shown(value)}, expected {wanted}")
    if int(value) < least or (most is not None and int(value) > most):
        raise ConfigError(f"{path}: key {key!r}: found {value}, expected {wanted}")
    return int(value)
