# SPDX-License-Identifier: Apache-2.0
"""The fault injector: rounds of `vmsnap run` in which anything dies, stops or runs short at random
moments, and what must hold after each. `python -m tests.faults --help`; CONTRIBUTING.md.

    rounds.py   a round: its plan, made of its seed alone, and its course
    faults.py   what can be done to a session, and how it is undone
    verdict.py  what must hold when everything was let go
    world.py    the filesystems, writers and configuration that rounds share
    story.py    what happened, to be told when something did not hold
"""
