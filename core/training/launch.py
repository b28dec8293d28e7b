"""Several GPUs or nodes: XTuner's processes under torchrun."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from core import fsio, paths
from core.errors import UserError
from core.jobs.child import error_record
from core.paths import RunPaths
from core.training.spec import TrainSpec

#: In the environment of the workers that the run's own supervisor watches: what they print is read.
_WATCHED = "PERSONA_WATCHED"
_PORT = 29500
#: What each process runs, as arguments of Python; the run's folder follows.
WORKER = ("-m", "core.training.entry")
#: What a process says that has lost another one: never the first cause.
_ECHO = re.compile(
    r"DistBackendError|NCCL|ProcessGroup|Watchdog|Connection (closed|reset)|Broken pipe|"
    r"connectionClosed|SIGTERM|SIGABRT",
    re.IGNORECASE,
)


def torchrun_argv(spec: TrainSpec, run: RunPaths) -> list[str]:
    """The command of a node, the same on each; one node finds a free port itself.

    Several meet at MASTER_ADDR and MASTER_PORT if these are set, else at this host's name.
    """
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={spec.gpus}"]
    if spec.nodes == 1:
        argv.append("--standalone")
    else:
        address = os.environ.get("MASTER_ADDR") or socket.gethostname()
        argv += [
            f"--nnodes={spec.nodes}",
            "--rdzv_backend=c10d",
            f"--rdzv_endpoint={address}:{os.environ.get('MASTER_PORT') or _PORT}",
            f"--rdzv_id={run.root.name}",
        ]
    return [*argv, *WORKER, str(run.root)]


def node_command(spec: TrainSpec, run: RunPaths) -> str:
    """The line to start on every further node; the workspace must be on a disk that all share."""
    home = shlex.quote(f"PERSONA_HOME={paths.home().resolve()}")
    return f"cd {shlex.quote(str(paths.REPO))} && {home} {shlex.join(torchrun_argv(spec, run))}"


def watched() -> bool:
    """Whether this process speaks for the run: one of all, on the node of its supervisor."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    return _WATCHED in os.environ and os.environ.get("LOCAL_RANK") == "0"


def torchrun(spec: TrainSpec, run: RunPaths) -> dict[str, Any]:
    """Run this node's processes and wait; they write their log to our stdout.

    Raises:
        UserError: the process that failed first had ended with one.
        WorkerError: it crashed or was killed; the message has its last words.
    """
    from torch.distributed import run as elastic
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if spec.nodes > 1:
        print(f"start on every other node: {node_command(spec, run)}", flush=True)
    shutil.rmtree(_failures(run.work), ignore_errors=True)
    python_path = filter(None, [str(paths.REPO), os.environ.get("PYTHONPATH", "")])
    os.environ |= {_WATCHED: "1", "PYTHONPATH": os.pathsep.join(python_path)}
    try:
        elastic.run(elastic.parse_args(torchrun_argv(spec, run)[3:]))
    except ChildFailedError as error:
        raise _first(run.work, error.failures) from None
    finally:
        del os.environ[_WATCHED]
    counted: dict[str, Any] = fsio.read_json(run.work / "counted.json")
    return counted


class WorkerError(Exception):
    """A training process failed; the others could not go on without it."""


def _failures(work: Path) -> Path:
    return work / "failed"


def write_failure(work: Path, error: BaseException) -> None:
    """Keep a worker's last words for ``torchrun`` above."""
    rank = os.environ.get("RANK", "0")
    record = {"time": time.time(), **error_record(error)}
    fsio.write_json(_failures(work) / f"rank_{rank}.json", record)


def _first(work: Path, ended: dict[int, Any]) -> Exception:
    """The failure that the others followed from.

    Args:
        ended: torchrun's ``ProcessFailure`` by rank. Its times are of the moment that torchrun
            noticed, in whole seconds, and it counts those that it ended itself.
    """
    told: dict[int, dict[str, Any]] = {}
    for path in sorted(_failures(work).glob("rank_*.json")):
        told[int(path.stem.removeprefix("rank_"))] = fsio.read_json(path)
    for rank, failure in ended.items():
        if rank not in told:
            how = f"ended with status {failure.exitcode}"
            if failure.exitcode < 0:
                how = f"killed by {signal.Signals(-failure.exitcode).name}"
            told[rank] = {"time": float(failure.timestamp), "kind": "crash", "what": how}

    def order(rank: int) -> tuple[bool, float]:
        return bool(_ECHO.search(str(told[rank]["what"]))), told[rank]["time"]

    rank = min(told, key=order)
    if told[rank]["kind"] == "user":
        return UserError.from_dict(told[rank])
    return WorkerError(f"rank {rank} failed first: {told[rank]['what']}")
