# SPDX-License-Identifier: Apache-2.0
"""The journal's message catalogue (https://systemd.io/CATALOG/), which `journalctl -x` shows.

`python -m vmsnap.journal.catalog en` and `... es` print it when a package is built; nothing else
runs this. What the errors mean comes from errors.py, what the other records mean stands here, and
all of it in Spanish in catalog_es.py. @FIELD@ is used only where every such record carries the
field.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vmsnap.errors import SCRIPT, Kind
from vmsnap.journal import catalog_es
from vmsnap.journal.sender import Event

WIDTH = 78
# journalctl takes the language from the file's name, vmsnap.es.catalog, and warns of one that is
# also said in the entries (catalog_entry_lang in systemd's catalog.c). It skips lines with a #.
HEAD = "# SPDX-License-Identifier: Apache-2.0\n# Written by python -m vmsnap.journal.catalog\n"
ENTRY = """
-- {id}
Subject: {subject}
Defined-By: vmsnap
Documentation: man:vmsnap(1)

{body}
"""

# Said outside of sessions too, when one is refused and by `vmsnap check`, so none is named.
OUTSIDE = (
    Kind.SESSION_IN_PROGRESS,
    Kind.NO_SESSION,
    Kind.INCORRECT_SETTINGS,
    Kind.INCORRECT_PLUGINHOST_FILE,
    Kind.INCORRECT_JSON_CONFIG_FILE,
    Kind.PROVISIONING_FAILED,
    Kind.INCORRECT_INTEGRATION,
    Kind.MOUNT_OPEN_FAILED,
    Kind.FREEZE_FAILED,  # the run directory would be frozen too
    Kind.THAW_FAILED,  # what a killed session has left
    *(kind for kinds in SCRIPT.values() for kind in (kinds.not_found, kinds.untrusted)),
)
RUNNING = [kind for kinds in SCRIPT.values() for kind in (kinds.failed, kinds.timeout)]

ERROR = """{summary} (error {label}, code {code}).

What to do: {action}."""
IN_SESSION = """

It happened in phase @VMSNAP_PHASE@ of session @VMSNAP_SESSION@.
The snapshot can be consistent up to this level, given all that has gone wrong so far:
@VMSNAP_CONSISTENCY@. The whole session: `journalctl VMSNAP_SESSION=@VMSNAP_SESSION@`"""
OF_SCRIPT = """

What the script wrote is among the records of its application:
`journalctl VMSNAP_SESSION=@VMSNAP_SESSION@ VMSNAP_APP=@VMSNAP_APP@`"""

EVENTS = {
    Event.STARTED: (
        "A session has begun",
        """Session @VMSNAP_SESSION@ has begun. It checks the configuration, quiesces the
applications, freezes the filesystems, lets the snapshot be taken, and then undoes all that in
reverse order.

There is nothing to do. `vmsnap status` shows how far it is. All its records:
`journalctl VMSNAP_SESSION=@VMSNAP_SESSION@`""",
    ),
    Event.PHASE: (
        "A phase of a session has begun",
        """Session @VMSNAP_SESSION@ has reached phase @VMSNAP_PHASE@. The phases are `check`
(configuration), `pre` (the applications' pre-scripts), `presync` (writing back dirty pages),
`freeze`, `snapshot`, `thaw`, `post` (the post-scripts) and `report`.

There is nothing to do.""",
    ),
    Event.SCRIPT_ENDED: (
        "A script has ended",
        """The @VMSNAP_PHASE@-script of the application @VMSNAP_APP@ has ended, and the message
says how. If it failed, the record of an error follows, which says what to do.

What the script wrote is among the records of its application:
`journalctl VMSNAP_SESSION=@VMSNAP_SESSION@ VMSNAP_APP=@VMSNAP_APP@`""",
    ),
    Event.SCRIPT_OUTPUT: (
        "A line of a script's output",
        """The @VMSNAP_PHASE@-script of the application @VMSNAP_APP@ wrote this in session
@VMSNAP_SESSION@. What it means is up to the script; vmsnap only passes it on. A script sets the
priority of a line by beginning it with `<3>` (error) to `<6>` (information), see sd-daemon(3).""",
    ),
    Event.FROZEN: (
        "All filesystems are frozen",
        """Session @VMSNAP_SESSION@ has frozen as many filesystems as the message says, and the
snapshot can be taken. Whoever writes to one of them waits for the thaw, which comes after the
time that --hold or [freeze] hold= gives at the latest.

There is nothing to do. The journal got this record after the thaw only, since it may be frozen
itself; the time of the freeze is in `vmsnap plot @VMSNAP_SESSION@`.""",
    ),
    Event.THAWED: (
        "The filesystems are thawed",
        """Session @VMSNAP_SESSION@ has thawed as many filesystems as the message says, and
whoever waited to write to them goes on.

There is nothing to do, unless the error ThawFailed is recorded too: then run
`vmsnap thaw --force`.""",
    ),
    Event.ENDED: (
        "A session has ended",
        """Session @VMSNAP_SESSION@ has ended with this consistency: @VMSNAP_CONSISTENCY@. The
levels are `application` (applications quiesced, filesystems frozen), `filesystem` (filesystems
frozen), `crash` (as after a power failure) and `none` (there is no snapshot to rely on). The
message says whether the session succeeded, that is whether there is a snapshot of the required
level.

If it failed, its errors say what to do: `journalctl -p err VMSNAP_SESSION=@VMSNAP_SESSION@`

The field VMSNAP_RESULT of this record holds the whole result as JSON. `vmsnap history` lists past
sessions, and `vmsnap plot @VMSNAP_SESSION@` draws this one.""",
    ),
    Event.PROVISIONED: (
        "The configuration was written from a document",
        """`vmsnap provision` has put a document into effect, as cloud-init does when a machine
is created. The message says how many files it wrote and how many were there already.

There is nothing to do. `vmsnap check` says whether the configuration is in order.""",
    ),
    Event.NOTE: (
        "Something that vmsnap noticed",
        """The message says what. It is no error in itself, but it may explain one: a key that
vmsnap does not know, a mount point to exclude where nothing is mounted, a result that could not
be written, what was thawed after a session had been killed.

Correct what the message names. A Python traceback is a mistake in vmsnap itself: report it,
together with the other records of the session.""",
    ),
    Event.DROPPED: (
        "Records were lost",
        """As many records as the message says were lost, because the journal did not take them.
vmsnap does not wait for the journal, which may itself be waiting for a filesystem to be thawed.

The snapshot is not affected. If the record of a session's end was lost, `vmsnap history` does not
know that session; `vmsnap status` knows the last one in any case. If it happens again, see what
writes so much to the journal, or slows it down: `systemctl status systemd-journald`""",
    ),
}


@dataclass(frozen=True)
class Language:
    """All texts of one language: (summary, action) of errors, (subject, body) of other records."""

    kinds: Mapping[Kind, tuple[str, str]]
    events: Mapping[Event, tuple[str, str]]
    error: str
    in_session: str
    of_script: str


LANGUAGES = {
    "en": Language(
        {kind: (kind.summary, kind.action) for kind in Kind}, EVENTS, ERROR, IN_SESSION, OF_SCRIPT
    ),
    "es": Language(
        catalog_es.KINDS,
        catalog_es.EVENTS,
        catalog_es.ERROR,
        catalog_es.IN_SESSION,
        catalog_es.OF_SCRIPT,
    ),
}


def catalog(language: Language) -> str:
    """The text of a catalogue file."""
    return HEAD + "".join(entries(language))


def entries(language: Language) -> Iterator[str]:
    for kind in Kind:
        summary, _ = language.kinds[kind]
        yield entry(kind.message_id, summary, explanation(kind, language))
    for event in Event:
        yield entry(event.value, *language.events[event])


def entry(message_id: str, subject: str, body: str) -> str:
    return ENTRY.format(id=message_id, subject=subject, body=wrapped(body))


def explanation(kind: Kind, language: Language) -> str:
    summary, action = language.kinds[kind]
    text = language.error.format(summary=summary, label=kind.label, code=kind.code, action=action)
    if kind not in OUTSIDE:
        text += language.in_session
    if kind in RUNNING:
        text += language.of_script
    return text


def wrapped(text: str) -> str:
    """Paragraphs filled to WIDTH, with commands in backquotes kept whole."""
    joined = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\0"), text)
    paragraphs = (
        textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)
        for paragraph in joined.split("\n\n")
    )
    return "\n\n".join(paragraphs).replace("\0", " ")


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0] not in LANGUAGES:
        sys.stderr.write(f"usage: python -m vmsnap.journal.catalog {'|'.join(LANGUAGES)}\n")
        return 2
    # Bytes, because the locale of a build need not know Spanish.
    sys.stdout.buffer.write(catalog(LANGUAGES[argv[0]]).encode("utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
