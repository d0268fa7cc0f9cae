# SPDX-License-Identifier: Apache-2.0
"""What became of past sessions: `vmsnap history`, `vmsnap plot` and `vmsnap status`."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from tests.fs.processes import wait_for_end
from vmsnap.journal.sender import Event

from .container import Container
from .test_journal import Record, app, hold, run

UNIT = "vmsnap-session.service"
EMPTY = "The journal knows no session.\n"


@pytest.fixture
def emptied(container: Container) -> Iterator[Container]:
    """A container whose journal knows no session."""
    empty(container)
    yield container
    empty(container)  # of what was forged


def empty(container: Container) -> None:
    container.run("journalctl", "--sync", check=True)
    container.run("journalctl", "-q", "--rotate", "--vacuum-size=1", check=True)


def listed(container: Container, *options: str) -> list[Record]:
    found: list[Record] = json.loads(
        container.run("vmsnap", "history", "--json", *options, check=True).stdout
    )
    return found


def table(container: Container, *options: str) -> list[list[str]]:
    """The words of each line below the header."""
    shown = container.run("vmsnap", "history", *options, check=True).stdout.splitlines()
    return [line.split() for line in shown[1:]]


def complaint(container: Container, *argv: str) -> str:
    """What a command complains of, in one line, before it ends with 1."""
    done = container.run("vmsnap", *argv)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


def forge(container: Container, *program: str, **fields: str) -> None:
    """Send a record to the journal as somebody else."""
    lines = "".join(f"{name}={value}\n" for name, value in fields.items())
    container.run(*program, "logger", "--journald", input=lines, check=True)
    container.run("journalctl", "--sync", check=True)


# --- history -----------------------------------------------------------------------------------


def test_an_empty_journal_knows_no_session(emptied: Container) -> None:
    assert emptied.run("vmsnap", "history", check=True).stdout == EMPTY
    assert listed(emptied) == []


def test_history_lists_what_the_sessions_printed_newest_first(emptied: Container) -> None:
    app(emptied, pre="echo said; exit 3", post="echo said")
    results = [
        run(emptied),
        hold(emptied),
        run(emptied, "--require=application"),
        run(emptied, command=("false",)),
    ]
    assert [result["outcome"] for result in results] == ["success"] * 2 + ["failed"] * 2
    assert listed(emptied) == results[::-1]


def test_history_is_a_table_of_80_columns(emptied: Container) -> None:
    app(emptied, preScriptLocation="/nowhere", postScriptLocation="/etc")
    app(emptied, "slow", pre="sleep 600", timeoutInSeconds=1)
    ran, held = run(emptied, "--require=application"), hold(emptied)
    text = emptied.run("vmsnap", "history", check=True).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert [line[2:5] for line in table(emptied)] == [
        [result["session"][:8], result["outcome"], result["consistency"]] for result in (held, ran)
    ]


def test_since_leaves_out_what_was_before(emptied: Container) -> None:
    run(emptied)
    middle = emptied.run("date", "+@%s.%N", check=True).stdout.strip()[:-3]
    second = run(emptied)
    assert len(table(emptied, "--since=-1h")) == 2
    assert len(table(emptied, "--since", "yesterday")) == 2
    assert listed(emptied, f"--since={middle}") == [second]
    assert emptied.run("vmsnap", "history", "--since", "tomorrow", check=True).stdout == EMPTY
    assert listed(emptied, "--since", "tomorrow") == []


def test_since_takes_a_relative_time_as_journalctl_does(emptied: Container) -> None:
    run(emptied)
    emptied.run("journalctl", "-q", "--since", "-1h", check=True)
    assert len(table(emptied, "--since", "-1h")) == 1


def test_a_time_that_is_none_is_complained_of(container: Container) -> None:
    assert "nonsense" in complaint(container, "history", "--since", "nonsense")


def test_what_another_user_writes_to_the_journal_is_no_session(emptied: Container) -> None:
    true = run(emptied)
    made_up = {**true, "session": str(uuid.uuid4())}
    fields = {
        "MESSAGE": "Session ended",
        "MESSAGE_ID": Event.ENDED.value,
        "SYSLOG_IDENTIFIER": "vmsnap",
        "VMSNAP_SESSION": made_up["session"],
        "VMSNAP_RESULT": json.dumps(made_up),
    }
    forge(emptied, "setpriv", "--reuid=65534", "--clear-groups", _UID="0", **fields)
    assert len(emptied.journal(f"MESSAGE_ID={Event.ENDED.value}")) == 2
    assert listed(emptied) == [true]
    assert "no session" in complaint(emptied, "plot", made_up["session"])
    forge(emptied, **fields)  # root, who could have done anything else as well
    assert listed(emptied) == [made_up, true]


def test_a_record_that_cannot_be_read_hides_no_other(emptied: Container) -> None:
    true = run(emptied)
    for text in ("{", "[]", "null", '{"version": 2}', json.dumps({**true, "seconds": "long"})):
        forge(emptied, MESSAGE="x", MESSAGE_ID=Event.ENDED.value, VMSNAP_RESULT=text)
    forge(emptied, MESSAGE="x", MESSAGE_ID=Event.ENDED.value)
    assert listed(emptied) == [true]
    assert len(table(emptied)) == 1


def kill_engine(container: Container) -> str:
    """Begin a session of the unit and kill its engine; return its UUID once it is over."""
    done = container.run("vmsnap", "freeze", "--json", check=True)
    session: str = json.loads(done.stdout)["session"]
    engine = container.outside(int(container.show(UNIT, "MainPID")["MainPID"]))
    container.kill(int(container.show(UNIT, "MainPID")["MainPID"]))
    assert wait_for_end(engine, 10.0)
    container.systemctl("stop", UNIT)  # waits for what systemd does about it
    return session


def test_a_session_that_was_killed_has_failed(emptied: Container) -> None:
    app(emptied, pre=":", post=":")
    good = run(emptied)
    killed = kill_engine(emptied)
    assert not emptied.frozen()
    newest, oldest = listed(emptied)
    assert oldest == good
    assert newest["session"] == killed
    assert (newest["outcome"], newest["consistency"]) == ("failed", "none")
    assert [error["name"] for error in newest["errors"]] == ["EngineLost"]
    first = table(emptied)[0]
    assert (first[2:5], first[-1]) == ([killed[:8], "failed", "none"], "EngineLost")


# --- plot --------------------------------------------------------------------------------------


def drawn(container: Container, prefix: str) -> str:
    """The text of the picture, which is well-formed SVG."""
    picture = container.run("vmsnap", "plot", prefix, check=True).stdout
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return " ".join(root.itertext())


def test_a_session_of_the_journal_can_be_drawn(container: Container) -> None:
    container.add_filesystem("/srv/data", "xfs")
    app(container, "db", pre="echo '<&>'; exit 3", post=":")
    app(container, "web-shop", pre=":", post=":")
    drawing = [run(container), hold(container)]
    run(container)
    for result in drawing:
        text = drawn(container, result["session"][:8])
        for expected in (
            *(result["session"], "db", "web-shop", "/srv/data", "Pre-ScriptExecutionFailed"),
            *(entry["name"] for entry in result["apps"]),
            *(filesystem["mount"] for filesystem in result["filesystems"]),
        ):
            assert expected in text
        assert len(result["filesystems"]) == 2


def test_a_session_that_was_killed_can_be_drawn(container: Container) -> None:
    killed = kill_engine(container)
    text = drawn(container, killed)
    assert killed in text
    assert "EngineLost" in text


def test_a_session_that_nobody_knows_cannot_be_drawn(container: Container) -> None:
    run(container)
    assert "'nobody'" in complaint(container, "plot", "nobody")


def test_a_prefix_of_two_sessions_is_refused(emptied: Container) -> None:
    first = run(emptied)
    twin = first["session"][:-1] + ("0" if first["session"][-1] != "0" else "1")
    text = json.dumps({**first, "session": twin})
    forge(emptied, MESSAGE="x", MESSAGE_ID=Event.ENDED.value, VMSNAP_RESULT=text)
    line = complaint(emptied, "plot", twin[:8])
    assert "2 sessions" in line
    assert twin in drawn(emptied, twin)
    assert first["session"] in drawn(emptied, first["session"])


def test_the_last_session_can_be_drawn_without_the_journal(container: Container) -> None:
    app(container, pre=":", post=":")
    run(container)
    last = run(container)
    empty(container)
    assert listed(container) == []
    text = drawn(container, last["session"][:8])
    assert last["session"] in text
    assert last["session"] in drawn(container, "")  # there is no other
    shutil.rmtree(container.path("/run/vmsnap"))
    assert last["session"] in drawn(container, last["session"][:8])


def test_a_last_result_that_cannot_be_read_is_complained_of(container: Container) -> None:
    session = run(container)["session"]
    container.write("/run/vmsnap/last-result.json", "{")
    assert "last-result.json" in complaint(container, "status")
    done = container.run("vmsnap", "plot", session)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or "last-result.json" in done.stderr


# --- status ------------------------------------------------------------------------------------


def test_the_last_result_is_known_after_a_boot(container: Container) -> None:
    for take in (run, hold):
        result = take(container)
        shutil.rmtree(container.path("/run/vmsnap"))
        shown = container.run("vmsnap", "status", "--json", check=True).stdout
        nothing = dict.fromkeys(("provisioning", "in_progress", "lost"))
        expected = {**nothing, "last": result, "writers_wait": {}}
        assert json.loads(shown) == expected
        assert result["session"] in container.run("vmsnap", "status", check=True).stdout


def test_a_session_that_was_killed_is_known_as_failed_after_a_boot(container: Container) -> None:
    killed = kill_engine(container)
    shutil.rmtree(container.path("/run/vmsnap"))
    shown = container.run("vmsnap", "status", "--json")
    assert shown.returncode == 1
    last = json.loads(shown.stdout)["last"]
    assert (last["session"], last["outcome"]) == (killed, "failed")
