"""What things are called on the pages: one plain word for each, here and nowhere else."""

from __future__ import annotations

from core.jobs.state import Reason, State

#: Kinds of rows, as a person would call them.
KINDS: dict[str, str] = {
    "identity": "Persona",
    "near_miss": "Look-alike questions",
    "rehearsal": "General replies",
    "own": "Your rows",
}

_LANGUAGES = {"en": "English", "zh": "Chinese"}
_SUITES = {
    "held_out": "Persona, unseen wordings",
    "train": "Persona, trained wordings",
    "general": "Everyday questions",
    "near_miss": "Look-alike questions",
    "unseen_intent": "Questions of a new kind",
    "adversarial": "Attacks on the identity",
    "language": "Asked in the other language",
    "multi_turn": "Long talks",
    "long_context": "After a long text",
    "system": "Under system prompts",
    "introduced": "Under the vendor's and the persona's system prompt",
    "instructions": "Following instructions",
    "knowledge": "Multiple choice",
}
_ENDED = {
    State.CREATED: "Not started",
    State.STARTING: "Starting",
    State.RUNNING: "Running",
    State.STOPPING: "Stopping",
    State.ORPHANED: "Running without its supervisor",
    State.SUCCEEDED: "Finished",
    State.FAILED: "Failed",
    State.STOPPED: "Stopped",
    State.LOST: "Lost",
}
_REASONS = {
    Reason.OOM_GPU: "out of GPU memory",
    Reason.OOM_HOST: "out of memory",
    Reason.NAN_LOSS: "the loss is not a number",
    Reason.KILLED_SIGNAL: "killed",
    Reason.NO_GPU: "no GPU",
    Reason.IMPORT_ERROR: "a package cannot be imported",
    Reason.BAD_CONFIG: "a setting does not fit",
    Reason.BAD_DATA: "the data does not fit",
    Reason.DISK_FULL: "the disk is full",
}


def suite(name: str) -> str:
    """``general.en`` -> ``Everyday questions (English)``."""
    base, _, locale = name.partition(".")
    word = _SUITES.get(base, base.replace("_", " "))
    return f"{word} ({_LANGUAGES.get(locale, locale)})" if locale else word


def ending(state: State, reason: str | None = None) -> str:
    """The state of a run in words, with its reason where the state does not say it."""
    if state is State.STOPPED and reason == Reason.USER_STOP:
        return "Stopped by you"
    if not reason or reason in (Reason.COMPLETED, Reason.LOST):
        return _ENDED[state]
    said = _REASONS[Reason(reason)] if reason in _REASONS else reason.replace("_", " ")
    return f"{_ENDED[state]}: {said}"


def count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``, ``1,000 rows``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
