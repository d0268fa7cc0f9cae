# SPDX-License-Identifier: Apache-2.0
"""Which process is meant by a pid, and which not."""

from __future__ import annotations

import os
import threading

from vmsnap.system.proc import ProcessId, started


def test_a_process_is_known_by_its_pid_and_its_start() -> None:
    process = ProcessId(os.getpid(), started(os.getpid())).open()
    assert process is not None
    os.close(process)
    assert ProcessId(os.getpid(), 1).open() is None


def test_a_pid_that_is_a_threads_by_now_is_nobodys() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id
        assert ProcessId(thread.native_id, 1).open() is None
    finally:
        end.set()
        thread.join()
