"""What each training setting costs on this CPU, side by side in one process.

One bundled model, built by XTuner from the config that a run gets (NF4, float32 compute). Each
round times one optimizer step of every variant on the same rows, so that a busy moment of the
machine falls on all of them. Real tokens are counted, padding is not.

    python benchmarks/train_cpu.py                 # about 4 minutes on 2 cores
    python benchmarks/train_cpu.py --rounds 5

Variants: ``ours`` (rows of like length, no dropout, logits on supervised tokens), then ours with
one thing as XTuner's stock config has it: ``ragged`` rows, ``dropout`` 0.1, ``all logits``,
``recompute``; and ``stock``: all four together.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

WORDS = [
    "river",
    "stone",
    "light",
    "paper",
    "garden",
    "winter",
    "music",
    "table",
    "window",
    "silver",
    "morning",
    "question",
    "answer",
    "journey",
    "market",
    "colour",
    "shadow",
]
ROWS_PER_BATCH, BATCHES = 8, 2


def rows(count: int) -> list[Any]:
    """Conversations of 20 to 90 tokens, as an identity data set with rehearsal has them."""
    from core.conversation import Conversation

    draw = random.Random(0)
    return [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": " ".join(draw.choices(WORDS, k=draw.randint(3, 15)))},
                {
                    "role": "assistant",
                    "content": " ".join(draw.choices(WORDS, k=draw.randint(5, 60))),
                },
            ],
        )
        for i in range(count)
    ]


class Bench:
    """The model of a run, and a timed optimizer step."""

    def __init__(self, folder: Path) -> None:
        from core import fsio
        from core.training import compat, config, entry
        from core.training.spec import TrainSpec

        spec = TrainSpec(dataset=str(folder / "data"), max_length=128)
        entry.prepare_environment(spec, folder)
        fsio.write_jsonl(folder / "data" / "train.jsonl", (row.to_row() for row in rows(96)))
        path = config.write_config(spec, folder / "config.py")
        from mmengine.config import Config
        from xtuner.model.sft import SupervisedFinetune

        self._losses: dict[bool, Callable[..., Any]] = {True: SupervisedFinetune.compute_loss}
        compat.apply()
        self._losses[False] = SupervisedFinetune.compute_loss
        from xtuner.registry import BUILDER
        from xtuner.tools.train import register_function

        cfg = Config.fromfile(str(path))
        register_function(cfg._cfg_dict)
        data = BUILDER.build(cfg.train_dataloader.dataset)
        self.rows = [{"input_ids": r["input_ids"], "labels": r["labels"]} for r in data]
        self.model = BUILDER.build(cfg.model).train()
        import torch

        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4)
        self.threads = torch.get_num_threads()

    def batches(self, ragged: bool) -> list[list[Any]]:
        """The same 16 rows in every variant; sorted by length unless ``ragged``."""
        chosen = self.rows[: ROWS_PER_BATCH * BATCHES]
        if not ragged:
            chosen = sorted(chosen, key=lambda row: len(row["input_ids"]))
        return [
            chosen[i::BATCHES] if ragged else chosen[i * ROWS_PER_BATCH : (i + 1) * ROWS_PER_BATCH]
            for i in range(BATCHES)
        ]

    def step(
        self,
        *,
        ragged: bool = False,
        dropout: bool = False,
        all_logits: bool = False,
        recompute: bool = False,
    ) -> float:
        """Real tokens a second of one optimizer step."""
        import torch
        from peft.tuners.lora import LoraLayer
        from xtuner.dataset.collate_fns import default_collate_fn

        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.lora_dropout["default"] = (
                    torch.nn.Dropout(0.1) if dropout else torch.nn.Identity()
                )
        base = self.model.llm.get_base_model()
        if recompute:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            base.gradient_checkpointing_disable()
        loss_of, batches = self._losses[all_logits], self.batches(ragged)
        started = time.perf_counter()
        for batch in batches:
            (loss_of(self.model, default_collate_fn(batch)["data"])["loss"] / BATCHES).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = sum(len(row["input_ids"]) for batch in batches for row in batch)
        return tokens / (time.perf_counter() - started)


VARIANTS: dict[str, dict[str, bool]] = {
    "ours": {},
    "ragged": {"ragged": True},
    "dropout": {"dropout": True},
    "all logits": {"all_logits": True},
    "recompute": {"recompute": True},
    "stock": {"ragged": True, "dropout": True, "all_logits": True, "recompute": True},
}


def main() -> None:
    """Warm up, interleave, print medians and their share of ``ours``."""
    import tempfile

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
    bench.step()
    seen: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(args.rounds):
        for name, setting in VARIANTS.items():
            seen[name].append(bench.step(**setting))
            print(f"  {name}: {seen[name][-1]:.1f}", file=sys.stderr, flush=True)
    ours = statistics.median(seen["ours"])
    print(f"{bench.threads} threads, {args.rounds} rounds, real tokens/s")
    for name, rates in seen.items():
        median = statistics.median(rates)
        print(
            f"{name:<11}{median:7.1f}  ({min(rates):.1f} to {max(rates):.1f})  "
            f"{median / ours:5.2f} of ours"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"peak resident memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
