"""The merge job: checkpoint -> adapter -> merged model -> proof; done only if the proof holds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from core import fsio
from core.conversation import Conversation, OnProgress, read_conversations
from core.errors import UserError
from core.models import catalog, lora
from core.models.catalog import ModelRef
from core.paths import DatasetPaths, RunPaths
from core.records import JobSpec
from core.weights import convert as converting
from core.weights import manifest, staging
from core.weights import merge as merging
from core.weights.card import write_card

#: Training rows whose loss is reported for the written and for the NF4 base.
_LOSS_ROWS = 32
PROOF = "merge_proof.json"


class MergeSpec(JobSpec):
    """What the job gets.

    Args:
        base: ``bundled``, a folder or a hub id.
        checkpoint: ``iter_N.pth`` and ``config`` of the run; or ``adapter``, an adapter folder.
        out: the merged folder; None is ``export/merged`` in the job's own run.
        adapter_out: where a converted adapter goes; None is ``adapter/<checkpoint>`` in the run.
        engine: of the merge, ``stream`` or ``xtuner``; ``convert_engine`` ``fast`` or ``xtuner``.
        prove: compare the merged model with base + adapter, and release it only if they agree.
        dataset: a dataset folder; its rows give the losses, its persona the model card.
        system: what the model says about itself where the base's template names its vendor;
            None is what the dataset's persona says.
        scorecard: a scorecard.json to quote in the model card.
    """

    job: ClassVar[str] = "merge"
    called: ClassVar[str] = "merge"

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
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    faithful_nf4: bool = False
    prove: bool = True
    nf4_report: bool = True
    dataset: str | None = None
    system: str | None = None
    scorecard: str | None = None

    def model_post_init(self, _context: object) -> None:
        """Raises UserError if there is nothing to merge."""
        if not self.adapter and not (self.checkpoint and self.config):
            raise UserError(
                "nothing to merge was named", fix="name a checkpoint and its config, or an adapter"
            )


Spec = MergeSpec


def check(spec: MergeSpec) -> None:
    """Raises UserError: there is no such base, checkpoint or adapter; a folder is taken."""
    base = catalog.resolve(spec.base)
    source = Path(str(spec.adapter or spec.checkpoint))
    if spec.adapter:
        lora.read(source)
    elif not source.exists():
        raise UserError(f"checkpoint {source} is not there", fix="choose one of the run's list")
    if spec.out:
        staging.check_output(Path(spec.out), [base.path, source])


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = round(time.monotonic() - start, 3)


def run(spec: MergeSpec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Convert, merge and prove.

    Returns:
        ``adapter`` and ``merged`` folders, ``proof`` (None if none was asked for) and the
        ``seconds`` of each stage.

    Raises:
        UserError: whatever convert, merge or prove refuse; or the proof fails, and then there is
            no merged folder.
    """
    base = catalog.resolve(spec.base)
    seconds = {"convert": 0.0, "merge": 0.0, "prove": 0.0}
    out = Path(spec.out) if spec.out else run.export / "merged"
    with _timed(seconds, "convert"):
        on_progress("convert", 0, 0)
        adapter, made = _adapter(spec, run)
    proofs: list[dict[str, Any]] = []
    start = time.monotonic()

    def finish(folder: Path) -> None:
        if spec.prove:
            with _timed(seconds, "prove"):
                proofs.append(_prove(spec, base, adapter, folder, on_progress))
        write_card(
            folder,
            base,
            proofs[0] if proofs else None,
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
        "proof": proofs[0] if proofs else None,
        "seconds": seconds,
    }


def _prove(
    spec: MergeSpec, base: ModelRef, adapter: Path, folder: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """The proof, also written into the folder. Raises UserError if it does not hold."""
    from core.weights.prove import ProofPlan, prove  # torch, which the Merge page does without

    proof = prove(
        base,
        adapter,
        folder,
        ProofPlan(
            nf4=spec.nf4_report or spec.faithful_nf4,
            rows=_loss_rows(spec),
            faithful_nf4=spec.faithful_nf4,
        ),
        on_progress=on_progress,
    )
    proof.require()
    fsio.write_json(folder / PROOF, {"schema": 1, **proof.to_dict()})
    return proof.to_dict()


def _settings(spec: MergeSpec) -> merging.MergeSettings:
    system = spec.system
    if system is None:
        system = persona_system(Path(spec.dataset)) if spec.dataset else ""
    return merging.MergeSettings(
        engine=spec.engine,
        max_shard_size=spec.max_shard_size,
        dtype=spec.dtype,
        faithful_nf4=spec.faithful_nf4,
        system=system,
    )


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
    rows = list(read_conversations(DatasetPaths(Path(spec.dataset)).train))
    return rows[:: max(1, len(rows) // _LOSS_ROWS)][:_LOSS_ROWS]
