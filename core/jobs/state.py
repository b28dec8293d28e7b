"""The state of a run, derived from what lies in its directory by one pure function.

Nothing here touches the disk or a process; ``core.jobs.api`` gathers the observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from core.errors import UserError


class State(StrEnum):
    """Where a run stands. The last four, LOST included, are final."""

    CREATED = "CREATED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    ORPHANED = "ORPHANED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    LOST = "LOST"


#: A supervisor is at work.
ACTIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
#: Nothing of the run is alive and nothing about it will change.
FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.STOPPED, State.LOST})


class Reason(StrEnum):
    """Why a run stands where it stands."""

    COMPLETED = "completed"
    USER_STOP = "user_stop"
    OOM_GPU = "oom_gpu"
    OOM_HOST = "oom_host"
    DISK_FULL = "disk_full"
    BAD_DATA = "bad_data"
    BAD_CONFIG = "bad_config"
    IMPORT_ERROR = "import_error"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"
    INCOMPLETE = "incomplete"
    KILLED_SIGNAL = "killed_signal"
    LOST = "lost"
    NO_GPU = "no_gpu"


@dataclass(frozen=True)
class Observation:
    """What was seen of a run, in the order that makes it consistent.

    Attributes:
        lock_held: somebody holds ``lock``, that is, the supervisor lives. Must be looked at
            *before* ``exit``: the supervisor writes ``exit.json`` and only then lets go.
        started: ``supervisor.json`` exists.
        child_started: it names a child.
        stop_requested: the ``stop`` file exists.
        exit: ``exit.json``, parsed; None if absent.
        marked_alive: processes that carry the run's environment mark are alive.
    """

    lock_held: bool
    started: bool
    child_started: bool
    stop_requested: bool
    exit: dict[str, Any] | None
    marked_alive: bool


def derive(seen: Observation) -> tuple[State, Reason | None]:
    """The one place that knows what a run directory means."""
    if seen.exit is not None:
        return State(seen.exit["state"]), Reason(seen.exit["reason"])
    if seen.lock_held:
        if seen.stop_requested:
            return State.STOPPING, Reason.USER_STOP
        return (State.RUNNING if seen.child_started else State.STARTING), None
    if seen.marked_alive:
        return State.ORPHANED, Reason.LOST
    if seen.started:
        return State.LOST, Reason.LOST
    if seen.stop_requested:
        return State.STOPPED, Reason.USER_STOP
    return State.CREATED, None


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        stage: what it is doing now, a short word such as ``train``; empty before the first line.
        done: units finished (steps, rows, shards, by stage).
        total: units in the stage; 0 if unknown.
        eta_seconds: time left of the run (``core.jobs.remaining``); None if unknown.
    """

    stage: str = ""
    done: int = 0
    total: int = 0
    eta_seconds: float | None = None


@dataclass(frozen=True)
class Summary:
    """One line of the history.

    Attributes:
        seq: order of creation; it does not depend on the clock.
        created: seconds since the epoch, for display only.
        elapsed_seconds: from start to end or to now, by the monotonic clock; None before start.
        params: what the job was asked to do, as in its spec.
    """

    id: str
    root: Path
    name: str
    kind: str
    state: State
    reason: Reason | None
    seq: int
    created: float
    elapsed_seconds: float | None
    parent: str | None
    progress: Progress = field(default_factory=Progress)
    params: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Status:
    """Everything a page shows about one run.

    Attributes:
        started, ended: seconds since the epoch, for display only; None if not yet.
        elapsed_seconds: by the monotonic clock, never negative.
        result: what the job returned; None until it has.
        error: what to show if it FAILED.
        log_tail: the last lines of ``log.txt``, without control codes.
        waiting_for: who holds the device while the run is queued.
        stalled: the job has printed nothing for long; it may be stuck.
        left_over: pids that survived even SIGKILL (uninterruptible sleep).
    """

    id: str
    name: str
    kind: str
    state: State
    reason: Reason | None
    stage: str
    done: int
    total: int
    started: float | None
    ended: float | None
    elapsed_seconds: float | None
    eta_seconds: float | None
    result: dict[str, Any] | None
    error: UserError | None
    log_tail: str
    waiting_for: str = ""
    stalled: bool = False
    left_over: tuple[int, ...] = ()

    @property
    def share(self) -> float:
        """Of the whole run's time that is over, 0 to 1; of its stage while no time is known."""
        if self.eta_seconds is not None and self.elapsed_seconds:
            return self.elapsed_seconds / (self.elapsed_seconds + self.eta_seconds)
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def active(self) -> bool:
        """A supervisor is at work."""
        return self.state in ACTIVE

    @property
    def final(self) -> bool:
        """Nothing about this run will change by itself."""
        return self.state in FINAL
