# SPDX-License-Identifier: Apache-2.0
"""What must hold when everything was let go and has ended: before an administrator came, and after.

What vmsnap does not promise (docs/reliability.md) is excused, and counted: what others did to their
own freeze, a run directory that was taken away with what was on record in it, a script that was
killed or that a limit kept from saying anything.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from tests.fs import kernel
from tests.fs.lab import Filesystem

from .world import APPS

if TYPE_CHECKING:
    from .rounds import Round

UNTIL_SEEN = 0.1  # seconds from the last word of a script until its end is on record
STALLED = 2.0  # seconds without any write, after which the kernel is asked
LEVELS = ("none", "crash", "filesystem", "application")


def judge(round_: Round, recovered: bool) -> None:
    """Before the recovery only what survivors must have done by themselves."""
    frozen(round_, recovered)
    if recovered:
        scripts(round_)
        others(round_)
        left(round_)
    else:
        level(round_)
        if not hurt(round_, "scripts", "young"):
            scripts(round_)
        if not hurt(round_, "engine", "guard"):
            left(round_)


def hurt(round_: Round, *roles: str) -> bool:
    """Whether any of them was killed, or went without what it needs."""
    killed = {what.split()[0] for what in round_.killed_pids.values()}
    return bool(killed & set(roles) or round_.limited or round_.spoiled)


def violated(round_: Round, what: str, excuse: str = "") -> None:
    if excuse:
        round_.story.excused.append(f"{what} ({excuse})")
        round_.story.tell(f"excused: {what} ({excuse})")
        round_.story.count(f"excused: {excuse}")
    elif what not in round_.story.violations:
        round_.story.violations.append(what)
        round_.story.tell(f"VIOLATION: {what}")


# --- frozen --------------------------------------------------------------------------------------


def frozen(round_: Round, recovered: bool) -> None:
    world = round_.world
    stalled = world.stalled([f.mount.name for f in world.filesystems], STALLED)
    for f in round_.named(tuple(stalled)):
        if kernel.ioctl(f.mount, kernel.FIFREEZE) == 0:
            kernel.ioctl(f.mount, kernel.FITHAW)
            continue  # slow
        if recovered:
            excuse = "nothing was on record any more" if round_.vanished else ""
            violated(round_, f"{f.mount.name} is frozen after the recovery", excuse)
        elif survivors(round_):
            excuse = "nothing was on record any more" if round_.vanished else ""
            excuse = excuse or ("limits" if round_.limited else "")
            who = ", ".join(survivors(round_))
            violated(
                round_, f"{f.mount.name} is frozen though these were not killed: {who}", excuse
            )
        if recovered or round_.vanished:
            kernel.ioctl(f.mount, kernel.FITHAW)


def thawed_by_watchdog(round_: Round) -> None:
    """Nothing was let go yet: engine and guard are out of action, and supervisors live."""
    for name in round_.world.stalled([f.mount.name for f in round_.world.filesystems], STALLED):
        violated(round_, f"nobody thaws {name} while the engine does nothing")


def survivors(round_: Round) -> list[str]:
    """Who should have thawed: was seen while the session ran, and not killed."""
    return sorted(
        f"{role} {pid}"
        for pid, role in round_.roles.items()
        if role in ("engine", "guard", "scripts", "command") and pid not in round_.killed_pids
    )


# --- scripts -------------------------------------------------------------------------------------


def scripts(round_: Round) -> None:
    said = [words for _, words in round_.words]
    sessions = {words[2] for words in said if words[0] in ("pre-start", "post-start")}
    for session in sorted(sessions):
        for app in APPS:
            of_app = [w for w in said if len(w) > 2 and w[1:3] == [app, session]]
            started = [w for w in of_app if w[0] == "pre-start"]
            posts = [w for w in of_app if w[0] == "post-start"]
            name = f"post-script of {app} in {session[:8]}"
            if len(posts) > 1:
                violated(round_, f"the {name} ran {len(posts)} times", twice(round_, app))
            if started and not posts:
                violated(round_, f"the {name} never ran", unheard(round_))
            if any(w[5] == "yes" for w in posts):
                violated(round_, f"the {name} ran before its pre-script had ended")
            for w in posts:
                after = [x[0] for x in of_app[of_app.index(w) :]]
                if "pre-end" in after:
                    violated(round_, f"the pre-script of {app} ended after its post-script began")


def twice(round_: Round, app: str) -> str:
    """Why a post-script may be run again: it was killed, or nobody was left who could know how it
    has ended."""
    if round_.vanished:
        return "the record had vanished"
    if "program post" in round_.killed_pids.values():
        return "it was killed"
    ends = [at for at, w in round_.words if w[0] == "post-end" and w[1] == app]
    before_its_end = min(ends, default=float("inf")) + UNTIL_SEEN
    killed = {what for at, what in round_.kills if at < before_its_end}
    if round_.stopped_program and "scripts" in killed:
        return "the kernel hangs up who is stopped and loses its supervisor (setpgid(2))"
    watched = not killed & {"scripts", "young"}
    known = not killed & {"engine", "recovery", "young"}
    return "" if watched or known else "killed in the middle of it"


def unheard(round_: Round) -> str:
    """Why a post-script may have been started and said nothing."""
    if any(what in ("program post", "program ?", "young") for what in round_.killed_pids.values()):
        return "it was killed"
    if round_.limited:
        return "it had the limits of its supervisor"
    return "the record had vanished" if round_.vanished else ""


# --- others' freezes -----------------------------------------------------------------------------


def others(round_: Round) -> None:
    """Another program that has frozen must find its freeze when it thaws."""
    for name in {words[1] for _, words in round_.words if words[0] == "own-thaw"}:
        calls = [
            w for _, w in round_.words if w[0] in ("froze", "thawed", "own-thaw") and w[1] == name
        ]
        for own in (w for w in calls if w[0] == "own-thaw" and w[4] == str(errno.EINVAL)):
            foreign = any(w[0] != "froze" and w[4] == "0" for w in calls)
            excuse = "another of the injector's thawed it" if foreign else at_once(round_, own)
            violated(round_, f"somebody else's freeze of {own[1]} was thawed", excuse)


def at_once(round_: Round, own: list[str]) -> str:
    """Why a freeze may be taken for ours: who asked for it as well was killed before the answer,
    that somebody else has frozen."""
    froze = next(w for _, w in round_.words if w[0] == "froze" and w[1] == own[1])
    began, ended = float(froze[2]), float(froze[3])
    guards = [at for at, what in round_.kills if what == "guard"]
    asked = any(began - UNTIL_SEEN < at < ended + UNTIL_SEEN for at in guards)
    return "the guard was killed in the same moment" if asked else ""


# --- the level -----------------------------------------------------------------------------------


def level(round_: Round) -> None:
    result = round_.result
    exit_code(round_)
    if result is None:
        return
    round_.story.tell(
        f"result: {result['outcome']}, {result['consistency']},"
        f" errors {[e['name'] for e in result['errors']]}, frozen {result['frozen_seconds']}"
    )
    told = [w[6] for _, w in round_.words if w[0] == "post-start" and w[2] == result["session"]]
    consistency = max([result["consistency"], *told], key=LEVELS.index)
    claimed = LEVELS.index(consistency)
    begin, end = round_.held_at, round_.released_at
    if result["outcome"] == "success" and (begin is None or end is None):
        violated(round_, "success without a snapshot")
        return
    if claimed < LEVELS.index("filesystem") or begin is None or end is None:
        return
    for f in round_.named(round_.plan.filesystems):
        through(round_, f, begin, end, consistency)
    if result["frozen_seconds"] < end - begin - 0.05:
        violated(
            round_, f"frozen for {result['frozen_seconds']} s in a hold of {end - begin:.3f} s"
        )
    if claimed == LEVELS.index("application"):
        ended = {w[1] for _, w in round_.words if w[0] == "pre-end" and w[3] == "0"}
        for app in round_.plan.apps:
            if app not in ended:
                violated(round_, f"application, but the pre-script of {app} did not succeed")


def exit_code(round_: Round) -> None:
    """That of the session, unless the engine was killed."""
    engine = round_.session.pid if round_.session else 0
    if engine in round_.killed_pids:
        return
    excuse = "interrupted" if round_.interrupted else "limits" if engine in round_.limited else ""
    if round_.result is None:
        excuse = excuse or ("terminal" if round_.plan.terminal else "")
        violated(round_, f"the engine ended with {round_.ended_by} and without a result", excuse)
    elif round_.ended_by != int(round_.result["outcome"] != "success"):
        outcome = round_.result["outcome"]
        violated(round_, f"the engine ended with {round_.ended_by} after a {outcome}", excuse)


def through(round_: Round, f: Filesystem, begin: float, end: float, claimed: str) -> None:
    name = f.mount.name
    calls = [w for _, w in round_.words if len(w) == 5 and w[1] == name]
    thawed = [w for w in calls if w[0] != "froze" and w[4] == "0"]
    thaws = [w for w in thawed if begin <= float(w[2]) and float(w[3]) <= end]
    again = any(w[0] == "froze" and w[4] == "0" for w in calls)
    foreign = any(float(w[3]) <= end for w in thawed)
    excuse = "thawed and frozen again: the witness will tell" if foreign and again else ""
    writes = [
        w for w in round_.world.writes(name) if begin <= w.began and w.ended <= end and not w.error
    ]
    if writes:
        violated(round_, f"{len(writes)} writes to {name} in the hold: {claimed}", excuse)
    elif thaws:
        violated(round_, f"{name} was thawed in the hold: {claimed}", excuse)


# --- what is left --------------------------------------------------------------------------------


def left(round_: Round) -> None:
    world = round_.world
    for name in round_.remains:
        if name in ("frozen.json", "session.json") and not round_.vanished:
            violated(round_, f"left in the run directory: {name}")
        elif round_.recoveries:
            round_.story.count(f"left in the run directory: {name}")
    if not world.lock_is_free:
        violated(round_, "the lock is not free")
    if kernel.RCU_EXPEDITED.read_text().strip() != "0":
        excuse = "nothing was on record any more" if round_.vanished else ""
        violated(round_, "rcu_expedited was left on", excuse)
        kernel.RCU_EXPEDITED.write_text("0\n")
