# SPDX-License-Identifier: Apache-2.0
"""`vmsnap init`: the config of one app, and skeletons of its scripts or a quiescer."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from vmsnap.config import checks
from vmsnap.config.startable import UNWRITTEN
from vmsnap.errors import CommandError
from vmsnap.provision.quiescers import Quiescer
from vmsnap.system.files import File, write

PRE = """\
#!/bin/sh
# Quiesce {name}: bring what it has on its disks into a state from which it can start, and keep it
# there until the post-script runs. The environment holds VMSNAP_SESSION, VMSNAP_APP,
# VMSNAP_PHASE, VMSNAP_ATTEMPT, VMSNAP_TIMEOUT (seconds for all attempts) and VMSNAP_SCRIPT_DIR (a
# private directory, the same for the post-script). Exit 0 only if {name} is quiesced.
echo "the pre-script of {name} {unwritten}: $0" >&2
exit 1
"""


POST = """\
#!/bin/sh
# Let {name} go on. This runs whenever the pre-script was started, also after it failed, so it
# must do no harm to an application that was never quiesced. VMSNAP_OUTCOME (success or failed)
# and VMSNAP_CONSISTENCY (application, filesystem, crash or none) tell how the session went.
echo "the post-script of {name} {unwritten}: $0" >&2
exit 1
"""


class AppExistsError(CommandError):
    """A file that would be written is there already."""


class NotInstalledError(CommandError):
    """vmsnap was not installed with all that belongs to it."""


@dataclass(frozen=True)
class Written:
    config: Path
    pre: Path
    post: Path


def init(etc: Path, name: str, quiescer: Quiescer | None = None) -> Written:
    """Write the config of an app, of a quiescer or with script skeletons. Existing files are never
    touched.

    Raises AppExistsError, NotInstalledError and OSError; what was written before an OSError is
    removed again."""
    base = etc / "vmsnap"
    config, scripts = base / "apps.d" / f"{name}.json", base / "scripts" / name
    if quiescer:
        if not quiescer.path.exists():
            raise NotInstalledError(
                f"{quiescer.path}: found no file there, expected the quiescer, which packages and "
                "`make install` put there"
            )
        written = Written(config, quiescer.path, quiescer.path)
        files = []
    else:
        written = Written(config, scripts / "pre", scripts / "post")
        files = [
            File(written.pre, PRE.format(name=name, unwritten=UNWRITTEN).encode(), 0o700),
            File(written.post, POST.format(name=name, unwritten=UNWRITTEN).encode(), 0o700),
        ]
    parameters = [f"--hold={longest_hold(etc):g}"] if quiescer else []
    document = {
        "pluginName": "ScriptRunner",
        "preScriptLocation": str(written.pre),
        "postScriptLocation": str(written.post),
        "preScriptParams": parameters,
        "postScriptParams": parameters,
        "preScriptNoOfRetries": 0,
        "postScriptNoOfRetries": 0,
        "timeoutInSeconds": quiescer.timeout if quiescer else 30,
        "continueBackupOnFailure": True,
        "fsFreezeEnabled": True,
    }
    files.append(File(config, (json.dumps(document, indent=4) + "\n").encode(), 0o600))
    for file in files:
        if os.path.lexists(file.path):
            raise AppExistsError(
                f"{file.path}: found a file there already, expected none; it was left as it is"
            )
    try:
        write(files)
    except OSError:
        for file in files:
            file.path.unlink(missing_ok=True)
        raise
    return written


def longest_hold(etc: Path) -> float:
    """Seconds from the end of the pre-scripts to the thaw, at most, as things are set."""
    settings = checks.inspect(etc).settings
    return settings.freeze_timeout + settings.hold
