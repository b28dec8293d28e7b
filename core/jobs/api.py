"""Runs: create, start, look, stop, list, delete. Pages and the command line call only this."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import fsio, paths, trees
from core.errors import UserError
from core.jobs import locks, processes, standby
from core.jobs.ending import close, heard
from core.jobs.journal import tail
from core.jobs.kinds import kind_of
from core.jobs.listing import list_runs as list_runs
from core.jobs.numbering import new_root, next_seq
from core.jobs.observe import (
    elapsed,
    lost_at,
    observe,
    progress_of,
    read_record,
    stalled,
)
from core.jobs.spec import Options, RunSpec, read_spec
from core.jobs.standby import Standby
from core.jobs.state import ACTIVE, FINAL, Progress, State, Status, derive
from core.jobs.supervisor import ALREADY_STARTED
from core.paths import RunPaths
from core.records import JobSpec


class AlreadyStarted(UserError):
    """The same thing is running or waiting already. ``run`` tells which run it is."""

    def __init__(self, run: str) -> None:
        super().__init__(
            f"already started as {run}", fix="watch that run, or stop it before you start another"
        )
        self.run = run


# -- making ----------------------------------------------------------------------------------


def create(
    kind: str,
    params: Mapping[str, Any],
    *,
    name: str,
    run_dir: Path | None = None,
    parent: str | None = None,
    options: Options | None = None,
    argv: Sequence[str] = (),
) -> RunPaths:
    """Make a run directory with its spec; nothing is started.

    Args:
        params: what the job's function gets; JSON-able.
        name: for people; its slug becomes part of the folder's name.
        run_dir: the very folder to use, which must not hold a run yet; else a new one among the
            runs of the workspace.
        parent: id of the run that this one changes or resumes.
        argv: the command, for the kind ``command`` only.

    Raises:
        UserError: unknown kind, an argv where none is allowed, a folder that is taken.
    """
    kind_of(kind)
    if bool(argv) != (kind == "command"):
        raise UserError("a job of the kind 'command', and no other, has an argv")
    spec = RunSpec(
        kind=kind,
        name=name,
        params=dict(params),
        seq=0,
        parent=parent,
        argv=tuple(map(str, argv)),
        options=options or Options(),
    )
    return _made(spec, run_dir)


def _made(spec: RunSpec, run_dir: Path | None = None) -> RunPaths:
    """The folder with the spec, which gets its number."""
    with locks.creation_lock():
        seq = next_seq()
        run = RunPaths(run_dir.resolve() if run_dir else new_root(spec.name))
        if run.spec.exists():
            raise UserError(f"{run.root} already holds a run", fix="choose another folder")
        run.root.mkdir(parents=True, exist_ok=run_dir is not None)
        spec.changed(seq=seq).write(run)
    return run


def start(run: RunPaths, timeout: float = 10.0, ready: Standby | None = None) -> None:
    """Start the supervisor in a session of its own and wait until it has the run.

    Args:
        ready: one that waits already, whose mark the run has.

    Raises:
        AlreadyStarted: somebody was faster, or the run has been before.
        UserError: the supervisor could not start; the message has the end of its log.
    """
    spec = read_spec(run)
    process = ready.process if ready and ready.give(run) else _supervisor(run, spec)
    # Collected by a thread of ours if we live to see its end, else by init.
    threading.Thread(target=process.wait, daemon=True).start()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        record = read_record(run.supervisor)
        if record is not None and record.get("pid") == process.pid:
            return
        if process.returncode == ALREADY_STARTED:
            raise AlreadyStarted(run.root.name)
        if process.returncode is not None and not run.exit.exists():
            break
        time.sleep(0.02)
    raise UserError(
        f"run {run.root.name} did not start",
        why=tail(run.log, lines=5),
        fix="read log.txt in the run's folder",
    )


def _supervisor(run: RunPaths, spec: RunSpec) -> subprocess.Popen[bytes]:
    env = processes.job_environment(spec.mark, spec.options.pass_env)
    # The supervisor is no process of the job: a sweep must not find it.
    del env[processes.MARK]
    with run.log.open("ab") as log:
        argv = [sys.executable, "-m", "core.jobs.supervisor", str(run.root)]
        return processes.begin(argv, env, log=log)


def launch(
    spec: JobSpec,
    *,
    name: str,
    parent: str | None = None,
    options: Options | None = None,
    checked: bool = False,
) -> RunPaths:
    """Check, create and start, unless a run with the same settings is active: the one way in.

    Two windows pressing Start at once, or a double click, make one run.

    Args:
        checked: the kind's own check has just been made on this spec, and has shown its findings.

    Raises:
        UserError: what the kind's check finds.
        AlreadyStarted: by the other press.
    """
    if not checked:
        kind_of(spec.job).work.check(spec)
    runs = paths.runs_dir()
    runs.mkdir(parents=True, exist_ok=True)
    gate = locks.FileLock(runs / ".launch.lock")
    if not gate.acquire(timeout=15.0):
        raise UserError(
            "another window is starting a run and does not finish", fix="try again in a moment"
        )
    try:
        wanted = spec.to_dict()
        for other in list_runs():
            if other.state in ACTIVE and other.kind == spec.job and other.params == wanted:
                raise AlreadyStarted(other.id)
        return _launched(spec.job, wanted, name, parent, options or Options())
    finally:
        gate.release()


def _launched(
    kind: str, params: dict[str, Any], name: str, parent: str | None, options: Options
) -> RunPaths:
    """The run that has begun, by whoever waits for one of its kind."""
    spec = RunSpec(kind=kind, name=name, params=params, seq=0, parent=parent, options=options)
    ready = standby.take(kind, options)
    try:
        run = _made(spec.changed(mark=ready.mark) if ready else spec)
        start(run, ready=ready)
        return run
    except BaseException:
        if ready:
            ready.close()
        raise


# -- looking ---------------------------------------------------------------------------------


def open_run(run_id: str, root: Path | None = None) -> RunPaths:
    """The run of this id (or its unique beginning, or ``latest``).

    Raises:
        UserError: none, or several, or an id that is no plain name.
    """
    root = root or paths.runs_dir()
    if run_id == "latest":
        newest = next(iter(list_runs(root)), None)
        if newest is None:
            raise UserError("there are no runs yet", fix="start one: python -m core train ...")
        return RunPaths(newest.root)
    if not run_id or run_id in (".", "..") or set(run_id) & set("/\\\0"):
        raise UserError(f"{run_id[:80]!r} is not a run id", fix="list them: python -m core runs")
    exact = fsio.safe_join(root, run_id)
    if (exact / "spec.json").is_file():
        return RunPaths(exact)
    found = [s for s in list_runs(root) if s.id.startswith(run_id)]
    if len(found) == 1:
        return RunPaths(found[0].root)
    raise UserError(
        f"no run is called {run_id!r}" if not found else f"{run_id!r} fits {len(found)} runs",
        why=", ".join(s.id for s in found[:5]),
        fix="list them: python -m core runs",
    )


def status(run: RunPaths) -> Status:
    """All about one run; cheap, its cost does not grow with the run.

    Raises:
        UserError: the run's folder is gone or its spec cannot be read.
    """
    spec = read_spec(run)
    seen = observe(run, spec)
    state, reason = derive(seen)
    record = read_record(run.supervisor) or {}
    over = seen.exit or {}
    progress = progress_of(run, spec.kind) if state is not State.CREATED else Progress()
    holder = locks.device_holder() if state is State.STARTING else None
    return Status(
        id=run.root.name,
        name=spec.name,
        kind=spec.kind,
        state=state,
        reason=reason,
        stage="queued" if holder and holder.run != run.root.name else progress.stage,
        done=progress.done,
        total=progress.total,
        started=record.get("started"),
        ended=over.get("ended"),
        elapsed_seconds=elapsed(record, seen.exit, lost_at(run, state)),
        eta_seconds=progress.eta_seconds if state is State.RUNNING else None,
        result=read_record(run.result) if state in FINAL else None,
        error=UserError.from_dict(over["error"]) if over.get("error") else None,
        log_tail=tail(run.log),
        waiting_for=holder.what if holder and holder.run != run.root.name else "",
        stalled=state is State.RUNNING and stalled(run),
        left_over=tuple(over.get("left_over", ())),
    )


def wait(
    run: RunPaths, on_update: Callable[[Status], None] | None = None, poll: float = 0.5
) -> Status:
    """Block until the run is over.

    Raises:
        UserError: it was never started, or its folder is deleted meanwhile.
    """
    while True:
        now = status(run)
        if on_update is not None:
            on_update(now)
        if now.final:
            return now
        if now.state is State.CREATED:
            raise UserError(f"run {now.id} has not been started", fix="start it first")
        time.sleep(poll)


def finish(run: RunPaths, on_update: Callable[[Status], None] | None = None) -> dict[str, Any]:
    """Block until the run is over; an interrupt (Ctrl-C) stops it.

    Returns:
        What the job returned.

    Raises:
        UserError: it did not succeed; what it said, or that it was stopped.
    """
    try:
        end = wait(run, on_update)
    except KeyboardInterrupt:
        stop(run)
        wait(run)
        raise
    if end.state is State.SUCCEEDED and end.result is not None:
        return end.result
    raise end.error or UserError(
        f"run {end.id} ended as {end.state}", why=end.reason or "", fix=f"read {run.log}"
    )


# -- ending ----------------------------------------------------------------------------------


def stop(run: RunPaths, force: bool = False) -> None:
    """Ask a run to stop; idempotent. The supervisor does it, or we if it is gone.

    Args:
        force: skip the time between SIGTERM and SIGKILL.

    Raises:
        UserError: the folder is gone or cannot be written.
    """
    spec = read_spec(run)
    state, _ = derive(observe(run, spec))
    if state in FINAL:
        return
    if force or not run.stop.exists():
        fsio.write_json(run.stop, {"schema": 1, "force": force, "time": time.time()})
    if force and state is not State.ORPHANED and not heard(run):
        state = State.ORPHANED
    if state is State.ORPHANED:
        left = processes.end_processes(
            lambda: processes.processes_of(spec.mark), 0.0 if force else spec.options.grace_seconds
        )
        close(run, left)


def delete(run: RunPaths) -> None:
    """Remove a run's folder.

    Raises:
        UserError: the run is alive.
    """
    try:
        state, _ = derive(observe(run, read_spec(run)))
    except UserError:  # its spec cannot be read: only a supervisor would stand in the way
        state = State.RUNNING if locks.is_held(run.lock) else State.LOST
    if state not in (*FINAL, State.CREATED):
        raise UserError(f"run {run.root.name} is {state}", fix="stop it first")
    with fsio.disk_errors(f"cannot delete run {run.root.name}"):
        # Renamed first: a half-deleted folder must not look like a run.
        doomed = run.root.with_name(f".deleted-{secrets.token_hex(4)}")
        run.root.rename(doomed)
        trees.remove(doomed)
