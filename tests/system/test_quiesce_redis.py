# SPDX-License-Identifier: Apache-2.0
"""The quiescer for Redis against Debian's, which can only have its files on one disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .apps import until
from .databases import (
    DATA,
    SERVICE,
    Machine,
    Site,
    assert_init_is_enough,
    booted,
    explained,
    site_of,
)

DIRECTORY = f"{DATA}/redis"
CLIENT = ("redis-cli", "--raw")
TRANSACTION = "MULTI\nSET a:{id} 1\nSET b:{id} 1\nEXEC\nECHO {id}\n"
PRE, POST = "Pre-ScriptExecutionFailed", "Post-ScriptExecutionFailed"
APPENDING = ("--appendonly", "yes", "--save", "")
SAVING = ("--appendonly", "no", "--save", "3600 1")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted() as made:
        yield made


@pytest.fixture
def site(machine: Machine) -> Iterator[Site]:
    """An empty server that does not run yet."""
    with site_of(machine, "redis", "redis") as site:
        site.root("install", "-d", "-o", "redis", DIRECTORY)
        site.app()
        with machine.guarded():
            yield site


def start(site: Site, *options: str) -> None:
    site.start("/usr/bin/redis-server", "--supervised", "systemd", "--dir", DIRECTORY, *options)


def ask(site: Site, *words: str) -> str:
    return site.root(*CLIENT, *words).strip()


def keys(site: Site, prefix: str) -> set[int]:
    return {int(key[2:]) for key in ask(site, "KEYS", f"{prefix}:*").split()}


# --- the snapshot --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [APPENDING, SAVING], ids=["aof", "rdb"])
def test_a_snapshot_under_load_has_every_transaction(site: Site, options: tuple[str, ...]) -> None:
    start(site, *options)
    site.load(TRANSACTION, *CLIENT)
    held = site.freeze()
    acknowledged = site.acknowledged
    copies = site.snapshot()
    assert site.scene.thaw().verdict == ("success", "application", 0)
    site.restore(copies)
    position = site.position
    assert position["session"] == held["session"]
    start(site, *options)
    a, b = keys(site, "a"), keys(site, "b")
    assert a == b, "half a transaction"
    assert acknowledged <= a, "lost transactions"
    assert position["keys"]["db0"].startswith(f"keys={2 * len(a)},")


def test_nothing_is_written_until_the_thaw(site: Site) -> None:
    start(site, *APPENDING)
    site.freeze("--no-fsfreeze")
    write = site.machine.popen(*CLIENT, "SET", "key", "value")
    until(lambda: "\nblocked_clients:1\n" in ask(site, "INFO", "clients"))
    assert ask(site, "GET", "key") == ""  # who reads is not stopped
    assert site.scene.thaw().verdict == ("success", "application", 0)
    assert write.wait(10.0) == 0
    assert ask(site, "GET", "key") == "value"


@pytest.mark.parametrize("server", ["redis", "valkey"])
def test_init_is_enough(site: Site, server: str) -> None:
    start(site, *SAVING)
    assert_init_is_enough(site, server)


# --- what can go wrong ----------------------------------------------------------------------------


def test_a_server_killed_in_the_hold_is_told(site: Site) -> None:
    start(site, *APPENDING)
    site.load(TRANSACTION, *CLIENT)
    site.freeze()
    site.kill()
    site.stop()  # returns when it is dead
    thaw = site.scene.thaw()
    assert thaw.verdict == ("success", "filesystem", 0)
    assert "is the server running" in explained(thaw, POST)


def test_a_server_restarted_in_the_hold_is_told(site: Site) -> None:
    start(site, *APPENDING)
    site.freeze("--no-fsfreeze")
    site.stop()
    start(site, *APPENDING)
    assert "it was restarted" in explained(site.scene.thaw(), POST)


def test_a_server_that_does_not_run_is_told_and_post_does_no_harm(site: Site) -> None:
    assert "is the server running" in explained(site.run(), PRE)
    assert "Redis was not held: the pre-script did not succeed" in site.said


def test_a_server_that_keeps_nothing_is_refused(site: Site) -> None:
    start(site, "--appendonly", "no", "--save", "")
    assert "found persistence disabled" in explained(site.run(), PRE)


def test_a_replica_is_refused(site: Site) -> None:
    start(site, *APPENDING, "--replicaof", "192.0.2.1 6379")
    assert "found a replica" in explained(site.run(), PRE)


def test_wrong_credentials_are_told(site: Site) -> None:
    start(site, *APPENDING, "--requirepass", "right")
    assert "name it with --password-file" in explained(site.run(), PRE)
    file = site.machine.write("/root/redis-password", "wrong\n")
    site.app("--password-file=/root/redis-password")
    assert "see --user and --password-file" in explained(site.run(), PRE)
    file.write_text("right\n")
    file.chmod(0o644)
    assert "expected mode 0600" in explained(site.run(), PRE)
    file.chmod(0o600)
    assert site.run().verdict == ("success", "application", 0)
    file.unlink()


def test_a_server_that_hangs_in_the_hold_is_told(site: Site) -> None:
    start(site, *APPENDING)
    site.app(timeout=6)
    site.freeze("--no-fsfreeze")
    site.machine.systemctl("kill", "--signal=STOP", SERVICE, check=True)
    thaw = site.scene.thaw()
    site.machine.systemctl("kill", "--signal=CONT", SERVICE, check=True)
    assert "lost the server" in explained(thaw, POST)


def test_a_save_that_fails_is_told_and_writes_go_on(site: Site) -> None:
    start(site, *SAVING, "--stop-writes-on-bgsave-error", "no")
    site.root("chown", "root", DIRECTORY)
    assert "BGSAVE failed" in explained(site.run(), PRE)
    assert ask(site, "SET", "key", "value") == "OK"


def test_who_ends_the_pause_in_the_hold_is_found_out(site: Site) -> None:
    start(site, *APPENDING)
    site.freeze("--no-fsfreeze")
    ask(site, "CLIENT", "UNPAUSE")
    ask(site, "SET", "key", "value")
    assert "another client has ended the pause" in explained(site.scene.thaw(), POST)


def test_writes_go_on_at_the_deadline_and_post_says_so(site: Site) -> None:
    start(site, *APPENDING)
    site.app("--hold=1")
    site.freeze("--no-fsfreeze")
    assert ask(site, "SET", "key", "value") == "OK"  # waits for that
    assert "at its deadline" in explained(site.scene.thaw(), POST)


def test_writes_go_on_when_all_of_vmsnap_is_killed(site: Site) -> None:
    start(site, *APPENDING)
    site.app("--hold=3")
    site.freeze("--no-fsfreeze")
    site.kill_vmsnap()
    assert ask(site, "SET", "key", "value") == "OK"


def test_a_killed_engine_leaves_nothing_held(site: Site) -> None:
    start(site, *APPENDING)
    site.freeze()
    site.machine.kill(site.scene.engine)
    assert ask(site, "SET", "key", "value") == "OK"
    site.scene.wait_for_failure()
    assert "writes go on" in site.said


def test_the_first_rewrite_of_an_append_only_file_is_waited_for(site: Site) -> None:
    """Before its end the file has not all of the data."""
    start(site, *SAVING, "--rdb-key-save-delay", "200", "--enable-debug-command", "yes")
    ask(site, "DEBUG", "POPULATE", "5000")
    ask(site, "CONFIG", "SET", "appendonly", "yes")
    assert "aof_rewrite_in_progress:1" in ask(site, "INFO", "persistence")
    site.freeze()
    copies = site.snapshot()
    assert site.scene.thaw().verdict == ("success", "application", 0)
    site.restore(copies)
    start(site, *APPENDING)
    assert ask(site, "DBSIZE") == "5000"
