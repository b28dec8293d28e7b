"""Prompt packs for a batch: the evaluation suites and the newest dataset's held-out wordings."""

from __future__ import annotations

from core import fsio, paths
from core.chat.batch import MAX_PROMPTS
from core.conversation import Message, Probe
from core.errors import UserError

_HELD_OUT = "held-out wordings of the newest dataset"


def packs() -> list[str]:
    """Names to choose from: ``held-out ...`` if there is a dataset, then suites as name.locale."""
    from core.probes.suites import FOLDER

    suites = {file.name.removesuffix(".jsonl") for file in FOLDER.glob("*.jsonl")}
    # General questions first: there a persona should change nothing.
    ordered = sorted(suites, key=lambda name: (not name.startswith("general."), name))
    return [*([_HELD_OUT] if _newest_probes() else []), *ordered]


def load(name: str) -> list[str]:
    """The prompts of a pack, slots filled from the newest dataset's persona.

    Without a persona the prompts that need one are left out.
    """
    if name == _HELD_OUT:
        dataset = _newest_probes()
        rows = list(fsio.read_jsonl(dataset.probes)) if dataset else []
        try:
            return _unique([_last_user(row["messages"]) for row in rows])
        except (LookupError, TypeError, StopIteration) as error:
            raise UserError(
                f"{dataset.probes if dataset else name} cannot be read",
                why=f"{type(error).__name__}: {error}"[:200],
                fix="build the dataset again, or choose other prompts",
            ) from error
    from core.probes.suites import load_suite

    suite, _, locale = name.rpartition(".")
    probes = load_suite(suite, locale)
    return _unique([_last_user(p.messages) for p in _filled(probes)])


def _filled(probes: list[Probe]) -> list[Probe]:
    from core.persona.persona import load_persona
    from core.probes.suites import fill, names_of

    dataset = _newest_probes()
    if dataset is not None and dataset.persona.is_file():
        persona = load_persona(dataset.persona)
        return list(fill(probes, persona, names_of(persona)))
    return [p for p in probes if "{" not in _last_user(p.messages)]


def _last_user(messages: list[Message]) -> str:
    return next(m["content"] for m in reversed(messages) if m["role"] == "user")


def _unique(prompts: list[str]) -> list[str]:
    return list(dict.fromkeys(prompts))[:MAX_PROMPTS]


def _newest_probes() -> paths.DatasetPaths | None:
    root = paths.datasets_dir()
    if not root.is_dir():
        return None
    found = [paths.DatasetPaths(f) for f in root.iterdir() if f.is_dir()]
    whole = [d for d in found if d.manifest.is_file() and d.probes.is_file()]
    return max(whole, key=lambda d: d.manifest.stat().st_mtime, default=None)
