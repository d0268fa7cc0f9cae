# SPDX-License-Identifier: Apache-2.0
"""Questions to a pair of copied disks, and the answers: first as they lie, then as restored.

The same questions are put to the copies made with vmsnap and to those made without.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from dataclasses import dataclass

from demo import disks, reading
from demo.disks import Disk

# What xfs_repair -n says about any filesystem (the geometry: about any image file).
XFS_PROGRESS = re.compile(
    r"Phase \d|\s+- |No modify flag set|Cannot get host filesystem geometry|"
    r"Repair may fail if there is a sector size mismatch|the image and the host filesystem"
)
# What it says about any *frozen* xfs: freezing ends with one superblock record in the log
# (xfs_fs_freeze calls xfs_sync_sb, so that a crash while frozen is recovered from), and the free
# blocks that the kernel keeps in reserve are not yet back in the superblock's count.
XFS_FROZEN = re.compile(
    r"ALERT: The filesystem has valuable metadata changes|ignored because the -n option was used|"
    r"which may be resolved by first mounting|sb_fdblocks \d+, counted \d+$"
)
# xfs_logprint -t: one such line for each item of each transaction that waits for replay.
LOG_ITEM = re.compile(r"^[^:\n]+: cnt:\d+ total:\d+", re.MULTILINE)
LOG_SUPERBLOCK = "SUPER Block Buffer:"


@dataclass(frozen=True)
class Finding:
    question: str
    answer: str
    holds: bool


@dataclass(frozen=True)
class Copies:
    accounts: Disk
    ledger: Disk


def prove(copies: Copies, said: int) -> tuple[Finding, ...]:
    """`said` is the last transaction that the application itself called done."""
    lying = (*filesystems_as_they_lie(copies), *books_as_they_lie(copies, said))
    return (*lying, *as_restored(copies, said))


def filesystems_as_they_lie(copies: Copies) -> tuple[Finding, ...]:
    accounts, ledger = copies.accounts, copies.ledger
    return (ext4_journal(accounts), ext4_check(accounts), xfs_log(ledger), xfs_check(ledger))


def ext4_journal(disk: Disk) -> Finding:
    features = disks.output("dumpe2fs", "-h", str(disk.image))
    empty = "needs_recovery" not in features
    answer = "empty" if empty else "full: needs_recovery is set"
    return Finding("ext4: journal", answer, empty)


def ext4_check(disk: Disk) -> Finding:
    done = disks.attempt("e2fsck", "-fn", str(disk.image))
    problems = done.stdout.count("? no")
    clean = done.returncode == 0 and problems == 0
    return Finding("ext4: e2fsck -fn", "clean" if clean else f"{problems} problems", clean)


def xfs_log_items(disk: Disk) -> tuple[int, int]:
    """How many items wait for replay, and how many of them are copies of the superblock."""
    printed = disks.attempt("xfs_logprint", "-t", str(disk.image)).stdout
    return len(LOG_ITEM.findall(printed)), printed.count(LOG_SUPERBLOCK)


def xfs_log(disk: Disk) -> Finding:
    items, superblocks = xfs_log_items(disk)
    if items == superblocks:
        return Finding("xfs: log", "superblock only, by design", True)
    return Finding("xfs: log", f"{items} changes not replayed", False)


def xfs_check(disk: Disk) -> Finding:
    items, superblocks = xfs_log_items(disk)
    said = disks.attempt("xfs_repair", "-n", str(disk.image)).stdout.splitlines()
    complaints = [line for line in said if line and not XFS_PROGRESS.match(line)]
    if items == superblocks:
        complaints = [line for line in complaints if not XFS_FROZEN.match(line)]
    answer = f"{len(complaints)} lines of complaint" if complaints else "no complaint"
    return Finding("xfs: xfs_repair -n", answer, not complaints)


def books_as_they_lie(copies: Copies, said: int) -> tuple[Finding, ...]:
    """With log replay forbidden: only what was already in its place counts."""
    with contextlib.ExitStack() as stack:
        mounted = mount_both(stack, copies, disks.AS_IT_LIES)
        if not mounted.holds:
            return (mounted,)
        database = reading.database(copies.accounts.mount, "ro")
        ledger = reading.ledger(copies.ledger.mount)
        files = reading.documents(copies.accounts.mount, copies.ledger.mount, said)
    return (mounted, all_there(files), *of_database(database), *together(database, ledger, said))


def mount_both(stack: contextlib.ExitStack, copies: Copies, options: dict[str, str]) -> Finding:
    question = "mounts, log replay forbidden"
    try:
        for disk in (copies.accounts, copies.ledger):
            stack.enter_context(disks.mounted(disk, options[disk.fstype]))
    except subprocess.CalledProcessError as error:
        return Finding(question, f"no: {error.output.splitlines()[0]}", False)
    return Finding(question, "yes", True)


def all_there(files: reading.Documents) -> Finding:
    answer = f"all {files.expected}, complete"
    if files.wrong:
        answer = f"{files.wrong} of {files.expected} missing or short"
    return Finding("files", answer, files.wrong == 0)


def of_database(database: reading.Database) -> tuple[Finding, Finding]:
    integrity, rollback = database.integrity, database.rollback
    return (
        Finding("SQLite: integrity_check", integrity.replace("\n", " "), integrity == "ok"),
        Finding("SQLite: to roll back", rollback or "nothing", not rollback),
    )


def together(database: reading.Database, ledger: reading.Ledger, said: int) -> tuple[Finding, ...]:
    in_database, in_ledger = reading.last(database.rows), reading.last(ledger.entries)
    whole = reading.unbroken(database.rows) and database.balanced
    unbroken = reading.unbroken(ledger.entries) and ledger.torn == 0
    return (
        reaches("database", in_database, said, "" if whole else flaw(database)),
        reaches("ledger", in_ledger, said, "" if unbroken else f"{ledger.torn} lines torn"),
        agreement(database, ledger),
    )


def flaw(database: reading.Database) -> str:
    return "balances wrong" if database.readable else "unreadable"


def reaches(side: str, number: int, said: int, flaw: str) -> Finding:
    answer = f"#{number} of #{said}" + (f", {flaw}" if flaw else "")
    return Finding(f"{side} reaches", answer, number == said and not flaw)


def agreement(database: reading.Database, ledger: reading.Ledger) -> Finding:
    agree = database.rows == ledger.entries and bool(database.rows)
    answer = "to the last transaction" if agree else f"no: {difference(database, ledger)}"
    return Finding("database = ledger", answer, agree)


def difference(database: reading.Database, ledger: reading.Ledger) -> str:
    if not database.readable:
        return "there is no readable database"
    apart = len(set(database.rows) ^ set(ledger.entries))
    return f"{apart} transactions in only one"


def as_restored(copies: Copies, said: int) -> tuple[Finding, ...]:
    """Logs replayed and journals rolled back, as on the first boot after a restore."""
    with contextlib.ExitStack() as stack:
        mounted = mount_both(stack, copies, disks.AS_A_RESTORE)
        if not mounted.holds:
            return (Finding("restored: filesystems", mounted.answer, False),)
        database = reading.database(copies.accounts.mount, "rw")
        ledger = reading.ledger(copies.ledger.mount)
        files = reading.documents(copies.accounts.mount, copies.ledger.mount, said)
    sound = (clean_after_replay(copies), all_there(files), *of_database(database))
    found = (*sound, agreement(database, ledger))
    return tuple(Finding(f"restored: {each.question}", each.answer, each.holds) for each in found)


def clean_after_replay(copies: Copies) -> Finding:
    checks = (
        disks.attempt("e2fsck", "-fn", str(copies.accounts.image)),
        disks.attempt("xfs_repair", "-n", str(copies.ledger.image)),
    )
    clean = all(check.returncode == 0 for check in checks)
    return Finding("filesystems", "both clean" if clean else "damaged", clean)
