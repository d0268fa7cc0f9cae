# SPDX-License-Identifier: Apache-2.0
"""What a session leaves in the real journal, and what `journalctl` makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from tests.fs import kernel
from vmsnap.errors import Kind
from vmsnap.journal.sender import Event
from vmsnap.result import PHASES

from .container import Container

Record = dict[str, Any]

RUN, HELD = "vmsnap run", "vmsnap freeze and vmsnap thaw"
both_ways = pytest.mark.parametrize("way", [RUN, HELD])
KINDS = {kind.message_id: kind for kind in Kind}
EVENTS = {event.value: event for event in Event}
IN_A_UNIT = ("systemd-run", "--quiet", "--pipe", "--wait", "--property=Type=exec")


def app(container: Container, name: str = "db", pre: str = "", post: str = "", **keys: Any) -> None:
    """Configure an app with the shell commands of its two scripts."""
    document: dict[str, object] = {"pluginName": "ScriptRunner", **keys}
    for phase, text in (("pre", pre), ("post", post)):
        if text:
            path = f"/etc/vmsnap/scripts/{name}-{phase}"
            container.write(path, f"#!/bin/sh\n{text}\n", 0o700)
            document[f"{phase}ScriptLocation"] = path
    container.write(f"/etc/vmsnap/apps.d/{name}.json", json.dumps(document))


def run(container: Container, *options: str, command: Sequence[str] = ("true",)) -> Record:
    """The result of `vmsnap run`, good or bad."""
    done = container.run("vmsnap", "run", "--json", *options, "--", *command)
    return result_in(done.stdout, done.stderr)


def hold(container: Container, *options: str) -> Record:
    """The result of a session that is thawed as soon as it holds."""
    began = container.run("vmsnap", "freeze", "--json", *options)
    if began.returncode:
        return result_in(began.stdout, began.stderr)
    done = container.run("vmsnap", "thaw", "--json")
    return result_in(done.stdout, done.stderr)


def take(container: Container, way: str, *options: str) -> Record:
    return run(container, *options) if way == RUN else hold(container, *options)


def result_in(out: str, err: str = "") -> Record:
    assert out, err
    result: Record = json.loads(out)
    return result


def records(container: Container, result: Record, *matches: str) -> list[Record]:
    """Those of a session, in the order of the journal."""
    return container.journal(f"VMSNAP_SESSION={result['session']}", *matches)


def own(container: Container, result: Record) -> list[Record]:
    return records(container, result, "SYSLOG_IDENTIFIER=vmsnap")


def words(record: Record, name: str = "MESSAGE") -> str:
    """A field as text; journalctl writes what cannot be printed as a list of numbers."""
    value = record[name]
    return bytes(value).decode() if isinstance(value, list) else str(value)


def story(found: list[Record]) -> list[tuple[str, str]]:
    """(phase, kind of record), one after another.

    Without the note that memory cannot be locked: nspawn gives no CAP_IPC_LOCK to what it boots.
    """
    told = [record for record in found if "could not lock its memory" not in words(record)]
    return [(record["VMSNAP_PHASE"], name_of(record)) for record in told]


def names_of(found: list[Record]) -> list[str]:
    return [name for _, name in story(found)]


def name_of(record: Record) -> str:
    message_id = record["MESSAGE_ID"]
    return KINDS[message_id].label if message_id in KINDS else EVENTS[message_id].name


def of_event(found: list[Record], event: Event) -> list[Record]:
    return [record for record in found if record["MESSAGE_ID"] == event.value]


# --- what every record says --------------------------------------------------------------------


@both_ways
def test_a_session_is_told_from_its_beginning_to_its_end(container: Container, way: str) -> None:
    app(container, pre="echo quiesced", post="echo resumed")
    result = take(container, way)
    assert result["outcome"] == "success"
    assert story(records(container, result)) == [
        ("check", "STARTED"),
        ("pre", "PHASE"),
        ("pre", "SCRIPT_OUTPUT"),
        ("pre", "SCRIPT_ENDED"),
        ("presync", "PHASE"),
        ("freeze", "PHASE"),
        ("freeze", "FROZEN"),
        ("thaw", "THAWED"),
        ("post", "PHASE"),
        ("post", "SCRIPT_OUTPUT"),
        ("post", "SCRIPT_ENDED"),
        ("report", "PHASE"),
        ("report", "ENDED"),
    ]


def everything_goes_wrong(container: Container) -> None:
    app(container, "loud", pre="echo said; echo '<3>complained' >&2; exit 3", post="exit 4")
    app(container, "slow", pre="sleep 600", timeoutInSeconds=1)
    app(container, "fine", pre=":", post=":", colour="blue")
    app(container, "missing", preScriptLocation="/etc/vmsnap/scripts/nowhere")
    container.write("/etc/vmsnap/apps.d/broken.json", "{")
    container.write("/etc/vmsnap/vmsnap.conf", "[freeze]\nexclude = /nowhere\n")


@both_ways
def test_every_record_says_what_it_is_and_where_it_belongs(container: Container, way: str) -> None:
    everything_goes_wrong(container)
    result = take(container, way)
    found = records(container, result)
    assert {record["SYSLOG_IDENTIFIER"] for record in found} == {"vmsnap", "vmsnap-script"}
    for record in found:
        assert record["MESSAGE_ID"] in {*KINDS, *EVENTS}, record
        assert record["VMSNAP_PHASE"] in PHASES, record
    positions = [PHASES.index(record["VMSNAP_PHASE"]) for record in found]
    assert positions == sorted(positions)


@both_ways
def test_an_error_is_told_with_all_that_the_result_says_of_it(
    container: Container, way: str
) -> None:
    everything_goes_wrong(container)
    result = take(container, way)
    told = [record for record in own(container, result) if "VMSNAP_ERROR" in record]
    assert [(r["VMSNAP_ERROR"], int(r["VMSNAP_CODE"]), r["VMSNAP_PHASE"]) for r in told] == [
        (error["name"], error["code"], error["phase"]) for error in result["errors"]
    ]
    assert {record["VMSNAP_ERROR"] for record in told} == {
        *("IncorrectJSONConfigFile", "Pre-ScriptNotFound", "Pre-ScriptExecutionFailed"),
        *("Pre-ScriptTimeout", "Post-ScriptExecutionFailed"),
    }
    for record, error in zip(told, result["errors"]):
        kind = KINDS[record["MESSAGE_ID"]]
        assert (kind.label, kind.code) == (error["name"], error["code"])
        assert words(record) == f"{error['name']}: {error['message']}"
        assert record["PRIORITY"] == "3"
        assert record["VMSNAP_CONSISTENCY"] == "filesystem"
    quiet = [record for record in own(container, result) if record["MESSAGE_ID"] in EVENTS]
    assert not [record for record in quiet if "VMSNAP_ERROR" in record]


@both_ways
def test_the_records_about_an_app_are_found_by_its_name(container: Container, way: str) -> None:
    everything_goes_wrong(container)
    result = take(container, way)
    for name, expected in {
        "loud": ["Pre-ScriptExecutionFailed", "Post-ScriptExecutionFailed"],
        "slow": ["Pre-ScriptTimeout"],
        "missing": ["Pre-ScriptNotFound"],
        "fine": [],
    }.items():
        about = records(container, result, f"VMSNAP_APP={name}")
        assert [r["VMSNAP_ERROR"] for r in about if "VMSNAP_ERROR" in r] == expected, name
    output = records(container, result, "VMSNAP_APP=loud", "SYSLOG_IDENTIFIER=vmsnap-script")
    assert [words(record) for record in output] == ["said", "complained"]


@both_ways
def test_the_error_of_a_filesystem_is_found_by_its_mount_point(
    container: Container, way: str
) -> None:
    container.add_filesystem("/srv/data")
    kernel.freeze(container.path("/srv/data"))
    result = take(container, way)
    assert container.thaw()
    assert [error["name"] for error in result["errors"]] == ["FreezeFailed"]
    (record,) = records(container, result, "VMSNAP_MOUNT=/srv/data")
    assert record["VMSNAP_ERROR"] == "FreezeFailed"
    assert record["VMSNAP_CONSISTENCY"] == "crash"


@both_ways
def test_one_query_finds_a_bad_script_in_the_check_and_in_a_session(
    container: Container, way: str
) -> None:
    app(container, pre="exit 0")
    container.path("/etc/vmsnap/scripts/db-pre").chmod(0o755)
    assert container.systemctl("start", "vmsnap-check.service", check=False).returncode == 1
    result = take(container, way)
    name = "InsufficientPermissionforPre-Script"
    checked, session = container.journal(f"VMSNAP_ERROR={name}", "VMSNAP_APP=db")
    assert session["VMSNAP_SESSION"] == result["session"]
    fields = [
        {key: value for key, value in record.items() if key.startswith(("VMSNAP_", "MESSAGE_ID"))}
        for record in (checked, session)
    ]
    del fields[1]["VMSNAP_SESSION"]
    assert fields[0] == fields[1]
    assert fields[0]["VMSNAP_SUBJECT"] == "/etc/vmsnap/scripts/db-pre"
    assert words(checked).splitlines()[0] == words(session)


@both_ways
def test_one_query_finds_a_mount_point_in_the_check_and_in_a_session(
    container: Container, way: str
) -> None:
    container.write("/etc/vmsnap/vmsnap.conf", "[freeze]\nonly = /nowhere\n")
    assert container.systemctl("start", "vmsnap-check.service", check=False).returncode == 1
    result = take(container, way)
    checked, session = container.journal("VMSNAP_ERROR=MountOpenFailed", "VMSNAP_MOUNT=/nowhere")
    assert session["VMSNAP_SESSION"] == result["session"]
    assert (checked["VMSNAP_PHASE"], session["VMSNAP_PHASE"]) == ("check", "freeze")
    assert checked["VMSNAP_CONSISTENCY"] == session["VMSNAP_CONSISTENCY"] == "crash"
    fields = [{k for k in record if k.startswith("VMSNAP_")} for record in (checked, session)]
    assert fields[1] - fields[0] == {"VMSNAP_SESSION"}
    assert fields[0] <= fields[1]


def test_no_two_kinds_of_record_share_their_id() -> None:
    assert len({*KINDS, *EVENTS}) == len(Kind) + len(Event)


def test_an_expired_hold_is_told_after_the_freeze_and_before_the_end(container: Container) -> None:
    result = run(container, "--hold=0.2", command=("sleep", "600"))
    names = names_of(own(container, result))
    told = [name for name in names if name in ("FROZEN", "HoldExpired", "ENDED")]
    assert told == ["FROZEN", "HoldExpired", "ENDED"]
    (record,) = [r for r in own(container, result) if r.get("VMSNAP_ERROR") == "HoldExpired"]
    assert record["VMSNAP_CONSISTENCY"] == "crash"


def test_the_journal_finds_sessions_by_identifier_and_by_unit(container: Container) -> None:
    app(container, pre="echo quiesced", post="echo resumed")
    ran, held = run(container), hold(container)
    sessions = {record["VMSNAP_SESSION"] for record in container.journal("-t", "vmsnap")}
    assert sessions == {ran["session"], held["session"]}
    of_unit = container.journal("-u", "vmsnap-session")
    assert [r["__CURSOR"] for r in of_unit if "VMSNAP_SESSION" in r] == [
        record["__CURSOR"] for record in records(container, held)
    ]


# --- what scripts print ------------------------------------------------------------------------

PRINTS = r"""
printf '<3>bad\n<4>odd\n<5>notable\n<6>plain\n<7>detailed\n<9>no prefix\n'
echo 'to stderr' >&2
echo '<4>to stderr, too' >&2
printf 'ünïcödé 数据库\n'
printf 'A=1\n\n  indented \n'
printf '\377\000\033[31m\n'
printf 'without an end'
"""
PRINTED = [
    *[("3", "bad"), ("4", "odd"), ("5", "notable"), ("6", "plain"), ("6", "detailed")],
    *[("6", "<9>no prefix"), ("6", "to stderr"), ("4", "to stderr, too")],
    *[("6", "ünïcödé 数据库"), ("6", "A=1"), ("6", ""), ("6", "  indented ")],
    *[("6", "\ufffd\\x00\\x1b[31m"), ("6", "without an end")],
]


@both_ways
@pytest.mark.parametrize("phase", ["pre", "post"])
def test_what_a_script_prints_is_in_the_journal_line_by_line(
    container: Container, way: str, phase: str
) -> None:
    app(container, **{phase: PRINTS})
    result = take(container, way)
    output = container.journal("-t", "vmsnap-script")
    assert [(record["PRIORITY"], words(record)) for record in output] == PRINTED
    for record in output:
        assert record["MESSAGE_ID"] == Event.SCRIPT_OUTPUT.value
        assert record["VMSNAP_SESSION"] == result["session"]
        assert (record["VMSNAP_APP"], record["VMSNAP_PHASE"]) == ("db", phase)


@both_ways
def test_a_long_line_is_in_the_journal_whole(container: Container, way: str) -> None:
    app(container, pre="head -c 1000000 /dev/zero | tr '\\0' x; echo; echo short")
    take(container, way)
    *pieces, last = map(words, container.journal("-t", "vmsnap-script"))
    assert last == "short"
    assert "".join(pieces) == "x" * 1_000_000


@both_ways
def test_a_script_that_prints_fast_loses_no_line(container: Container, way: str) -> None:
    app(container, pre="seq 3000", post="seq 3001 4000")
    take(container, way)
    printed = [words(record) for record in container.journal("-t", "vmsnap-script")]
    lost = [n for n in range(1, 4001) if str(n) not in set(printed)]
    assert not lost, f"{len(lost)} of 4000 lines"
    assert printed == [str(n) for n in range(1, 4001)]


# --- the result --------------------------------------------------------------------------------


@both_ways
def test_the_last_record_carries_the_whole_result(container: Container, way: str) -> None:
    everything_goes_wrong(container)
    result = take(container, way)
    *_, last = own(container, result)
    assert name_of(last) == "ENDED"
    assert json.loads(words(last, "VMSNAP_RESULT")) == result
    assert last["VMSNAP_CONSISTENCY"] == result["consistency"]


@both_ways
def test_a_result_of_more_than_200_kib_is_carried_whole(container: Container, way: str) -> None:
    # Each of these characters becomes six in JSON, and the end of the output is in the message.
    for number in range(12):
        script = "head -c 4000 /dev/zero | tr '\\0' '\\001'; exit 1"
        app(container, f"app{number}", pre=script, preScriptNoOfRetries=10)
    result = take(container, way)
    assert [app["pre"]["attempts"] for app in result["apps"]] == [11] * 12
    *_, last = own(container, result)
    assert name_of(last) == "ENDED"
    text = words(last, "VMSNAP_RESULT")
    assert len(text) > 200 << 10
    assert json.loads(text) == result
    kept = container.run("vmsnap", "history", "--json", check=True)
    assert json.loads(kept.stdout)[0] == result


# --- nothing is lost ---------------------------------------------------------------------------

FLOODED = [
    *("STARTED", "PHASE", "NOTE", "SCRIPT_ENDED", "PHASE", "PHASE", "FROZEN", "THAWED"),
    *("PHASE", "NOTE", "SCRIPT_ENDED", "PHASE", "ENDED"),
]


@pytest.mark.parametrize("way", [RUN, HELD, "vmsnap run in a unit"])
def test_a_script_that_floods_the_journal_costs_no_record_of_the_session(
    container: Container, way: str
) -> None:
    app(container, pre="seq 100000", post="seq 100000")
    if way in (RUN, HELD):
        result = take(container, way)
    else:
        argv = (*IN_A_UNIT, "vmsnap", "run", "--json", "--", "true")
        result = result_in(container.run(*argv, check=True).stdout)
    assert result["outcome"] == "success"
    told = own(container, result)
    kept = [record for record in told if name_of(record) != "DROPPED"]
    assert names_of(kept) == FLOODED
    left_out = [words(r) for r in of_event(told, Event.NOTE) if "left out" in words(r)]
    assert [re.sub("[0-9]+", "N", text) for text in left_out] == [
        "N more lines of output are left out"
    ] * 2
    recorded = len(container.journal("-t", "vmsnap-script"))
    lost = sum(number_in(words(record)) for record in of_event(told, Event.DROPPED))
    assert recorded + lost + sum(map(number_in, left_out)) == 200_000
    listed = container.run("vmsnap", "history", "--json", check=True)
    assert json.loads(listed.stdout)[0] == result


def test_many_scripts_that_flood_the_journal_at_once_cost_no_record(container: Container) -> None:
    names = [f"app{number}" for number in range(8)]
    for name in names:
        app(container, name, pre="seq 50000; exit 1", post="seq 50000")
    result = run(container)
    told = own(container, result)
    ended = [(r["VMSNAP_PHASE"], r["VMSNAP_APP"]) for r in of_event(told, Event.SCRIPT_ENDED)]
    assert sorted(ended) == [("post", name) for name in names] + [("pre", name) for name in names]
    left_out = [r["VMSNAP_APP"] for r in of_event(told, Event.NOTE) if "left out" in words(r)]
    assert sorted(left_out) == sorted([*names, *names])
    failed = [record["VMSNAP_APP"] for record in told if "VMSNAP_ERROR" in record]
    assert sorted(failed) == names
    assert name_of(told[-1]) == "ENDED"


def number_in(text: str) -> int:
    found = re.search("[0-9]+", text)
    assert found, text
    return int(found[0])


def test_records_that_are_lost_are_summed_up_and_not_told_one_by_one(container: Container) -> None:
    app(container, pre="seq 100000")
    lost = of_event(own(container, run(container)), Event.DROPPED)
    assert len(lost) <= 3
    assert {record.get("VMSNAP_PHASE") for record in lost} <= {"pre"}


@both_ways
def test_what_a_script_left_running_can_print_while_everything_is_frozen(
    container: Container, way: str
) -> None:
    app(
        container,
        pre="yes & echo $! >$VMSNAP_SCRIPT_DIR/pid",
        post="kill $(cat $VMSNAP_SCRIPT_DIR/pid)",
    )
    result = take(container, way)
    assert result["outcome"] == "success"
    assert list(map(name_of, own(container, result)))[-6:] == [
        "FROZEN",
        "THAWED",
        "PHASE",
        "SCRIPT_ENDED",
        "PHASE",
        "ENDED",
    ]


FILL_THE_QUEUE = """
import select, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
    journal.connect("/run/systemd/journal/socket")
    journal.setblocking(False)
    poll = select.poll()
    poll.register(journal, select.POLLOUT)
    while poll.poll(300):  # ends when journald has stopped reading, as it does on a frozen disk
        journal.send(b"MESSAGE=noise\\nSYSLOG_IDENTIFIER=noise\\n")
"""


def test_a_program_that_fills_the_queue_of_the_frozen_journal_costs_no_record(
    container: Container,
) -> None:
    app(container, pre=":", post=":")
    command = ("python3", "-Ic", FILL_THE_QUEUE)
    result = run(container, command=command)
    assert result["outcome"] == "success"
    assert names_of(own(container, result)) == [
        *("STARTED", "PHASE", "SCRIPT_ENDED", "PHASE", "PHASE", "FROZEN", "THAWED"),
        *("PHASE", "SCRIPT_ENDED", "PHASE", "ENDED"),
    ]


# --- the catalogue -----------------------------------------------------------------------------


def explained(container: Container, *argv: str, language: str = "") -> str:
    """What `journalctl -x` prints since the last reset, with lines joined; "" is no language."""
    env = {}
    if language:
        # Any locale of this name does: journalctl goes by what setlocale(3) says it is called.
        container.run("sh", "-c", "mkdir -p /run/locale", check=True)
        place = f"/run/locale/{language}.utf8"
        container.run("cp", "-rT", "/usr/lib/locale/C.utf8", place, check=True)
        env = {"LOCPATH": "/run/locale", "LANG": f"{language}.UTF-8"}
    container.run("journalctl", "--sync", check=True)
    argv = ("journalctl", "-q", "-x", "--no-pager", f"--cursor={container.cursor}", *argv)
    text = container.run(*argv, env=env, check=True).stdout
    return " ".join(text.replace("\u2591\u2591", "").split())


@pytest.fixture
def catalogue(container: Container) -> Container:
    """A container where the message catalogue is in use, as after a package's installation."""
    done = container.run("journalctl", "--update-catalog", check=True)
    assert done.stderr == ""
    return container


def test_journalctl_explains_a_failed_script(catalogue: Container) -> None:
    app(catalogue, pre="exit 1")
    session = run(catalogue)["session"]
    text = explained(catalogue, "-p", "err")
    kind = Kind.PRE_SCRIPT_EXECUTION_FAILED
    for expected in (
        f"Subject: {kind.summary}",
        f"What to do: {kind.action}.",
        f"It happened in phase pre of session {session}.",
        f"`journalctl VMSNAP_SESSION={session} VMSNAP_APP=db`",
    ):
        assert expected in text


def test_journalctl_explains_an_expired_hold(catalogue: Container) -> None:
    result = run(catalogue, "--hold=0.2", command=("sleep", "600"))
    phase = next(e["phase"] for e in result["errors"] if e["name"] == "HoldExpired")
    text = explained(catalogue, "-p", "err")
    kind = Kind.HOLD_EXPIRED
    assert f"Subject: {kind.summary}" in text
    assert f"What to do: {kind.action}." in text
    assert f"It happened in phase {phase} of session {result['session']}." in text


def test_journalctl_explains_it_in_spanish(catalogue: Container) -> None:
    app(catalogue, pre="exit 1")
    session = run(catalogue)["session"]
    text = explained(catalogue, "-p", "err", language="es_ES")
    assert "Subject: El pre-script falló, también en todos los reintentos configurados" in text
    assert "Qué hacer: Lea la salida del propio script en el journal" in text
    assert f"Ocurrió en la fase pre de la sesión {session}." in text
    assert Kind.PRE_SCRIPT_EXECUTION_FAILED.summary not in text


def test_a_language_without_a_catalogue_is_answered_in_english(catalogue: Container) -> None:
    app(catalogue, pre="exit 1")
    run(catalogue)
    text = explained(catalogue, "-p", "err", language="de_DE")
    assert f"Subject: {Kind.PRE_SCRIPT_EXECUTION_FAILED.summary}" in text


@pytest.mark.parametrize("language", ["", "es_ES"])
def test_no_explanation_has_a_hole(catalogue: Container, language: str) -> None:
    everything_goes_wrong(catalogue)
    result = hold(catalogue)
    text = explained(catalogue, f"VMSNAP_SESSION={result['session']}", language=language)
    assert text.count("Defined-By: vmsnap") == len(records(catalogue, result))
    assert "@VMSNAP" not in text
