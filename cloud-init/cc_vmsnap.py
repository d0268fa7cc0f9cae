# SPDX-License-Identifier: Apache-2.0
"""A module of cloud-init that hands the key `vmsnap` of user-data to `vmsnap provision`.

It lives outside of cloud-init's own directory and is in none of its lists of modules: the hook
beside it runs it by its name. It is written for every cloud-init from 18.5 on and for the Python
of each, so: the standard library only, Python 3.6, and nothing of vmsnap is imported.
"""

import json
import subprocess
import sys

VMSNAP = "/usr/bin/vmsnap"
MOST = 2000  # characters of an error

# Up to 22.1, cloud-init reads these two; later, those of `meta`. It must find nothing here that is
# called "schema", or it skips the whole stage (cloudinit/config/modules.py, validate_module).
frequency = "once-per-instance"
distros = ["all"]
meta = {
    "id": "cc_vmsnap",
    "name": "vmsnap",
    "title": "Application-consistent snapshots",
    "description": "Writes the configuration of vmsnap: see vmsnap-provision(5).",
    "distros": distros,
    "frequency": frequency,
    "examples": [],
    "activate_by_schema_keys": ["vmsnap"],
}


def handle(name, cfg, *positional, **named):
    """Put cfg["vmsnap"] into effect. Raises RuntimeError with key paths, and no values, in it.

    cloud-init up to 23.1 gives five positional arguments, later ones give four by name, and a
    function with a fifth parameter is deprecated. An empty key is no missing one: what should have
    stood below it was not indented.
    """
    if "vmsnap" not in cfg:
        return
    try:
        if not only_strings_for_keys(cfg["vmsnap"]):
            raise TypeError
        # What JSON cannot say, a date without quotes, is refused like all that is no string.
        document = json.dumps(cfg["vmsnap"], default=lambda _: None)
    except (TypeError, ValueError, RecursionError):  # a mapping within itself
        document = "null"  # so that vmsnap keeps the failure
    done = subprocess.run(
        [VMSNAP, "provision", "-"],
        input=document.encode(),
        stderr=subprocess.PIPE,
        check=False,
    )
    told = done.stderr.decode("utf-8", "replace")
    sys.stderr.write(told)  # to the console and cloud-init-output.log, where the exception is not
    if done.returncode:
        raise RuntimeError(told.strip()[:MOST])


def only_strings_for_keys(value):
    """JSON would make strings of others: "true" of `on:`."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(
            only_strings_for_keys(below) for below in value.values()
        )
    return not isinstance(value, list) or all(only_strings_for_keys(below) for below in value)
