"""The merge job: checkpoint -> adapter -> merged model -> proof; done only if the proof holds."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import fsio
from core.conversation import Conversation, OnProgress
from core.errors import UserError
from core.models import catalog
from core.models.catalog import ModelRef
from core.paths import DatasetPaths, RunPaths
from core.weights import convert as converting
from core.weights import manifest
from core.weights import merge as merging
from core.weights.card import write_card
from core.weights.prove import MergeProof, ProofPlan, prove

#: Training rows whose loss is reported for the written and for the NF4 base.
_LOSS_ROWS = 32
PROOF = "merge_proof.json"


@dataclass(frozen=True)
class MergeSpec:
    """What the job gets.

    Args:
        base: ``bundled``, a folder or a hub id.
        checkpoint: ``iter_N.pth`` and ``config`` of the run; or ``adapter``, an adapter folder.
        out: the merged folder; None is ``export/merged`` in the job's own run.
        adapter_out: where a converted adapter goes; None is ``adapter/<checkpoint>`` in the run.
        engine: of the merge, ``stream`` or ``xtuner``; ``convert_engine`` ``fast`` or ``xtuner``.
        dataset: a dataset folder; its rows give the losses, its persona the model card.
        scorecard: a scorecard.json to quote in the model card.
    """

    base: str
    checkpoint: str | None = None
    config: str | None = None
    adapter: str | None = None
    out: str | None = None
    adapter_out: str | None = None
    fp32: bool = False
    engine: merging.Engine = "stream"
    convert_engine: converting.Engine = "fast"
    max_shard_size: str = "5GB"
    dtype: str | None = None
    faithful_nf4: bool = False
    remote_code: bool = False
    nf4_report: bool = True
    dataset: str | None = None
    scorecard: str | None = None

    @classmethod
    def from_dict(cls, params: Mapping[str, Any]) -> MergeSpec:
        """Raises UserError for unknown fields and for a job with nothing to merge."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(params) - known):
            raise UserError(
                f"a merge has no setting {', '.join(unknown)}",
                fix=f"use {', '.join(sorted(known))}",
            )
        spec = cls(**params)
        if not spec.adapter and not (spec.checkpoint and spec.config):
            raise UserError(
                "nothing to merge was named", fix="name a checkpoint and its config, or an adapter"
            )
        return spec


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = round(time.monotonic() - start, 3)


def run(params: dict[str, Any], run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Convert, merge and prove; see ``MergeSpec`` for the parameters.

    Returns:
        ``adapter`` and ``merged`` folders, ``proof`` and the ``seconds`` of each stage.

    Raises:
        UserError: whatever convert, merge or prove refuse; or the proof fails, and then there is
            no merged folder.
    """
    spec = MergeSpec.from_dict(params)
    base = catalog.resolve(spec.base)
    seconds = {"convert": 0.0, "merge": 0.0, "prove": 0.0}
    out = Path(spec.out) if spec.out else run.export / "merged"
    with _timed(seconds, "convert"):
        on_progress("convert", 0, 1)
        adapter, made = _adapter(spec, run)
        on_progress("convert", 1, 1)
    proofs: list[MergeProof] = []
    start = time.monotonic()

    def finish(folder: Path) -> None:
        with _timed(seconds, "prove"):
            proofs.append(_proved(spec, base, adapter, folder, on_progress))
        proof = proofs[0].to_dict()
        fsio.write_json(folder / PROOF, {"schema": 1, **proof})
        write_card(
            folder,
            base,
            proof,
            title=_title(spec, run, out),
            dataset=Path(spec.dataset) if spec.dataset else None,
            config=Path(spec.config) if spec.config else None,
            scorecard=Path(spec.scorecard) if spec.scorecard else None,
        )

    try:
        merging.merge(base, adapter, out, _settings(spec), finish=finish, on_progress=on_progress)
    except UserError:
        if made:  # an adapter beside no merged folder would block the next try
            shutil.rmtree(adapter, ignore_errors=True)
        raise
    seconds["merge"] = round(time.monotonic() - start - seconds["prove"], 3)
    return {
        "adapter": str(adapter),
        "merged": str(out),
        "proof": proofs[0].to_dict(),
        "seconds": seconds,
    }


def _settings(spec: MergeSpec) -> merging.MergeSettings:
    return merging.MergeSettings(
        engine=spec.engine,
        max_shard_size=spec.max_shard_size,
        dtype=spec.dtype,
        faithful_nf4=spec.faithful_nf4,
        remote_code=spec.remote_code,
        system=persona_system(Path(spec.dataset)) if spec.dataset else "",
    )


def _proved(
    spec: MergeSpec, base: ModelRef, adapter: Path, folder: Path, on_progress: OnProgress
) -> MergeProof:
    """The proof of the merged folder. Raises UserError if it does not hold."""
    plan = ProofPlan(
        nf4=spec.nf4_report or spec.faithful_nf4,
        rows=_loss_rows(spec),
        faithful_nf4=spec.faithful_nf4,
    )
    proof = prove(base, adapter, folder, plan, on_progress=on_progress)
    proof.require()
    return proof


def persona_system(dataset: Path) -> str:
    """The system turn that states a dataset's persona ('' if it has none)."""
    from core.persona.persona import load_persona
    from core.persona.system import system_turn

    file = DatasetPaths(dataset).persona
    if not file.is_file():
        return ""
    persona = load_persona(file)
    return system_turn(persona, persona.locales[0])


def _title(spec: MergeSpec, run: RunPaths, out: Path) -> str:
    """What the card is headed with: the folder that was asked for, else the job's own name."""
    if spec.out:
        return out.parent.name if out.name == "merged" else out.name
    record = fsio.read_json(run.spec) if run.spec.is_file() else {}
    return str(record.get("name") or run.root.name)


def _adapter(spec: MergeSpec, run: RunPaths) -> tuple[Path, bool]:
    """The adapter folder, and whether this job made it."""
    if spec.adapter:
        return Path(spec.adapter), False
    checkpoint, config = Path(str(spec.checkpoint)), Path(str(spec.config))
    out = Path(spec.adapter_out) if spec.adapter_out else run.adapter / checkpoint.stem
    if (out / manifest.NAME).is_file() and manifest.read(out).get("kind") == "adapter":
        shutil.rmtree(out)  # of an attempt that was interrupted; made again in a second
    converting.convert(
        checkpoint,
        config,
        out,
        fp32=spec.fp32,
        engine=spec.convert_engine,
        max_shard_size=spec.max_shard_size,
    )
    return out, True


def _loss_rows(spec: MergeSpec) -> list[Conversation]:
    """Evenly spaced training rows, so that every kind of row is among them."""
    if not spec.dataset:
        return []
    train = DatasetPaths(Path(spec.dataset)).train
    rows = [Conversation.from_row(row) for row in fsio.read_jsonl(train)]
    return rows[:: max(1, len(rows) // _LOSS_ROWS)][:_LOSS_ROWS]


def run_export(params: dict[str, Any], run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Write a GGUF file or an Ollama folder, or push to the hub.

    Args:
        params: ``merged``; ``format`` "gguf", "ollama" or "hub"; ``kind`` of the GGUF weights and
            ``out`` for the first two; ``repo`` and ``private`` for the hub.

    Returns:
        ``out``, the new folder, or ``address`` of the repository.
    """
    from core.weights.export import export_gguf, export_ollama, push_to_hub

    merged, target = Path(params["merged"]), params.get("format")
    if target == "hub":
        on_progress("upload", 0, 1)
        address = push_to_hub(merged, str(params.get("repo")), private=params.get("private", True))
        return {"address": address}
    if target not in ("gguf", "ollama"):
        raise UserError(f"unknown export format {target!r}", fix="gguf, ollama or hub")
    write, default = (export_gguf, "f16") if target == "gguf" else (export_ollama, "q8_0")
    out = Path(params["out"]) if params.get("out") else run.export / target
    kind: Any = params.get("kind") or default
    return {"out": str(write(merged, out, kind=kind, on_progress=on_progress))}
