"""``python -m core convert | merge | prove | export``; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core import fsio, trees
from core.commands.follow import complete
from core.commands.located import located
from core.weights.export_job import ExportSpec


def register(commands: Any) -> None:
    """Add the commands of this package."""
    _register_convert(commands)
    _register_merge(commands)
    _register_prove(commands)
    _register_export(commands)


def _register_convert(commands: Any) -> None:
    parser = commands.add_parser("convert", help="a training checkpoint to a PEFT adapter")
    parser.add_argument("config", type=Path, help="the XTuner config of the run")
    parser.add_argument("checkpoint", type=Path, help="iter_N.pth, a file or a DeepSpeed folder")
    parser.add_argument("out", type=Path, help="a new folder for the adapter")
    parser.add_argument("--fp32", action="store_true", help="keep float32 (default: float16)")
    parser.add_argument("--engine", choices=["fast", "xtuner"], default="fast")
    parser.add_argument("--max-shard-size", default="2GB", help="for full checkpoints")
    parser.set_defaults(run=_convert)


def _register_merge(commands: Any) -> None:
    parser = commands.add_parser("merge", help="base + adapter to a model folder, proved")
    parser.add_argument("base", type=located, help="bundled, a folder or a hub id")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("out", type=Path, help="a new folder for the merged model")
    parser.add_argument("--engine", choices=["stream", "xtuner"], default="stream")
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], help="default: the base's own"
    )
    parser.add_argument(
        "--faithful-nf4", action="store_true", help="start from the base as QLoRA saw it"
    )
    parser.add_argument("--dataset", type=Path, help="its persona goes into the model card")
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="what the model says about itself where the base's template names its vendor",
    )
    parser.add_argument("--no-proof", action="store_true", help="write without comparing replies")
    parser.set_defaults(run=_merge)


def _register_prove(commands: Any) -> None:
    parser = commands.add_parser("prove", help="compare a merged model with base + adapter")
    parser.add_argument("base", type=located, help="bundled, a folder or a hub id")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("merged", type=Path)
    parser.add_argument("--no-nf4", action="store_true", help="skip the NF4 base")
    parser.set_defaults(run=_prove)


def _register_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="a merged model to GGUF, Ollama or the hub")
    parser.add_argument("merged", type=Path)
    parser.add_argument("out", help="a new folder; for hub OWNER/NAME")
    parser.add_argument("--format", choices=["gguf", "ollama", "hub"], default="gguf")
    parser.add_argument(
        "--kind", choices=["f32", "f16", "bf16", "q8_0"], help="default: f16; ollama: q8_0"
    )
    parser.add_argument("--public", action="store_true", help="hub: not private")
    parser.set_defaults(run=_export)


def _convert(args: argparse.Namespace) -> int:
    from core.weights.convert_job import ConvertSpec

    out = args.out.resolve()
    spec = ConvertSpec(
        checkpoint=str(args.checkpoint.resolve()),
        config=str(args.config.resolve()),
        out=str(out),
        fp32=args.fp32,
        engine=args.engine,
        max_shard_size=args.max_shard_size,
    )
    complete(spec, out.name)
    _print_tree(out)
    return 0


def _merge(args: argparse.Namespace) -> int:
    from core.weights.merge_job import MergeSpec

    out = args.out.resolve()
    spec = MergeSpec(
        base=args.base,
        adapter=str(args.adapter.resolve()),
        out=str(out),
        engine=args.engine,
        max_shard_size=args.max_shard_size,
        dtype=args.dtype,
        faithful_nf4=args.faithful_nf4,
        prove=not args.no_proof,
        dataset=args.dataset and str(args.dataset.resolve()),
        system=args.system,
    )
    result = complete(spec, out.name)
    _print_tree(out)
    if result["proof"]:
        _print_proof(result["proof"])
    return 0


def _prove(args: argparse.Namespace) -> int:
    from core.weights.prove_job import ProveSpec

    merged = args.merged.resolve()
    spec = ProveSpec(
        base=args.base,
        adapter=str(args.adapter.resolve()),
        merged=str(merged),
        nf4=not args.no_nf4,
    )
    proof = complete(spec, merged.name)
    _print_proof(proof)
    return 0 if proof["ok"] else 1


def _export(args: argparse.Namespace) -> int:
    merged, to_hub = args.merged.resolve(), args.format == "hub"
    spec = ExportSpec(
        merged=str(merged),
        format=args.format,
        kind=args.kind,
        out=None if to_hub else str(Path(args.out).resolve()),
        repo=args.out if to_hub else "",
        private=not args.public,
    )
    result = complete(spec, f"{args.format} of {merged.name}")
    if to_hub:
        print(result["address"])
        return 0
    _print_tree(Path(result["out"]))
    if args.format == "ollama":
        print(f"now: cd {result['out']} && ollama create NAME -f Modelfile")
    return 0


def _print_tree(folder: Path) -> None:
    print(folder)
    for entry in trees.tree(folder):
        print(f"{'  ' * entry.depth}  {entry.path}  {fsio.human_bytes(entry.size)}")


def _print_proof(proof: dict[str, Any]) -> None:
    print(
        f"{'proved' if proof['ok'] else 'NOT PROVED'}: {proof['prompts']} prompts, "
        f"{proof['tokens']} tokens, written {proof['dtype']}, computed {proof['compute_dtype']}\n"
        f"  largest logit difference {proof['max_abs_logit_diff']:.3g}, KL {proof['kl']:.2g}, "
        f"same greedy replies: {'yes' if proof['same_greedy'] else 'no'}"
    )
    if proof["nf4_kl"] is not None:
        print(
            f"  NF4 base against unquantized base: logit difference "
            f"{proof['nf4_max_abs_logit_diff']:.3g}, KL {proof['nf4_kl']:.2g}"
        )
    for name, loss in proof["losses"].items():
        print(f"  training loss, {name}: {loss:.4f}")
    for note in proof["notes"]:
        print(f"  note: {note}")
