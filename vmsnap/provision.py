# SPDX-License-Identifier: Apache-2.0
"""Writing configuration and scripts with the owner and mode that the checks ask for."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from vmsnap.errors import Impossible
from vmsnap.files import make_private, write_atomically

PRE = """\
#!/bin/sh
# Quiesce {name}: bring what it has on its disks into a state from which it can start, and keep it
# there until the post-script runs. The environment holds VMSNAP_SESSION, VMSNAP_APP,
# VMSNAP_PHASE, VMSNAP_ATTEMPT, VMSNAP_TIMEOUT (seconds for all attempts) and VMSNAP_SCRIPT_DIR (a
# private directory, the same for the post-script). Exit 0 only if {name} is quiesced.
echo "the pre-script of {name} has not been written yet: $0" >&2
exit 1
"""

POST = """\
#!/bin/sh
# Let {name} go on. This runs whenever the pre-script was started, also after it failed, so it
# must do no harm to an application that was never quiesced. VMSNAP_OUTCOME (success or failed)
# and VMSNAP_CONSISTENCY (application, filesystem, crash or none) tell how the session went.
echo "the post-script of {name} has not been written yet: $0" >&2
exit 1
"""


class Exists(Impossible):
    """A file that would be written is there already."""


@dataclass(frozen=True)
class Written:
    config: Path
    pre: Path
    post: Path


def init(etc: Path, name: str) -> Written:
    """Write the config and the script skeletons of an app. Existing files are never touched.

    Raises Exists and OSError; what was written before an OSError is removed again.
    """
    base = etc / "vmsnap"
    scripts = base / "scripts" / name
    written = Written(base / "apps.d" / f"{name}.json", scripts / "pre", scripts / "post")
    for path in (written.config, written.pre, written.post):
        if os.path.lexists(path):
            raise Exists(f"{path}: found a file there already, expected none; it was left as it is")
    document = {
        "pluginName": "ScriptRunner",
        "preScriptLocation": str(written.pre),
        "postScriptLocation": str(written.post),
        "preScriptParams": [],
        "postScriptParams": [],
        "preScriptNoOfRetries": 0,
        "postScriptNoOfRetries": 0,
        "timeoutInSeconds": 30,
        "continueBackupOnFailure": True,
        "fsFreezeEnabled": True,
    }
    contents = [
        (written.pre, PRE.format(name=name), 0o700),
        (written.post, POST.format(name=name), 0o700),
        # The config last: an app exists from then on.
        (written.config, json.dumps(document, indent=4) + "\n", 0o600),
    ]
    try:
        for path, text, mode in contents:
            if not path.parent.exists():
                make_private(path.parent)
            write_atomically(path, text.encode(), mode)
    except OSError:
        for path, _, _ in contents:
            path.unlink(missing_ok=True)
        raise
    return written
