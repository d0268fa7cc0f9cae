# SPDX-License-Identifier: Apache-2.0
"""Text from outside, for people: what scripts print and how files are named must not become orders
to a terminal. All that leaves for one goes through here: what is printed, the messages of the
journal, the status line of a unit, the SVG. (The metrics have no text from outside.)

Runs in: engine, supervisor, caller, also while frozen.
"""

from __future__ import annotations

LINES = "\n\t"


def printable(text: str, besides: str = "") -> str:
    """The text, with everything escaped that is neither printable nor in `besides` (LINES)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in besides else repr(c)[1:-1] for c in text)
