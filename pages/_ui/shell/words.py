"""What things are called on the pages: one plain word for each, here and nowhere else."""

from __future__ import annotations

from core.jobs.state import Reason, State
from core.persona import packs
from pages._ui.shell.language import N_, language, t

#: Kinds of rows, as a person would call them.
KINDS: dict[str, str] = {
    "identity": N_("Persona"),
    "near_miss": N_("Look-alike questions"),
    "rehearsal": N_("General replies"),
    "own": N_("Your rows"),
}

_LANGUAGES = {"en": N_("English"), "zh": N_("Chinese")}
_SUITES = {
    "held_out": N_("Persona, unseen wordings"),
    "train": N_("Persona, trained wordings"),
    "general": N_("Everyday questions"),
    "near_miss": N_("Look-alike questions"),
    "unseen_intent": N_("Questions of a new kind"),
    "adversarial": N_("Attacks on the identity"),
    "language": N_("Asked in the other language"),
    "multi_turn": N_("Long talks"),
    "long_context": N_("After a long text"),
    "system": N_("Under system prompts"),
    "introduced": N_("Under the vendor's and the persona's system prompt"),
    "instructions": N_("Following instructions"),
    "knowledge": N_("Multiple choice"),
}
_ENDED = {
    State.CREATED: N_("Not started"),
    State.STARTING: N_("Starting"),
    State.RUNNING: N_("Running"),
    State.STOPPING: N_("Stopping"),
    State.ORPHANED: N_("Running without its supervisor"),
    State.SUCCEEDED: N_("Finished"),
    State.FAILED: N_("Failed"),
    State.STOPPED: N_("Stopped"),
    State.LOST: N_("Lost"),
}
_REASONS = {
    Reason.OOM_GPU: N_("out of GPU memory"),
    Reason.OOM_HOST: N_("out of memory"),
    Reason.DIVERGED: N_("training diverged"),
    Reason.COLLAPSED: N_("the model collapsed"),
    Reason.KILLED_SIGNAL: N_("killed"),
    Reason.NO_GPU: N_("no GPU"),
    Reason.IMPORT_ERROR: N_("a package cannot be imported"),
    Reason.BAD_CONFIG: N_("a setting does not fit"),
    Reason.BAD_DATA: N_("the data does not fit"),
    Reason.DISK_FULL: N_("the disk is full"),
}
#: Why a checkpoint is the one to take, by what chose it (``core.evaluation.choice``).
WHY_CHECKPOINT: dict[str, str] = {
    "sweep": N_("Step {step} was chosen by the search for the best checkpoint."),
    "figures": N_(
        "Step {step} has the best figures of training. To be sure, let the checkpoints speak: "
        "Find the best checkpoint, on the Compare page."
    ),
    "last": N_(
        "Nothing has compared this run's checkpoints, so the last one comes first. An earlier one "
        "is often better: Find the best checkpoint, on the Compare page, tells."
    ),
}
#: The one word of a scorecard. The words in capitals are for files and the command line.
_VERDICTS = {
    "LEARNED": N_("Learned"),
    "UNDERFIT": N_("Not learned enough"),
    "OVERFIT": N_("Overdone"),
    "UNSETTLED": N_("Unsettled"),
    "COLLAPSED": N_("Collapsed"),
    "MEMORISED": N_("Memorised"),
    "PROMPT-BOUND": N_("Only under its prompt"),
    "MERGE-LOST": N_("Lost in the merge"),
    "NOT ENOUGH EVIDENCE": N_("Not enough evidence"),
}


#: What jobs report that they do. What stands in no list is shown as it is.
_DOING = {
    "": N_("starting"),
    "prepare": N_("preparing"),
    "load the model": N_("loading the model"),
    "train": N_("training"),
    "look at the checkpoint": N_("measuring the checkpoint"),
    "write samples": N_("writing samples"),
    "convert": N_("converting"),
    "merge": N_("merging"),
    "draw prompts": N_("drawing prompts"),
    "ask the model who it is": N_("asking the model who it is"),
    "prove: loading the model": N_("proof: loading the model"),
    "prove: writing replies": N_("proof: writing replies"),
    "prove: comparing replies": N_("proof: comparing replies"),
    "prove: done": N_("proof: done"),
}


def kind(name: str) -> str:
    """A kind of rows in words."""
    return t(KINDS[name]) if name in KINDS else name


def pack_title(name: str) -> str:
    """A persona pack as a list shows it."""
    title = packs.title(name, language())
    return t("{pack} (yours)", pack=title) if packs.is_own(packs.find(name)) else title


def language_name(locale: str) -> str:
    """``en`` -> ``English``, in the language of the session."""
    return t(_LANGUAGES[locale]) if locale in _LANGUAGES else locale


def doing(stage: str) -> str:
    """What a job reports that it is doing, in the language of the session if it is known."""
    return t(_DOING[stage]) if stage in _DOING else stage


def verdict(name: str) -> str:
    """The word of a scorecard as a person would say it."""
    return t(_VERDICTS[name]) if name in _VERDICTS else name


def suite(name: str) -> str:
    """``general.en`` -> ``Everyday questions (English)``."""
    base, _, locale = name.partition(".")
    word = t(_SUITES[base]) if base in _SUITES else base.replace("_", " ")
    if not locale:
        return word
    return t("{suite} ({language})", suite=word, language=language_name(locale))


def ending(state: State, reason: str | None = None) -> str:
    """The state of a run in words, with its reason where the state does not say it."""
    if state is State.STOPPED and reason == Reason.USER_STOP:
        return t("Stopped by you")
    ended = t(_ENDED[state])
    if not reason or reason in (Reason.COMPLETED, Reason.LOST):
        return ended
    said = t(_REASONS[Reason(reason)]) if reason in _REASONS else reason.replace("_", " ")
    return t("{ended}: {reason}", ended=ended, reason=said)


def count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``, ``1,000 rows``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
