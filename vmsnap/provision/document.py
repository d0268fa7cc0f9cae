# SPDX-License-Identifier: Apache-2.0
"""The document of `vmsnap provision` -> the files that it amounts to. Nothing is written here,
and what can be wrong is in validation.py."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vmsnap.config.formats import ConfigError, parse_json
from vmsnap.config.settings import spelled
from vmsnap.provision.validation import (
    InvalidDocumentError,
    Mistake,
    against_schema,
    contradictions,
    not_json,
    of_integration,
    of_timer,
    schema,
    shown,
)
from vmsnap.system.files import File

AZURE = "azure/VMSnapshotScriptPluginConfig.json"
DROP_IN = "vmsnap/vmsnap.conf.d/50-provision.conf"
TIMER_DROP_IN = "systemd/system/vmsnap-backup.timer.d/50-provision.conf"
WRITTEN = "# Written by `vmsnap provision`, which replaces the whole file.\n"
# YAML 1.1 reads 030 as 24 and 18:30 as 1110.
NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17}|[0-9]{1,18}\.[0-9]{1,18})")
# Ours for the messages of PyYAML, which would show the value that they are about, by a part of
# theirs. The mark is where the mistake is; the context, where it began.
MISTAKES_AT_MARK = {
    "\\t": "found a tab, expected spaces",
    "while scanning an alias": "found a * that is no alias; put the value in quotes",
    "mapping values are not allowed": "found a colon within a value; put the value in quotes",
}
MISTAKES_AT_CONTEXT = {
    "while scanning a quoted scalar": "found a quote that is not closed",
    "while parsing a flow": "found a bracket that is not closed",
}


@dataclass(frozen=True)
class Document:
    """What is to be written, in this order, and what to do with the timer: None leaves it alone,
    "" disables it, a calendar expression enables it. `integrate`: with which agent, "auto" for that
    of the platform; False for none; None leaves it alone."""

    files: tuple[File, ...]
    apps: tuple[str, ...]
    timer: str | None
    integrate: str | bool | None = None


# --- text -> values ------------------------------------------------------------------------------


def load(text: str, yaml: bool) -> object:
    """Raises InvalidDocumentError."""
    try:
        found = load_yaml(text) if yaml else parse_json(text, "the document")
        mistakes = list(not_json(found, ()))
    except ConfigError as e:
        raise InvalidDocumentError([Mistake("", str(e))]) from None
    except RecursionError:
        raise InvalidDocumentError([Mistake("", "the document is nested too deep")]) from None
    refuse(mistakes)
    return found


def load_yaml(text: str) -> object:
    try:
        import yaml  # late, and not there on every system: cloud-init brings it
    except ImportError:
        raise ConfigError(
            "PyYAML is not installed, which reads YAML; install it (python3-yaml, "
            "python3-pyyaml), or give the document as JSON, in a file named *.json"
        ) from None

    def refuse_at(mark: Any, message: str) -> NoReturn:
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"the document{where}: {message}")

    class Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
        """Without aliases, a few of which are enough to fill any memory; without tags, which can
        make anything of a value; without keys that are there twice, of which the last would win
        silently; and without numbers that are meant for something else, such as 18:30."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()  # type: ignore[no-untyped-call,unused-ignore]
            if isinstance(event, yaml.AliasEvent):
                refuse_at(event.start_mark, "found an alias (*); put a value with a * in quotes")
            if getattr(event, "tag", None):
                refuse_at(event.start_mark, "found a tag (!), expected a plain value")
            node: Any = super().compose_node(parent, index)
            if node.tag.endswith((":int", ":float")) and not NUMBER.fullmatch(node.value):
                refuse_at(
                    node.start_mark,
                    "found a number that YAML takes for another; put it in quotes",
                )
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    refuse_at(key.start_mark, f"found the key {shown((key.value,))} twice")
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as e:
        problem = f"{e.problem} {e.context}"
        for known, message in MISTAKES_AT_MARK.items():
            if known in problem:
                refuse_at(e.problem_mark, message)
        for known, message in MISTAKES_AT_CONTEXT.items():
            if known in problem:
                refuse_at(e.context_mark, message)
        refuse_at(e.problem_mark, "found what cannot be read as YAML; look at the indentation")
    except (yaml.YAMLError, ValueError, ArithmeticError):  # characters and dates that cannot be
        refuse_at(None, "found a character or a date that cannot be")


# --- values -> files -----------------------------------------------------------------------------


def read(found: object, etc: Path) -> Document:
    """What a document amounts to below `etc`. Raises InvalidDocumentError."""
    refuse(against_schema(found))
    assert isinstance(found, dict)
    apps, conf, timer = apps_of(found), found.get("conf", {}), found.get("timer")
    refuse(contradictions(found, apps))
    refuse(of_timer(timer, conf, etc))
    refuse(of_integration(found, etc))
    files = [file for name, app in apps.items() for file in app_files(name, app, etc)]
    if conf:
        files.append(File(etc / DROP_IN, (WRITTEN + ini(conf)).encode(), 0o600))
    if timer:
        lines = f"[Timer]\nOnCalendar=\nOnCalendar={timer}\n"
        files.append(File(etc / TIMER_DROP_IN, (WRITTEN + lines).encode(), 0o644))
    return Document(
        tuple(files),
        tuple(apps),
        None if timer is None else timer or "",
        found.get("integrate"),
    )


def refuse(mistakes: Iterable[Mistake]) -> None:
    found = list(mistakes)
    if found:
        raise InvalidDocumentError(found)


def apps_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The apps by name, be it one that the document is all about."""
    if "apps" in found:
        apps: dict[str, dict[str, Any]] = found["apps"]
        return apps
    app = {key: found[key] for key in ("config", "scripts", "azure") if key in found}
    if not app:
        return {}
    name = app.get("config", {}).get("appName", "azure" if app.get("azure") else "app")
    return {name: app}


def app_files(name: str, app: dict[str, Any], etc: Path) -> Iterator[File]:
    """The scripts first: an app exists from the moment its config is there."""
    written = {"pluginName": "ScriptRunner", **app.get("config", {})}
    for phase, text in app.get("scripts", {}).items():
        path = etc / "vmsnap/scripts" / name / phase
        written[f"{phase}ScriptLocation"] = str(path)
        yield File(path, text.encode(), 0o700)
    path = etc / "vmsnap/apps.d" / f"{name}.json"
    if app.get("azure"):
        path = etc / AZURE
        if name != "azure":
            written["appName"] = name
    yield File(path, (json.dumps(written, indent=4) + "\n").encode(), 0o600)


def ini(conf: dict[str, dict[str, Any]]) -> str:
    lines = []
    for section, settings in conf.items():
        lines.append(f"\n[{section}]\n")
        lines += [f"{key} = {spelled(value)}\n" for key, value in settings.items()]
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
