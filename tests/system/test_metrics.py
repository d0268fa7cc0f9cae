# SPDX-License-Identifier: Apache-2.0
"""The file for node_exporter's textfile collector."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from vmsnap.errors import Kind
from vmsnap.journal.sender import Event
from vmsnap.result import PHASES

from .container import Container
from .test_journal import Record, app, hold, of_event, own, run, words

Take = Callable[[Container], Record]

DIRECTORY = Path("/var/lib/prometheus/node-exporter")
TEXTFILE = DIRECTORY / "vmsnap.prom"
SAMPLE = re.compile(r'([a-z_]+)(\{(?:[a-z]+="[^"\\]*",?)+\})? (\S+)')
LEVELS = ("none", "crash", "filesystem", "application")


@pytest.fixture
def measured(container: Container) -> Iterator[Container]:
    """A container that node_exporter watches."""
    container.path(DIRECTORY).mkdir(parents=True)
    configure(container, TEXTFILE)
    yield container
    shutil.rmtree(container.path(DIRECTORY.parent))


def configure(container: Container, textfile: Path) -> None:
    container.write("/etc/vmsnap/vmsnap.conf", f"[metrics]\ntextfile = {textfile}\n")


def samples(container: Container, path: Path = TEXTFILE) -> dict[str, float]:
    """By name and labels. As Prometheus asks: HELP and TYPE come first, and a family in one piece
    (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    text = container.read(path)
    assert text.endswith("\n")
    found: dict[str, float] = {}
    family, kinds = "", dict[str, str]()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in kinds, f"{family} comes twice"
        elif line.startswith("# TYPE "):
            _, _, name, kinds[family] = line.split()
            assert name == family
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert (match[1], kinds[family]) in ((family, "gauge"), (family, "counter"))
            assert (kinds[family] == "counter") == family.endswith("_total")
            key = match[1] + (match[2] or "")
            assert key not in found, f"{key} comes twice"
            found[key] = float(match[3])
    return found


def phases(result: Record) -> dict[str, float]:
    """How long each phase took, by the timeline of the result."""
    begins = [(e["event"], e["at"]) for e in result["timeline"] if e["event"] in PHASES]
    ends = [at for _, at in begins[1:]] + [result["seconds"]]
    return {name: end - at for (name, at), end in zip(begins, ends)}


def total(found: dict[str, float], outcome: str) -> float:
    return found[f'vmsnap_sessions_total{{outcome="{outcome}"}}']


def errors(found: dict[str, float], kind: Kind) -> float:
    return found[f'vmsnap_errors_total{{name="{kind.label}",code="{kind.code}"}}']


def left_in(container: Container, directory: Path) -> list[str]:
    return sorted(path.name for path in container.path(directory).iterdir())


# --- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("take", [run, hold])
def test_the_file_says_what_the_result_says(measured: Container, take: Take) -> None:
    app(measured, pre="exit 3", post=":")
    result = take(measured)
    assert (result["outcome"], result["consistency"]) == ("success", "filesystem")
    found = samples(measured)
    last = "vmsnap_last_session"
    assert found[f"{last}_success"] == 1
    assert found[f"{last}_consistency"] == LEVELS.index(result["consistency"])
    assert found[f"{last}_stall_seconds"] == pytest.approx(result["frozen_seconds"], abs=1e-6)
    assert found[f"{last}_seconds"] == pytest.approx(result["seconds"], abs=1e-6)
    started = datetime.fromisoformat(result["started"]).timestamp()
    assert found[f"{last}_start_timestamp_seconds"] == pytest.approx(started, abs=0.001)
    told = {key: value for key, value in found.items() if "_phase_seconds" in key}
    expected = {
        f'{last}_phase_seconds{{phase="{name}"}}': seconds
        for name, seconds in phases(result).items()
    }
    assert set(expected) == {f'{last}_phase_seconds{{phase="{name}"}}' for name in PHASES}
    assert told == pytest.approx(expected, abs=2e-6)
    assert errors(found, Kind.PRE_SCRIPT_EXECUTION_FAILED) == 1


def test_the_collector_can_read_the_file_and_finds_nothing_else(measured: Container) -> None:
    run(measured)
    assert stat.S_IMODE(measured.path(TEXTFILE).stat().st_mode) == 0o644
    assert left_in(measured, DIRECTORY) == ["vmsnap.prom"]
    reader = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(TEXTFILE))
    assert measured.run(*reader, check=True).stdout == measured.read(TEXTFILE)


def test_counters_go_on_from_session_to_session(measured: Container) -> None:
    run(measured)
    found = samples(measured)
    assert (total(found, "success"), total(found, "failed")) == (1, 0)
    succeeded = found["vmsnap_last_success_timestamp_seconds"]

    run(measured, command=("false",))
    found = samples(measured)
    assert (total(found, "success"), total(found, "failed")) == (1, 1)
    assert found["vmsnap_last_session_success"] == found["vmsnap_last_session_consistency"] == 0
    assert found["vmsnap_last_success_timestamp_seconds"] == succeeded
    assert errors(found, Kind.SNAPSHOT_FAILED) == 1

    hold(measured)
    found = samples(measured)
    assert (total(found, "success"), total(found, "failed")) == (2, 1)
    assert found["vmsnap_last_success_timestamp_seconds"] > succeeded
    assert errors(found, Kind.SNAPSHOT_FAILED) == 1


def test_every_error_has_a_counter_from_the_first_session_on(measured: Container) -> None:
    run(measured)
    found = samples(measured)
    assert {kind: errors(found, kind) for kind in Kind} == dict.fromkeys(Kind, 0.0)


def test_the_file_is_written_after_the_thaw(measured: Container) -> None:
    measured.run("vmsnap", "freeze", check=True)
    assert measured.frozen()
    assert left_in(measured, DIRECTORY) == []
    measured.run("vmsnap", "thaw", check=True)
    assert total(samples(measured), "success") == 1


def test_nothing_is_written_unless_it_is_asked_for(measured: Container) -> None:
    measured.write("/etc/vmsnap/vmsnap.conf", "[metrics]\ntextfile =\n")
    assert run(measured)["outcome"] == "success"
    assert left_in(measured, DIRECTORY) == []


# --- what can go wrong -------------------------------------------------------------------------


def assert_only_a_warning(container: Container, result: Record, textfile: Path) -> None:
    assert (result["outcome"], result["errors"]) == ("success", [])
    noted = [r for r in of_event(own(container, result), Event.NOTE) if "metrics" in words(r)]
    (record,) = noted
    assert str(textfile) in words(record)
    assert (record["PRIORITY"], record["VMSNAP_PHASE"]) == ("4", "report")
    kept = json.loads(container.run("vmsnap", "status", "--json", check=True).stdout)
    assert kept["last"] == result


@pytest.mark.parametrize("take", [run, hold])
def test_a_missing_directory_costs_a_warning(container: Container, take: Take) -> None:
    textfile = Path("/srv/nowhere/vmsnap.prom")
    configure(container, textfile)
    assert_only_a_warning(container, take(container), textfile)
    assert not container.path(textfile.parent).exists()


@pytest.mark.parametrize("take", [run, hold])
def test_a_read_only_directory_costs_a_warning(container: Container, take: Take) -> None:
    container.add_filesystem("/srv/metrics")
    container.run("mount", "-o", "remount,ro", "/srv/metrics", check=True)
    textfile = Path("/srv/metrics/vmsnap.prom")
    configure(container, textfile)
    assert_only_a_warning(container, take(container), textfile)
    assert "vmsnap.prom" not in left_in(container, textfile.parent)


@pytest.mark.parametrize("take", [run, hold])
def test_a_full_filesystem_costs_a_warning_and_the_old_file_stays(
    container: Container, take: Take
) -> None:
    container.add_filesystem("/srv/metrics", mib=4)
    textfile = Path("/srv/metrics/vmsnap.prom")
    configure(container, textfile)
    assert take(container)["outcome"] == "success"
    before = container.read(textfile)
    fill = "dd if=/dev/zero of=/srv/metrics/fill bs=1k oflag=sync"
    assert "No space left" in container.run(*fill.split()).stderr
    assert_only_a_warning(container, take(container), textfile)
    assert container.read(textfile) == before
    assert left_in(container, textfile.parent) == ["fill", "lost+found", "vmsnap.prom"]
    container.path("/srv/metrics/fill").unlink()
    take(container)
    assert total(samples(container, textfile), "success") == 2


def test_a_directory_in_the_place_of_the_file_costs_a_warning(measured: Container) -> None:
    measured.path(TEXTFILE).mkdir()
    assert_only_a_warning(measured, run(measured), TEXTFILE)
    assert left_in(measured, DIRECTORY) == ["vmsnap.prom"]


def test_a_file_that_is_no_text_is_replaced(measured: Container) -> None:
    measured.path(TEXTFILE).write_bytes(b"vmsnap_sessions_total \377\0\n")
    assert run(measured)["outcome"] == "success"
    assert total(samples(measured), "success") == 1
