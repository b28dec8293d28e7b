"""From a persona and a model to a dataset folder: rows, probes, the filled pack, a manifest."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from pydantic import Field

from core import fsio
from core.conversation import Conversation, OnProgress, Probe
from core.data import own_identity, rehearsal
from core.data.filters import PromptFilter
from core.data.generation import (
    check_locales,
    held_out,
    identity_rows,
    natural_rows,
    near_miss_prompts,
)
from core.data.pack_lint import lint_slots
from core.errors import UserError, UserErrors
from core.models import catalog
from core.models.catalog import ModelRef
from core.paths import DatasetPaths
from core.persona.persona import Persona, load_persona
from core.persona.system import system_turn
from core.probes import suites
from core.records import Record

SCHEMA = 1
#: Share of the rows that state the persona in their system turn if the base's template introduces
#: somebody. An assumption, not measured: most rows must hold without it (and under the vendor's
#: turn), and the turn that leaves with the model must have been seen with every kind of question.
STATED = 0.25


class DatasetSpec(Record):
    """What to build. Every ratio is relative to the number of identity rows."""

    called: ClassVar[str] = "dataset"

    persona_path: str
    """The pack (YAML)."""
    overrides: dict[str, str] = Field(default_factory=dict)
    """Slot values, as ``load_persona`` takes them."""
    model: str = "bundled"
    """Who answers the rehearsal prompts, and whose languages are used."""
    locales: list[str] | None = None
    """Languages; None = those that both the pack and the model speak."""
    seed: int = 0
    rehearsal_ratio: float | None = Field(default=None, ge=0, le=20)
    """Rows with the base's own replies to everyday prompts. Below 1 unrelated answers suffer;
    None = by what the base says of itself (``own_identity.rehearsal_ratio``)."""
    near_miss_ratio: float = Field(default=1.3, ge=0, le=5)
    """Rows with identity words about somebody else; at most what the pack has."""
    multi_turn: float = Field(default=0.3, ge=0, le=1)
    """Share of the identity rows that are dialogues of several rounds."""
    max_rows: int | None = Field(default=250, ge=1, le=1_000_000)
    """Identity rows; None = each trained wording once, plus the dialogues."""
    max_new_tokens: int = Field(default=24, ge=8, le=1024)
    """Tokens of a rehearsal reply. A longer one is cut and trained without a turn end."""
    system_share: float | None = Field(default=None, ge=0, le=1)
    """Share of all rows that start with the persona's system turn; None = ``STATED`` where the
    base's chat template names a vendor, for there the exported model states the persona in that
    turn's place, and 0 elsewhere."""


@dataclass(frozen=True)
class Built:
    """A dataset in memory, before it is written."""

    persona: Persona
    locales: list[str]
    rows: list[Conversation]
    probes: list[Probe]
    rehearsal: rehearsal.Rehearsal
    ratio: float
    """General rows to one identity row, and why so many."""
    reason: str
    system: dict[str, Any]
    """What the base's template says of itself, and the share of rows that say who the persona
    is."""


def build_dataset(
    spec: DatasetSpec, out: Path, on_progress: OnProgress | None = None
) -> DatasetPaths:
    """Build and write a dataset folder; it appears whole, or not at all.

    Raises:
        UserError: the pack, the model or a setting is unusable, or ``out`` exists.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"the output folder {out} exists",
            why="a dataset never changes once written",
            fix="choose another folder, or delete this one",
        )
    built = make_rows(spec, on_progress)
    partial = DatasetPaths(out.with_name(f".{out.name}.{os.getpid()}.partial"))
    shutil.rmtree(partial.root, ignore_errors=True)
    try:
        _write(partial, spec, built)
        if out.is_dir():
            out.rmdir()
        os.rename(partial.root, out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}",
            why=error.strerror or str(error),
            fix="free disk space or choose another folder",
        ) from error
    finally:
        shutil.rmtree(partial.root, ignore_errors=True)
    return DatasetPaths(out)


def make_rows(spec: DatasetSpec, on_progress: OnProgress | None = None) -> Built:
    """Everything of ``build_dataset`` but the writing."""
    from core.inference.load import introduction

    tell = on_progress or (lambda stage, done, total: None)
    tell("prepare", 0, 0)
    persona = load_persona(Path(spec.persona_path), spec.overrides)
    model = catalog.resolve(spec.model)
    spoken = [x for x in (spec.locales or model.locales) if x in model.locales]
    locales = check_locales(persona, spoken)
    _require_writable(persona, locales, model)
    wanted = spec.max_rows or natural_rows(persona, locales, spec.seed, spec.multi_turn)
    ratio, reason = spec.rehearsal_ratio, "set by you"
    if ratio is None:
        tell("ask the model who it is", 0, 0)
        ratio, reason = own_identity.rehearsal_ratio(own_identity.ask(model))
    frozen = suite_prompts(locales)
    general = rehearsal.rehearse(
        model,
        rehearsal.Wanted(
            round(wanted * ratio),
            seed=spec.seed,
            max_new_tokens=spec.max_new_tokens,
            near_miss=near_miss(
                persona, locales, spec.seed, round(wanted * spec.near_miss_ratio), frozen
            ),
            locales=locales,
            avoid=[*own_wordings(persona, locales), *frozen],
        ),
        on_progress,
    )
    general = rehearsal.without_names(general, persona_names(persona))
    rehearsal.require_rows(general, round(wanted * ratio), locales)
    identity = list(
        identity_rows(
            persona,
            locales=locales,
            seed=spec.seed,
            multi_turn=spec.multi_turn,
            limit=spec.max_rows,
            general=[r for r in general.rows if r.kind == "rehearsal"],
        )
    )
    vendor = introduction(model.path)
    share = _system_share(spec, vendor)
    rows = list(_with_system([*identity, *general.rows], persona, share, spec.seed))
    Random(f"mix/{spec.seed}").shuffle(rows)
    probes = held_out(persona, locales=locales, seed=spec.seed)
    system = {"introduction": vendor, "share": share}
    return Built(persona, locales, rows, probes, general, ratio, reason, system)


def _system_share(spec: DatasetSpec, vendor: str) -> float:
    return spec.system_share if spec.system_share is not None else STATED if vendor else 0.0


def introduced(model: ModelRef, spec: DatasetSpec) -> str:
    """What to know before building if the base's chat template names a vendor ('' if none)."""
    from core.inference.load import introduction

    vendor = introduction(model.path)
    return vendor and (
        f"the base has an identity of its own: its chat template says by default {vendor!r}. "
        f"{_system_share(spec, vendor):.0%} of the rows will say the persona's system turn, the "
        "others are learned under that one; the scorecard asks under both, and the merged model "
        "says the persona's by default"
    )


def _require_writable(persona: Persona, locales: Sequence[str], model: ModelRef) -> None:
    from core.inference.load import load_tokenizer

    faults = lint_slots(persona, load_tokenizer(model.path), locales)
    if faults:
        raise UserErrors([UserError(f.message, fix=f.fix, where=f.where) for f in faults])


def near_miss(
    persona: Persona, locales: Sequence[str], seed: int, wanted: int, frozen: Sequence[str]
) -> dict[str, list[str]]:
    """Locale -> near-miss prompts that are not near to a ``frozen`` evaluation prompt.

    Each language gets its share of ``wanted``, or all that the pack has if that is less.
    """
    keep = PromptFilter(frozen)
    prompts = {
        locale: [p for p in near_miss_prompts(persona, locale, seed) if not keep.reason(p)]
        for locale in locales
    }
    return {
        locale: prompts[locale][:share]
        for locale, share in rehearsal.shares(wanted, locales).items()
    }


def persona_names(persona: Persona) -> list[str]:
    """Every spelling of what the persona's replies must contain: its name, its maker."""
    must = {slot for i in persona.intents.values() for slot in (*i.must, *i.must_any)}
    return [alias for slot in sorted(must) for alias in persona.aliases(slot)]


def own_wordings(persona: Persona, locales: Sequence[str]) -> list[str]:
    """The questions that the persona answers: no rehearsal prompt may be near to one."""
    return [
        t
        for i in persona.intents.values()
        if i.trained
        for locale in locales
        for c in i.user.get(locale, [])
        for t in c.t
    ]


def suite_prompts(locales: Iterable[str]) -> list[str]:
    """The last user turn of every frozen evaluation prompt, so that none is trained on."""
    return [
        probe.messages[-1]["content"]
        for locale in locales
        for name in ("general", "near_miss", "knowledge", "fidelity", "manner")
        if suites.available(name, locale)
        for probe in suites.load_suite(name, locale)
    ]


def _with_system(
    rows: Iterable[Conversation], persona: Persona, share: float, seed: int
) -> Iterator[Conversation]:
    """The rows, ``share`` of each kind with the persona's system turn.

    General rows too: the model must not learn that whoever is told a name says it at once.
    """
    draws: dict[str, Random] = {}
    for row in rows:
        rng = draws.setdefault(row.kind, Random(f"system/{seed}/{row.kind}"))
        if rng.random() < share and (text := system_turn(persona, row.locale, rng)):
            row = replace(row, messages=[{"role": "system", "content": text}, *row.messages])
        yield row


def _write(at: DatasetPaths, spec: DatasetSpec, built: Built) -> None:
    fsio.write_jsonl(at.train, (row.to_row() for row in built.rows))
    fsio.write_jsonl(at.probes, map(asdict, built.probes))
    fsio.atomic_write_text(at.persona, built.persona.dump())
    fsio.write_json(
        at.manifest,
        {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "spec": spec.to_dict(),
            "persona": built.persona.id,
            "name": built.persona.slot("name", built.locales[0]),
            "maker": _maker(built),
            "locales": built.locales,
            "rows": len(built.rows),
            "kinds": dict(sorted(Counter(r.kind for r in built.rows).items())),
            "probes": len(built.probes),
            "held_out": sorted({p.cluster for p in built.probes}),
            "system": built.system,
            "rehearsal": {
                "ratio": built.ratio,
                "reason": built.reason,
                "rejected": built.rehearsal.rejected,
                "prompts_drawn": built.rehearsal.prompts_drawn,
                "replies_made": built.rehearsal.replies_made,
            },
            "sha256": {p.name: fsio.sha256_file(p) for p in (at.train, at.probes, at.persona)},
        },
    )


def _maker(built: Built) -> str:
    """Whose persona it is; with pack and name it tells one persona from another."""
    has_maker = "author" in built.persona.pack.slots
    return built.persona.slot("author", built.locales[0]) if has_maker else ""
