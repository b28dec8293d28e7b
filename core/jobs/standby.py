"""A run's supervisor and process, started before there is a run: they import while another works.

``tune`` knows which kind of job comes next long before it knows the settings. Supervisor and child
of that job start at once, the child imports what the kind needs, and both wait. A run that is
started then is theirs: from there on all is as without them, for they are processes like any
other, each in its session and with its environment; the run takes over their mark.

Whoever waits ends as soon as the one that it waits for is gone: each holds one end of a socket.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from core.jobs import processes, records
from core.jobs.kinds import kind_of
from core.jobs.spec import Options
from core.paths import RunPaths

#: Instead of a run's folder, in the arguments of a supervisor or a child that is to wait.
WAIT = "--wait"
_LONGEST = 65536


class Standby:
    """The launcher's side: a supervisor of a kind, with its child, that has no run yet."""

    def __init__(self, kind: str) -> None:
        self.kind, self.mark = kind, secrets.token_hex(16)
        self._socket, theirs = socket.socketpair()
        env = processes.job_environment(self.mark)
        del env[processes.MARK]  # the child's, and no other's
        with theirs:
            argv = [sys.executable, "-m", "core.jobs.supervisor", WAIT, kind, self.mark]
            self.process = processes.begin(argv, env, stdin=theirs.fileno())

    def give(self, run: RunPaths) -> bool:
        """Start the run; False if nobody waits any more."""
        try:
            self._socket.sendall(os.fsencode(run.root))
            return self.process.poll() is None
        except OSError:
            return False
        finally:
            self._socket.close()

    def close(self) -> None:
        """It is not needed: both processes end."""
        self._socket.close()
        threading.Thread(target=self.process.wait, daemon=True).start()


#: The one that waits for this process, if any.
_waiting: list[Standby] = []


def prepare(kind: str) -> None:
    """Let a job of this kind get ready; one of another kind that waits is sent home."""
    if not (_waiting and _waiting[0].kind == kind):
        close()
        _waiting.append(Standby(kind))


def take(kind: str, options: Options) -> Standby | None:
    """The one that waits, if a run of this kind and with these options can be its own."""
    if not _waiting or _waiting[0].kind != kind or options.pass_env:
        return None
    return _waiting.pop()


def close() -> None:
    """Nobody waits any more."""
    while _waiting:
        _waiting.pop().close()


class WaitingChild:
    """The supervisor's side: the child that gets ready.

    Attributes:
        secret: of its records.
    """

    def __init__(self, kind: str, mark: str) -> None:
        self.secret = secrets.token_hex(16)
        self._socket, theirs = socket.socketpair()
        env = {**processes.job_environment(mark), str(records.SECRET): self.secret}
        with theirs:
            argv = [sys.executable, "-m", "core.jobs.child", WAIT, kind]
            self.process = processes.begin(argv, env, stdin=theirs.fileno())

    def begin(self, run: RunPaths, descriptors: Sequence[int]) -> bool:
        """Tell it the run; it gets ``descriptors``, the log's first. False if it has died."""
        try:
            socket.send_fds(self._socket, [os.fsencode(run.root)], list(descriptors))
            return self.process.poll() is None
        except OSError:
            return False
        finally:
            self._socket.close()

    def close(self) -> None:
        """It is not needed."""
        self._socket.close()
        self.process.kill()
        self.process.wait()


def supervised() -> Path | None:
    """In a waiting supervisor: the folder of the run, once there is one; None if none will come."""
    with socket.socket(fileno=os.dup(0)) as mine:
        told = mine.recv(_LONGEST)
    _replace(0, os.open(os.devnull, os.O_RDONLY))
    return Path(os.fsdecode(told)) if told else None


def write_to_log(run: RunPaths) -> None:
    """In a supervisor that has got its run: print where one that is started for it prints."""
    log = os.open(run.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    _replace(2, log)


def begun(kind: str) -> Path | None:
    """In a waiting child: import, wait, and print into the log; None if no run comes.

    What cannot be imported is not told here: the work itself will say it, into the log.
    """
    with suppress(Exception):
        kind_of(kind).get_ready()
    with socket.socket(fileno=os.dup(0)) as mine:
        told, descriptors, _, _ = socket.recv_fds(mine, _LONGEST, 8)
    if not told:
        return None
    # Further ones, the device's lock among them, only have to stay open.
    _replace(0, os.open(os.devnull, os.O_RDONLY))
    os.dup2(descriptors[0], 1)
    _replace(2, descriptors[0])
    return Path(os.fsdecode(told))


def _replace(standard: int, by: int) -> None:
    os.dup2(by, standard)
    os.close(by)
