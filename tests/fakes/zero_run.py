"""Two steps of a real DeepSpeed run on the CPU, and its checkpoint.

    python -m tests.fakes.zero_run STAGE RANK RANKS FOLDER

Rank 0 also writes the trained weights, gathered by DeepSpeed itself, to FOLDER/expected.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """One rank."""
    stage, rank, ranks, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
    import deepspeed
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    # Only faster communication, for which it would compile C++ for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=int(rank), world_size=int(ranks),
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
    if rank == "0":
        torch.save(expected, folder / "expected.pt")


if __name__ == "__main__":
    main()
