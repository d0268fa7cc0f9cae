# SPDX-License-Identifier: Apache-2.0
"""The SSM agent on Amazon EC2, which Data Lifecycle Manager has run a document. It freezes nothing;
vmsnap does, between the document's `pre-script` and `post-script`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vmsnap.errors import Problem
from vmsnap.platforms.agent import Act, Agent, Connection, Detection, HookOutcome, warning


def connection(_: Path) -> Connection:
    """Nothing is to be written: the SSM agent runs what the document says."""
    return Connection(
        programs=("usr/bin/amazon-ssm-agent", "snap/bin/amazon-ssm-agent.ssm-cli"),
        units=("amazon-ssm-agent.service", "snap.amazon-ssm-agent.amazon-ssm-agent.service"),
        package="amazon-ssm-agent",
        host="a Data Lifecycle Manager policy with the SSM document of "
        "/usr/share/vmsnap/aws/ssm-document.yaml",
    )


def checks(_: Connection, __: Sequence[str], ___: Path) -> Iterator[Problem]:
    for path in AGENT.unfrozen:
        message = f"{path} is not frozen in its sessions, since the agent has to write there; "
        message += "data that must be consistent belongs on another filesystem"
        yield warning(Path(path), message)


AGENT = Agent(
    name="aws",
    events={"pre-script": Act.BEGIN, "post-script": Act.END, "dry-run": Act.TRY},
    freezes=False,
    patience=8,  # ExecutionTimeout is 10 unless the policy says so; the document then passes it
    # docs.aws.amazon.com/ebs/latest/userguide/automate-app-consistent-backups.html
    codes={
        HookOutcome.NOT_BEGUN: 201,
        HookOutcome.FAILED: 202,
        HookOutcome.EXPIRED: 203,
        HookOutcome.ANOTHER: 204,
        HookOutcome.NONE: 205,
        HookOutcome.NOT_READY: 206,
    },
    # agent/framework/processor, common/filewatcherbasedipc: its parts talk through files.
    writes=("/var/lib/amazon/ssm", "/var/log/amazon/ssm", "/var/snap/amazon-ssm-agent"),
    connection=connection,
    detection=Detection(vendors=("Amazon EC2",), clouds=("aws",), hypervisors=("amazon",)),
    checks=checks,
)
