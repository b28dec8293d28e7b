"""Two steps of real DeepSpeed runs on the CPU, and their checkpoints.

    python -m tests.fakes.zero_run FOLDER STAGExRANKS ...

One process imports DeepSpeed and forks the ranks of each run, one run after the other. A run's
checkpoint lies in FOLDER/STAGExRANKS, and beside it ``expected.pt``: the trained weights, gathered
by DeepSpeed itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param


def rank_of(stage: int, rank: int, ranks: int, folder: Path) -> None:
    """What one rank does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    # Only faster communication, for which it would compile C++ for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks,
        auto_mpi_discovery=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(trained, lr=1e-2),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": True},
        },
    )
    for _ in range(2):
        loss = engine(torch.ones(2, 6, dtype=torch.bfloat16)).float().pow(2).sum()
        engine.backward(loss)
        engine.step()
    engine.save_checkpoint(str(folder), tag="iter_2.pth")
    named = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
    expected = {name: safe_get_full_fp32_param(p).clone() for name, p in named}
    if rank == 0:
        torch.save(expected, folder / "expected.pt")


def forked(stage: int, rank: int, ranks: int, folder: Path) -> int:
    """The process of a rank."""
    if pid := os.fork():
        return pid
    try:
        rank_of(stage, rank, ranks, folder)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """All runs."""
    for case in sys.argv[2:]:
        folder = Path(sys.argv[1]) / case
        folder.mkdir()
        stage, ranks = map(int, case.split("x"))
        for pid in [forked(stage, rank, ranks, folder) for rank in range(ranks)]:
            assert os.waitpid(pid, 0)[1] == 0, case


if __name__ == "__main__":
    main()
