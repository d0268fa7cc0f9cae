# SPDX-License-Identifier: Apache-2.0
"""The house: who may import whom, who may start processes. Read from the source, not imported."""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from pathlib import Path

import pytest

import vmsnap

PACKAGE = Path(vmsnap.__file__).parent
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# cli -> commands -> run, unit, caller, report, agents, provision -> session
#     -> freezer, scripts, checks -> storage, config, result -> errors
FLOORS = (
    ("errors",),
    ("storage", "config", "result"),
    ("freezer", "scripts", "checks"),
    ("session",),
    ("run", "unit", "caller", "report", "history", "plot", "watch", "agents", "provision"),
    ("commands", "queries", "configuring"),
    ("cli",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def imports(name: str) -> set[str]:
    """Every module that is imported anywhere in this one, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of_vmsnap(name: str) -> set[str]:
    found = {word[len("vmsnap.") :] for word in imports(name) if word.startswith("vmsnap.")}
    return {word for word in found if word in SOURCES}


def reachable(name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        for other in of_vmsnap(todo.pop()) - found:
            found.add(other)
            todo.append(other)
    return found


def is_standard(root: str) -> bool:
    """Whether a module comes with Python (sys.stdlib_module_names is not in Python 3.9)."""
    spec = importlib.util.find_spec(root)
    if spec is None or spec.origin is None:
        return False
    below = Path(sysconfig.get_path("stdlib"))
    installed = {"site-packages", "dist-packages"} & set(Path(spec.origin).parts)
    return spec.origin in ("built-in", "frozen") or (
        Path(spec.origin).is_relative_to(below) and not installed
    )


def floor(name: str) -> int | None:
    return FLOOR.get(name.split(".", maxsplit=1)[0])


def test_the_guard_imports_the_standard_library_only() -> None:
    roots = {word.split(".", maxsplit=1)[0] for word in imports("guard")}
    assert {root for root in roots if not is_standard(root)} == set()


@pytest.mark.parametrize("name", SOURCES)
def test_nobody_imports_the_guard(name: str) -> None:
    assert "guard" not in of_vmsnap(name)


@pytest.mark.parametrize("name", [name for name in SOURCES if floor(name) is not None])
def test_imports_point_one_way_be_it_through_others(name: str) -> None:
    own = floor(name)
    assert own is not None
    above = {other for other in reachable(name) if (floor(other) or 0) > own}
    assert above == set()


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_reaches_itself_through_its_imports(name: str) -> None:
    assert name not in reachable(name)


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("cli", "__main__")])
def test_only_the_way_in_imports_the_command_line(name: str) -> None:
    assert "cli" not in reachable(name)


STARTS = {"fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen"}


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "process"])
def test_processes_are_started_in_one_place(name: str) -> None:
    calls = {
        node.attr
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert calls & STARTS == set()
    assert not {word for word in calls if word.startswith(("exec", "spawn"))}
    assert not imports(name) & {"subprocess", "multiprocessing", "pty"}


@pytest.mark.parametrize(
    "name", sorted(set(SOURCES) - {"commands", "queries", "configuring", "terminal"})
)
def test_nobody_but_the_command_line_prints(name: str) -> None:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_libraries_that_the_packages_depend_on_are_imported(name: str) -> None:
    roots = {word.split(".", maxsplit=1)[0] for word in imports(name)}
    foreign = {root for root in roots if not is_standard(root)}
    allowed = {"vmsnap", "distro", "sdnotify", "jsonschema"}
    assert foreign <= (allowed | {"yaml"} if name == "document" else allowed)  # cloud-init has it


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_says_its_licence_and_what_lives_in_it(name: str) -> None:
    assert SOURCES[name].read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(tree(name))
