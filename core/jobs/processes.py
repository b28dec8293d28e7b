"""Finding and ending the processes of one run, never by their name.

A process belongs to a run if it descends from the run's child, or if its environment carries the
run's random mark. The second finds workers in sessions of their own (torchrun) and those whose
parent has died.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from core.paths import REPO

#: The environment variable that marks every process of a run.
MARK = "PERSONA_RUN_MARK"

_NAMES = """
PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR TERM SHELL LD_LIBRARY_PATH VIRTUAL_ENV PYTHONPATH
PYTHONDONTWRITEBYTECODE PYTHONHASHSEED XDG_CACHE_HOME HF_HOME HF_ENDPOINT HF_DATASETS_CACHE
HF_HUB_CACHE HF_HUB_OFFLINE HF_DATASETS_OFFLINE TRANSFORMERS_OFFLINE TRANSFORMERS_CACHE
HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy SSL_CERT_FILE
REQUESTS_CA_BUNDLE TORCH_HOME TRITON_CACHE_DIR TOKENIZERS_PARALLELISM
OMP_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT MKL_NUM_THREADS OPENBLAS_NUM_THREADS
PERSONA_HOME PERSONA_ALLOW_REMOTE MASTER_ADDR MASTER_PORT
"""
_PASSED = frozenset(_NAMES.split())
_PASSED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_")


def job_environment(mark: str, pass_env: Iterable[str] = ()) -> dict[str, str]:
    """The environment of a job: what it needs and no more.

    Streamlit puts root-level secrets into ``os.environ``; without this list they would reach the
    trainer, its loggers and mmengine's ``{{ $VAR }}`` substitution.

    Args:
        pass_env: further names, asked for by the run's options.
    """
    allowed = _PASSED | set(pass_env)
    env = {
        name: value
        for name, value in os.environ.items()
        if name in allowed or name.startswith(_PASSED_PREFIXES)
    }
    env[MARK] = mark
    env["PYTHONUNBUFFERED"] = "1"  # log lines when they are printed, not when 8 kB are full
    env["PYTHONFAULTHANDLER"] = "1"
    env["MKL_SERVICE_FORCE_INTEL"] = "1"  # MKL and GNU OpenMP in one process otherwise abort
    return env


def begin(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: int = subprocess.DEVNULL,
    log: BinaryIO | int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A supervisor or a job's process, in a session of its own: it outlives whoever starts it.

    Args:
        log: takes all that it prints.
        pass_fds: descriptors that it keeps, beside these.
    """
    return subprocess.Popen(
        argv,
        cwd=REPO,
        env=env,
        stdin=stdin,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=pass_fds,
    )


def boot_id() -> str:
    """Differs after every boot of the machine."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text().strip() if file.exists() else f"{psutil.boot_time():.0f}"


def become_subreaper() -> None:
    """Make orphaned grandchildren ours, so that none stays behind as a zombie (Linux)."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_CHILD_SUBREAPER = 36
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def mark_of(process: psutil.Process) -> str | None:
    """The run mark in a process's environment; None if there is none or we may not look."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def marked_processes() -> dict[str, list[psutil.Process]]:
    """Every living process of every run, by mark; one walk over the process table."""
    found: dict[str, list[psutil.Process]] = {}
    me = os.getpid()
    for process in psutil.process_iter():
        # Our own process may be one: the command line inside a job (tune starts stages).
        if process.pid != me and (mark := mark_of(process)):
            found.setdefault(mark, []).append(process)
    return found


def processes_of(mark: str, child_pid: int | None = None) -> list[psutil.Process]:
    """Living processes of one run: descendants of its child, and whatever carries its mark."""
    found = {p.pid: p for p in marked_processes().get(mark, [])}
    if child_pid is not None:
        with suppress(psutil.Error):
            child = psutil.Process(child_pid)
            found |= {p.pid: p for p in [child, *child.children(recursive=True)] if alive(p)}
    return list(found.values())


def adopted() -> list[psutil.Process]:
    """Living descendants of this process: with ``become_subreaper``, orphans without a mark too."""
    return [p for p in psutil.Process().children(recursive=True) if alive(p)]


def same_process(pid: object, start_time: object) -> psutil.Process | None:
    """The living process that a record names by pid and start time; pids are used again."""
    try:
        process = psutil.Process(int(str(pid)))
        return process if abs(process.create_time() - float(str(start_time))) < 0.1 else None
    except (psutil.Error, ValueError, OverflowError):
        return None


def alive(process: psutil.Process) -> bool:
    """Running, and still the process it was when we first saw it (pids are used again)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each; psutil checks the start time first, so a reused pid is never hit."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def end_processes(
    find: Callable[[], list[psutil.Process]],
    grace: float,
    *,
    while_waiting: Callable[[], bool] = lambda: False,
    kill_wait: float = 5.0,
) -> list[int]:
    """SIGTERM, wait, SIGKILL, sweep again until nothing is found.

    Args:
        find: lists the living targets; called again and again, since a dying process may fork.
        grace: seconds between SIGTERM and SIGKILL.
        while_waiting: called about ten times a second; True ends the grace at once.
        kill_wait: seconds to wait for the kernel after SIGKILL.

    Returns:
        pids that are alive still (stuck in the kernel).
    """
    targets = {p.pid: p for p in find()}
    signal_all(targets.values(), signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(map(alive, targets.values())):
        if while_waiting():
            break
        time.sleep(0.1)
    deadline = time.monotonic() + kill_wait
    while True:
        left = {p.pid: p for p in [*targets.values(), *find()] if alive(p)}
        if not left or time.monotonic() > deadline:
            return sorted(left)
        signal_all(left.values(), signal.SIGKILL)
        while_waiting()
        time.sleep(0.1)
