"""Fast convert against XTuner's pth_to_hf, on a real checkpoint of the bundled model.

    python benchmarks/convert.py [--model DIR] [--rank 16]

Makes a QLoRA config and a checkpoint as XTuner saves it (LoRA on every linear layer, AdamW state,
message hub), then converts it with both engines, each in a process of its own, timed from start
to exit and also without imports. Prints the ratios and whether every tensor is equal, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))


def make_run(folder: Path, model: Path, rank: int) -> None:
    """A run folder with config, spec and one checkpoint."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from core import seal
    from tests.fakes import tiny_models as tiny

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peft = get_peft_model(
        base,
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    tiny.save_checkpoint(peft, folder / "work" / "iter_3.pth")
    tiny.save_config(folder / "config.py", model, r=rank, alpha=2 * rank, nf4=True)
    (folder / "spec.json").write_text("{}")
    seal.seal(folder / "config.py")  # XTuner's engine runs it, so it must be a run's own


def child(engine: str, folder: Path) -> None:
    """Convert, and print the seconds of the call alone."""
    if engine == "xtuner":
        from core.training import compat

        compat.apply()
        from xtuner.tools.model_converters import pth_to_hf as _  # noqa: F401  before the clock
    from core.weights.convert import convert

    start = time.perf_counter()
    convert(folder / "work" / "iter_3.pth", folder / "config.py", folder / engine, engine=engine)  # type: ignore[arg-type]
    print("RESULT", json.dumps(time.perf_counter() - start))


def measure(engine: str, folder: Path) -> tuple[float, float]:
    """(seconds of the process, seconds of the call)."""
    shutil.rmtree(folder / engine, ignore_errors=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--engine", engine, "--folder", str(folder)],
        capture_output=True,
        text=True,
    )
    whole = time.perf_counter() - start
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise SystemExit(f"{engine} failed\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return whole, float(line.removeprefix("RESULT "))


def main() -> None:
    """Make the run, convert in turn, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="default: the bundled model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        child(args.engine, args.folder)
        return
    from core.models import bundled

    folder = Path(tempfile.mkdtemp(prefix="convert-benchmark-"))
    try:
        make_run(folder, args.model or bundled.ensure(), args.rank)
        best: dict[str, tuple[float, float]] = {}
        for _ in range(args.rounds):
            for engine in ("fast", "xtuner"):
                seconds = measure(engine, folder)
                print(
                    f"  {engine:7s} process {seconds[0]:6.2f} s, call {seconds[1]:6.2f} s",
                    flush=True,
                )
                best[engine] = min(best.get(engine, seconds), seconds)
        _report(folder, best)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _report(folder: Path, best: dict[str, tuple[float, float]]) -> None:
    import torch
    from safetensors.torch import load_file

    fast, theirs = (
        load_file(folder / engine / "adapter_model.safetensors") for engine in ("fast", "xtuner")
    )
    equal = fast.keys() == theirs.keys() and all(torch.equal(fast[k], theirs[k]) for k in fast)
    print(f"{len(fast)} tensors, equal bit for bit: {'yes' if equal else 'NO'}")
    for at, what in enumerate(("process, imports included", "call alone")):
        ratio = best["xtuner"][at] / best["fast"][at]
        print(f"fast is {ratio:.0f}x faster ({what}; wanted: at least 20)")
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
