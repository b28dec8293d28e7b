"""Prompt packs for a batch: the evaluation suites and a dataset's held-out wordings."""

from __future__ import annotations

from core import paths
from core.chat.batch import MAX_PROMPTS
from core.conversation import Message, Probe
from core.persona.persona import load_persona
from core.probes.suites import FOLDER, fill, load_suite, names_of, probes_in

#: The pack of a dataset's own held-out questions; the other packs are suites, ``name.locale``.
HELD_OUT = "held_out"


def packs(dataset: paths.DatasetPaths | None) -> list[str]:
    """Names to choose from: HELD_OUT if the dataset has probes, then suites as name.locale."""
    suites = {file.name.removesuffix(".jsonl") for file in FOLDER.glob("*.jsonl")}
    # General questions first: there a persona should change nothing.
    ordered = sorted(suites, key=lambda name: (not name.startswith("general."), name))
    return [*([HELD_OUT] if dataset and dataset.probes.is_file() else []), *ordered]


def load(name: str, dataset: paths.DatasetPaths | None) -> list[str]:
    """The prompts of a pack, slots filled from the dataset's persona.

    Without a persona the prompts that need one are left out.
    """
    if name == HELD_OUT:
        probes = probes_in(dataset.probes) if dataset else []
        return _unique([_last_user(probe.messages) for probe in probes])
    suite, _, locale = name.rpartition(".")
    probes = load_suite(suite, locale)
    return _unique([_last_user(p.messages) for p in _filled(probes, dataset)])


def _filled(probes: list[Probe], dataset: paths.DatasetPaths | None) -> list[Probe]:
    if dataset is not None and dataset.persona.is_file():
        persona = load_persona(dataset.persona)
        return list(fill(probes, persona, names_of(persona)))
    return [p for p in probes if "{" not in _last_user(p.messages)]


def _last_user(messages: list[Message]) -> str:
    return next(m["content"] for m in reversed(messages) if m["role"] == "user")


def _unique(prompts: list[str]) -> list[str]:
    return list(dict.fromkeys(prompts))[:MAX_PROMPTS]
