# SPDX-License-Identifier: Apache-2.0
"""The house: which folder may import which, who may start processes. Read from the source, not
imported."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmsnap

PACKAGE = Path(vmsnap.__file__).parent
VOCABULARY = {"errors", "consistency", "result", "progress"}  # the root's, which all share
# What each folder may import besides itself and the vocabulary: folders, or single modules of them.
# A module with a line of its own may import nothing else. docs/architecture.md says the same.
ARROWS = {
    "cli": {
        *("provision", "platforms", "service", "session", "report", "freeze", "config", "journal"),
        "system",
    },
    "cli.terminal": {"system.printable", "system.streams", "system.waiter"},
    "provision": {"platforms", "config", "journal", "session.lock", "system"},
    "platforms": {"service", "config", "session.lock", "session.options", "system"},
    "service": {"session", "system"},
    "session": {"scripts", "freeze", "config", "journal", "system"},
    "scripts": {"freeze.frozen_list", "config", "journal", "system"},
    "report": {"freeze.plan", "journal", "system"},
    "freeze": {"system"},
    "config": {"system"},
    "journal": {"system.printable", "system.streams"},
    "system": set(),
    "errors": set(),
    "consistency": {"errors"},
    "result": {"errors"},
    "progress": {"consistency", "system"},
    "__init__": set(),
    "__main__": {"cli"},
}


def sources(package: Path) -> dict[str, Path]:
    """Every module by its name below vmsnap; a package itself is named NAME.__init__."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in sorted(package.rglob("*.py"))
    }


SOURCES = sources(PACKAGE)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Every module that is imported anywhere in this one, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of_vmsnap(name: str, known: dict[str, Path]) -> set[str]:
    """The modules of vmsnap that this one imports."""
    words = {word.partition(".")[2] for word in imports(known[name]) if word.startswith("vmsnap.")}
    return {word for word in words if word in known}


def folder(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def offences(package: Path) -> Iterator[str]:
    """Every import that the table does not have, and every module that it does not cover."""
    known = sources(package)
    for name in known:
        home = folder(name)
        if home not in ARROWS:
            yield f"{name} is in no folder"
            continue
        shares = f"{home}.__init__" in known and home != "system" and name not in ARROWS
        allowed = ARROWS.get(name, ARROWS[home]) | (VOCABULARY if shares else set())
        for other in of_vmsnap(name, known):
            if other == "freeze.guard":
                yield f"{name} imports the guard"
            elif folder(other) != home and not {folder(other), other} & allowed:
                yield f"{name} imports {other}"


def test_imports_are_those_of_the_table() -> None:
    assert list(offences(PACKAGE)) == []


def test_the_table_has_no_arrow_that_nobody_needs() -> None:
    imported = {(name, other) for name in SOURCES for other in of_vmsnap(name, SOURCES)}
    used = imported | {(folder(name), other) for name, other in imported}
    needed = {(home, word) for home, other in used for word in (folder(other), other)}
    arrows = {(home, target) for home, targets in ARROWS.items() for target in targets}
    assert arrows - needed == set()


@pytest.mark.parametrize(
    ("module", "line", "offence"),
    [
        ("elsewhere.py", "", "elsewhere is in no folder"),
        ("helpers/__init__.py", "", "helpers.__init__ is in no folder"),
        (
            "cli/terminal.py",
            "from vmsnap.freeze import guard",
            "cli.terminal imports the guard",
        ),
        (
            "freeze/freezer.py",
            "def late():\n    import vmsnap.freeze.guard",
            "freeze.freezer imports the guard",
        ),
        (
            "system/process.py",
            "from vmsnap.errors import Kind",
            "system.process imports errors",
        ),
        (
            "report/text.py",
            "def late():\n    from vmsnap.session.session import Session",
            "report.text imports session.session",
        ),
        (
            "provision/apply.py",
            "from vmsnap.session import session",
            "provision.apply imports session.session",
        ),
        (
            "scripts/runner.py",
            "from vmsnap.freeze.freezer import Freezer",
            "scripts.runner imports freeze.freezer",
        ),
        ("errors.py", "from vmsnap import result", "errors imports result"),
        (
            "cli/terminal.py",
            "from vmsnap.session.session import Session",
            "cli.terminal imports session.session",
        ),
        (
            "session/session.py",
            "from vmsnap.cli.terminal import complain",
            "session.session imports cli.terminal",
        ),
    ],
)
def test_what_the_table_does_not_have_is_found(
    tmp_path: Path, module: str, line: str, offence: str
) -> None:
    package = tmp_path / "vmsnap"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    path = package / module
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    assert list(offences(package)) == [offence]


def reachable(name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        for other in of_vmsnap(todo.pop(), SOURCES) - found:
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


def test_the_guard_imports_the_standard_library_only() -> None:
    roots = {folder(word) for word in imports(SOURCES["freeze.guard"])}
    assert {root for root in roots if not is_standard(root)} == set()


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_reaches_itself_through_its_imports(name: str) -> None:
    assert name not in reachable(name)


STARTS = {"fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen"}


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "system.process"])
def test_processes_are_started_in_one_place(name: str) -> None:
    calls = {
        node.attr
        for node in ast.walk(tree(SOURCES[name]))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert calls & STARTS == set()
    assert not {word for word in calls if word.startswith(("exec", "spawn"))}
    assert not imports(SOURCES[name]) & {"subprocess", "multiprocessing", "pty"}


@pytest.mark.parametrize("name", [name for name in SOURCES if folder(name) != "cli"])
def test_nobody_but_the_command_line_prints(name: str) -> None:
    for node in ast.walk(tree(SOURCES[name])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_libraries_that_the_packages_depend_on_are_imported(name: str) -> None:
    roots = {folder(word) for word in imports(SOURCES[name])}
    foreign = {root for root in roots if not is_standard(root)}
    allowed = {"vmsnap", "distro", "sdnotify", "jsonschema"}
    if name == "provision.document":
        allowed.add("yaml")  # cloud-init has it
    if name == "cli.manual":
        allowed.add("docutils")  # when a package is built
    assert foreign <= allowed


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_says_its_licence_and_what_lives_in_it(name: str) -> None:
    assert SOURCES[name].read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(tree(SOURCES[name]))


UMBRELLAS = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "lib", "core"}


@pytest.mark.parametrize("name", SOURCES)
def test_no_name_is_an_umbrella(name: str) -> None:
    assert not set(name.split(".")) & UMBRELLAS
