# SPDX-License-Identifier: Apache-2.0
"""What the documents say of options, keys and modules is what there is."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmsnap import __version__
from vmsnap.cli import manual
from vmsnap.cli.arguments import FAILED, IN_PROGRESS, LEVELS, NOT_ROOT, OK, USAGE
from vmsnap.cli.completion import completion
from vmsnap.cli.main import EXAMPLES, parser
from vmsnap.config.app import schema
from vmsnap.config.settings import SETTINGS, Settings, parse_settings
from vmsnap.consistency import AT_MOST, Level
from vmsnap.errors import Kind
from vmsnap.freeze.frozen_list import FROZEN_LIST
from vmsnap.journal.sender import Event
from vmsnap.progress import PROGRESS, Progress
from vmsnap.provision.quiescers import QUIESCERS
from vmsnap.result import LAST, PHASES, Result
from vmsnap.service.messages import REQUEST

from ..shell.grammar import COMMANDS, EVERY_OPTION, commands, options

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = (ROOT / "etc/vmsnap.conf").read_text(encoding="utf-8")
PAGES = {
    page.stem: manual.filled(page.read_text(encoding="utf-8")) for page in (ROOT / "man").iterdir()
}
MAIN, CONF = PAGES["vmsnap.1"], PAGES["vmsnap.conf.5"]
APP, UNIT = PAGES["vmsnap-app.5"], PAGES["vmsnap-session.service.8"]
COMPLETIONS = {  # without comments
    shell: re.sub(
        r"(^|\s)# .*",
        "",
        completion((ROOT / f"completions/vmsnap.{shell}.in").read_text(encoding="utf-8"), shell),
        flags=re.M,
    )
    for shell in ("bash", "zsh", "fish")
}


@pytest.mark.parametrize("key", sorted(schema()["properties"]))
def test_every_key_of_an_app_is_documented(key: str) -> None:
    assert f"`{key}`" in CONFIGURATION


@pytest.mark.parametrize(("section", "key"), sorted(SETTINGS))
def test_every_setting_is_documented(section: str, key: str) -> None:
    assert f"`[{section}]`" in CONFIGURATION
    assert f"`{key}`" in CONFIGURATION


@pytest.mark.parametrize(
    "folder",
    [path.parent for path in (ROOT / "vmsnap").glob("*/__init__.py")],
    ids=lambda p: p.name,
)
def test_every_folder_is_in_the_house(folder: Path) -> None:
    assert f"`{folder.name}/`" in ARCHITECTURE


@pytest.mark.parametrize("command", [*COMMANDS, "thaw --force"])
def test_every_command_is_in_the_help(command: str) -> None:
    assert re.search(rf"(vmsnap |^    ){command}\b", parser().format_help(), re.M)


@pytest.mark.parametrize("command", [*sorted({*COMMANDS} - {"hook"}), "thaw --force"])
def test_every_command_that_a_person_types_is_in_the_readme(command: str) -> None:
    assert f"vmsnap {command}" in README


@pytest.mark.parametrize("kind", Kind)
def test_the_rule_knows_every_kind_of_error(kind: Kind) -> None:
    assert kind in AT_MOST


# --- pages of the manual as plain text -----------------------------------------------------------

HEADINGS = {"section": "=", "subsection": "-"}
# A tag (of a definition or of an option) and what stands indented below it.
TAGGED = re.compile(r"^(\S.*)\n((?: {4}.*\n)(?:(?: {4}.*)?\n)*)", re.M)


def plain(rst: str) -> str:
    """What a piece of a page says, in one line."""
    text = re.sub(r"^\.\. .*\n(?: {3}.*\n)*", "", rst, flags=re.M)  # comments
    text = re.sub(r"^\| ", "", text, flags=re.M)
    return " ".join(re.sub(r"\\(.)|\*", r"\1", text).split())


def parts(rst: str, level: str) -> Iterator[tuple[str, str]]:
    """(heading, what follows) of each section or subsection."""
    _, *pieces = re.split(rf"^(\S.*)\n{HEADINGS[level]}{{4,}}\n", rst, flags=re.M)
    return zip(pieces[::2], pieces[1::2])


def section(page: str, name: str) -> str:
    return dict(parts(page, "section"))[name]


def tags(rst: str) -> dict[str, str]:
    """What stands under each tag; two that share a paragraph are two."""
    return {
        plain(tag): plain(text) for both, text in TAGGED.findall(rst) for tag in both.split(", ")
    }


def test_plain_text_is_what_a_reader_sees() -> None:
    rst = (
        ".. A comment.\n   It goes on.\n\n-h, --help\n    Print *a word* **of it**.\n\n| \\*\\\\x\n"
    )
    assert plain(rst) == "-h, --help Print a word of it. *\\x"
    assert tags(rst) == {"-h": "Print a word of it.", "--help": "Print a word of it."}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_of_this_version(page: str) -> None:
    name, _, number = page.rpartition(".")
    assert re.search(rf"^={{4,}}\n{re.escape(name)}\n={{4,}}$", PAGES[page], re.M)
    assert f"\n:Manual section: {number}\n" in PAGES[page]
    assert f"\n:Version: vmsnap {__version__}\n" in PAGES[page]


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_name_one_another(page: str) -> None:
    others = {f"{name[:-2]}({name[-1]})" for name in PAGES if name != page}
    seen = set(plain(section(PAGES[page], "SEE ALSO")).split(", "))
    assert others <= seen


# --- the command line ----------------------------------------------------------------------------


def synopses() -> dict[str, str]:
    """The first word of each command's heading in COMMANDS, and the whole heading."""
    headings = [heading for heading, _ in parts(section(MAIN, "COMMANDS"), "subsection")]
    return {heading.split()[1]: heading for heading in headings}


def test_the_manual_has_every_command_and_no_other() -> None:
    assert set(synopses()) == set(COMMANDS)
    said = plain(section(MAIN, "SYNOPSIS"))
    assert said == " ".join(synopses()[name] for name in commands())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_manual_has_what_a_command_takes(command: str) -> None:
    taken = [str(a.metavar) for a in commands()[command]._actions if not a.option_strings]
    heading = synopses()[command].split("OPTION...]")[1].replace("[-- COMMAND [ARGUMENT...]]", "")
    assert re.sub(r"[][()]|\| --file FILE", "", heading).split() == taken


def option_paragraphs() -> dict[str, dict[str, str]]:
    """By command: the tags of its options, without -h, and what they say."""
    found: dict[str, dict[str, str]] = {name: {} for name in COMMANDS}
    for heading, text in parts(section(MAIN, "OPTIONS"), "subsection"):
        whose = re.split(", | and ", heading[len("Of ") :])
        for name in COMMANDS if whose == ["every command"] else whose:
            found[name].update(tags(text))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_the_manual_has_every_option_of_a_command_and_no_other(command: str) -> None:
    actions = [a for a in commands()[command]._actions if a.option_strings]
    known = {f"{a.option_strings[-1]} {a.metavar or ''}".strip() for a in actions}
    assert set(option_paragraphs()[command]) == known - options(parser())


def test_the_manual_has_the_options_before_any_command() -> None:
    top = section(MAIN, "OPTIONS").split("\nOf ")[0]
    assert set(tags(top)) == options(parser()) | {"-h"}


def test_the_manual_has_every_level() -> None:
    assert set(tags(section(MAIN, "CONSISTENCY"))) == {level.word for level in Level}
    require = option_paragraphs()["run"]["--require LEVEL"]
    assert "crash, filesystem or application" in require
    assert set(LEVELS) == {"crash", "filesystem", "application"}


def test_the_manual_has_every_quiescer_and_no_other() -> None:
    said = tags(section(MAIN, "QUIESCERS"))
    assert {tag for tag in said if not tag.startswith("--")} == set(QUIESCERS)
    assert set(re.findall(r"\w+", option_paragraphs()["init"]["--quiesce SERVER"])) > set(QUIESCERS)


def test_the_internal_command_is_in_the_manual_of_the_unit_only() -> None:
    assert "vmsnap session" in tags(section(UNIT, "COMMANDS"))
    assert "vmsnap session --stopped" in tags(section(UNIT, "COMMANDS"))
    assert "--stopped" not in plain(MAIN)


COMMAND_WORDS = {
    "bash": r'words="([a-z ]+) --help --version --debug"',
    "zsh": r"^        '([a-z]+):",
    "fish": r"__vmsnap_begins -a ([a-z]+) ",
}
OPTION_WORDS = {
    "bash": r"--([a-z][a-z-]*)",
    "zsh": r"--([a-z][a-z-]*)",
    "fish": r"(?<!set)(?<!read) -l ([a-z-]+)",
}


@pytest.mark.parametrize("shell", COMMAND_WORDS)
def test_completion_knows_every_command_and_no_other(shell: str) -> None:
    found = re.findall(COMMAND_WORDS[shell], COMPLETIONS[shell], re.M)
    assert sorted(" ".join(found).split()) == COMMANDS


@pytest.mark.parametrize("shell", OPTION_WORDS)
def test_completion_knows_every_option_and_no_other(shell: str) -> None:
    found = re.findall(OPTION_WORDS[shell], COMPLETIONS[shell])
    assert {f"--{name}" for name in found} == EVERY_OPTION


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_completion_knows_every_level(shell: str) -> None:
    assert re.search(rf"\b{' '.join(LEVELS)}\b", COMPLETIONS[shell])


# --- settings and apps ---------------------------------------------------------------------------


def default_of(section_name: str, key: str) -> str:
    value = getattr(Settings(), SETTINGS[section_name, key][0])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "" if not value else str(value)


@pytest.mark.parametrize(("section_name", "key"), sorted(SETTINGS))
def test_the_manual_has_every_setting_with_its_default(section_name: str, key: str) -> None:
    subsections = dict(parts(section(CONF, "OPTIONS"), "subsection"))
    text = tags(subsections[f"[{section_name}]"])[f"{key}="]
    assert re.search(rf"Default: {re.escape(default_of(section_name, key) or 'empty')}[.,]", text)


def test_the_manual_has_no_setting_that_there_is_not() -> None:
    found = {
        (heading[1:-1], tag[:-1])
        for heading, text in parts(section(CONF, "OPTIONS"), "subsection")
        for tag in tags(text)
    }
    assert found == set(SETTINGS)


def test_the_file_of_settings_that_is_shipped_names_every_setting_with_its_default() -> None:
    found: dict[tuple[str, str], str] = {}
    name = ""
    for line in SHIPPED.splitlines():
        heading = re.fullmatch(r"\[(\w+)\]", line)
        name = heading[1] if heading else name
        setting = re.fullmatch(r"#(\w+) =(.*)", line)
        if setting:
            found[name, setting[1]] = setting[2].strip()
    assert found == {(s, key): default_of(s, key) for s, key in SETTINGS}


def test_the_file_of_settings_that_is_shipped_changes_nothing() -> None:
    values: dict[str, Any] = {}
    assert parse_settings(SHIPPED, "shipped", values) == []
    assert values == {}
    assert parse_settings(re.sub(r"(?m)^#(?=\w+ =)", "", SHIPPED), "shipped", values) == []
    assert Settings(**values) == Settings()


def app_keys() -> dict[str, str]:
    """The keys of an app and what the manual says of each, with its type."""
    found = {}
    for tag, text in TAGGED.findall(section(APP, "KEYS")):
        names, _, kind = tag.partition(" (")
        found.update({name: f"({kind} {plain(text)}" for name in names.split(", ")})
    return found


def test_the_manual_has_every_key_of_an_app_and_no_other() -> None:
    assert set(app_keys()) == set(schema()["properties"])


@pytest.mark.parametrize("key", sorted(schema()["properties"]))
def test_the_manual_says_the_type_and_the_default_of_a_key(key: str) -> None:
    rules = schema()["properties"][key]
    words = {"array": "list of strings", "integer": "whole number", "boolean": "true or false"}
    assert app_keys()[key].startswith(f"({words.get(rules.get('type'), 'string')})")
    if "default" in rules:
        assert f"Default: {json.dumps(rules['default'])}." in app_keys()[key]


def test_the_manual_has_every_variable_of_a_script_and_no_other() -> None:
    table = CONFIGURATION.partition("| variable | value |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    variables = set(re.findall("`([A-Z_]+)`", " ".join(rows)))
    assert len(variables) > 5
    assert set(tags(section(APP, "ENVIRONMENT"))) == variables


# --- errors, the journal, exit codes, files, units -----------------------------------------------


@pytest.mark.parametrize("kind", Kind)
def test_the_manual_has_every_error_with_what_to_do(kind: Kind) -> None:
    text = tags(section(MAIN, "ERRORS"))[f"{kind.label} ({kind.code})"]
    level = AT_MOST[kind]
    left = "There is no snapshot to rely on" if not level else f"Leaves at most {level.word}"
    assert text == f"{kind.summary}. {kind.action}. {left}.".replace("`", "")


def test_the_manual_has_no_error_that_there_is_not() -> None:
    assert len(tags(section(MAIN, "ERRORS"))) == len(Kind)


def test_the_manual_has_every_exit_code_and_no_other() -> None:
    codes = {OK, FAILED, USAGE, IN_PROGRESS, NOT_ROOT}
    assert set(tags(section(MAIN, "EXIT STATUS"))) == {str(code) for code in codes}
    assert numbers(EXAMPLES.partition("exit codes: ")[2]) == codes
    of_units = plain(section(UNIT, "EXIT STATUS")).replace("vmsnap(1)", "")
    assert numbers(of_units) == codes - {NOT_ROOT}


def numbers(text: str) -> set[int]:
    return {int(word) for word in re.findall(r"\d+", text)}


def test_the_manual_has_every_field_and_variable_and_no_other() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "vmsnap").rglob("*.py")]
    fields = {tag.rstrip("=") for tag in tags(section(MAIN, "JOURNAL"))}
    variables = {
        variable
        for page in (MAIN, APP, UNIT)
        for variable in tags(section(page, "ENVIRONMENT"))
        if variable.startswith("VMSNAP_")
    }
    assert set(re.findall(r"\bVMSNAP_[A-Z_]+", " ".join(sources))) == fields | variables
    assert f"MESSAGE_ID={Event.ENDED.value}" in plain(section(MAIN, "JOURNAL"))


def test_the_manual_has_every_phase() -> None:
    assert tuple(tags(section(MAIN, "DESCRIPTION"))) == PHASES


def test_the_manual_has_every_key_of_the_json() -> None:
    said = tags(section(MAIN, "JSON"))
    progress = {field.name for field in dataclasses.fields(Progress)}
    progress -= {"hold_ends", "since", "invocation", "etc"}
    for key in (field.name for field in dataclasses.fields(Result)):
        assert re.search(rf"\b{key}\b", said["run"])
    for key in (*progress, "hold_left_seconds", "outcome"):
        assert re.search(rf"\b{key}\b", said["freeze"])


def test_the_manual_has_the_files_in_the_directories_of_a_session() -> None:
    of_main, of_unit = tags(section(MAIN, "FILES")), tags(section(UNIT, "FILES"))
    assert {f"/run/vmsnap/{name}" for name in (LAST, FROZEN_LIST)} <= set(of_main)
    assert f"/var/lib/vmsnap/{LAST}" in of_main
    assert {f"/run/vmsnap/{name}" for name in (LAST, PROGRESS, REQUEST)} == set(of_unit)


def test_the_manual_has_every_unit_and_no_other() -> None:
    units = {path.name for path in (ROOT / "systemd").iterdir()}
    names = re.findall(r"^:Title: (.*\n(?: +.*\n)*)", UNIT, re.M)
    assert set(plain(names[0]).split(", ")) == units
    assert set(plain(section(UNIT, "SYNOPSIS")).split()) == units
    described = plain(section(UNIT, "DESCRIPTION"))
    assert units <= set(re.findall(r"vmsnap-[a-z@]+\.[a-z]+", described))


@pytest.mark.parametrize("unit", sorted((ROOT / "systemd").iterdir()), ids=lambda path: path.name)
def test_a_unit_names_pages_that_there_are(unit: Path) -> None:
    for name, number in re.findall(r"man:(\S+)\((\d)\)", unit.read_text(encoding="utf-8")):
        assert f"{name}.{number}" in PAGES
