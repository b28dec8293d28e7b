"""Several GPUs or nodes: XTuner's processes under torchrun."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError
from core.paths import RunPaths
from core.training.spec import TrainSpec

_PORT = 29500


def torchrun_argv(spec: TrainSpec, run: RunPaths, node_rank: int = 0) -> list[str]:
    """The command of one node. One node finds a free port itself; several share an address.

    The address of node 0 comes from MASTER_ADDR if that is set, else from its host name.
    """
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={spec.gpus}"]
    if spec.nodes == 1:
        argv.append("--standalone")
    else:
        address = os.environ.get("MASTER_ADDR") or socket.gethostname()
        argv += [
            f"--nnodes={spec.nodes}",
            f"--node_rank={node_rank}",
            f"--master_addr={address}",
            f"--master_port={_PORT}",
        ]
    return [*argv, "-m", "core.training.entry", str(run.root)]


def node_commands(spec: TrainSpec, run: RunPaths) -> list[str]:
    """The lines to start by hand on nodes 1, 2, ...; the run folder must be on a shared disk."""
    return [shlex.join(torchrun_argv(spec, run, rank)) for rank in range(1, spec.nodes)]


def torchrun(spec: TrainSpec, run: RunPaths) -> dict[str, Any]:
    """Run node 0 and wait; workers write their log to our stdout.

    Raises:
        UserError: a worker failed. Its traceback is in the log above this message.
    """
    for line in node_commands(spec, run):
        print(f"start on the next node: {line}", flush=True)
    repo = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(repo), os.environ.get("PYTHONPATH", "")]))
    code = subprocess.run(
        torchrun_argv(spec, run), check=False, env={**os.environ, "PYTHONPATH": path}
    ).returncode
    if code != 0:
        raise UserError(
            f"training under torchrun ended with code {code}",
            fix="see the first traceback in the log",
        )
    counted: dict[str, Any] = fsio.read_json(run.work / "counted.json")
    return counted
