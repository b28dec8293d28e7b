"""A training process that ends as it is told: ``python -m tests.fakes.worker HOW RUN_DIR``.

What torchrun starts instead of XTuner, with the same gloo group behind it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from core.errors import UserError
from core.training import launch


def main() -> None:
    """Rank 1 fails; rank 0 waits for it, or hears nothing any more. Stubborn: neither does."""
    how, work = sys.argv[1], Path(sys.argv[2]) / "work"
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    try:
        dist.all_reduce(torch.ones(1))
        (work / f"pid_{rank}").write_text(str(os.getpid()))
        if rank == 1 and how != "stubborn":
            _fail(how)
        if how in ("hang", "stubborn"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        dist.all_reduce(torch.ones(1))
    except Exception as error:
        launch.write_failure(work, error)
        raise


def _fail(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "told":
        raise UserError("the rows are unreadable", fix="mend them")
    raise ValueError("row 17 broke rank 1")


if __name__ == "__main__":
    main()
