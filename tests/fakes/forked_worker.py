"""Chat workers forked from a process that has imported everything: 0.2 s a start, not six.

For tests of what a worker answers; that ``python -m core.chat.worker`` starts and ends is tested
in tests/faults/test_chat_process.py and tests/unit/test_chat_worker.py, by real starts.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.fakes.warm"])


def _work(stdin: Connection, stdout: Connection, log: str, cwd: str, env: dict[str, str]) -> None:
    from core.chat import worker

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    errors = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number, file in enumerate((stdin.fileno(), stdout.fileno(), errors)):
        os.dup2(file, number)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    worker.main()


class ForkedWorker:
    """What ``WorkerClient`` uses of ``subprocess.Popen``."""

    def __init__(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], stderr: TextIO, **_: Any
    ) -> None:
        assert list(argv[1:]) == ["-m", "core.chat.worker"]
        reads, self._writes = _FORKS.Pipe(duplex=False)
        self._reads, writes = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(
            target=_work, args=(reads, writes, stderr.name, str(cwd), dict(env)), daemon=True
        )
        self._process.start()
        reads.close()
        writes.close()
        self.pid = self._process.pid
        self.stdin = os.fdopen(os.dup(self._writes.fileno()), "w", encoding="utf-8")
        self.stdout = os.fdopen(os.dup(self._reads.fileno()), encoding="utf-8")
        self._writes.close()
        self._reads.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("the chat worker", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid or 0, number)

    def kill(self) -> None:
        self._process.kill()


#: In place of the module ``subprocess`` in ``core.chat.client``.
stand_in = SimpleNamespace(
    Popen=ForkedWorker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
)
