"""What things are called on the pages: one plain word for each, here and nowhere else."""

from __future__ import annotations

import re

from core.jobs.state import Reason, State
from core.persona import packs
from pages._ui.shell import current
from pages._ui.shell.language import N_, from_core, language, t

#: Kinds of rows, as a person would call them.
KINDS: dict[str, str] = {
    "identity": N_("Persona"),
    "near_miss": N_("Look-alike questions"),
    "rehearsal": N_("General replies"),
    "own": N_("Your rows"),
}

_LANGUAGES = {"en": N_("English"), "zh": N_("Chinese")}
#: Slots of the shipped packs; others are called as their pack calls them.
_SLOTS = {
    "name": N_("Name"),
    "author": N_("Made by"),
    "role": N_("Role"),
    "skills": N_("Skills"),
    "limits": N_("Limits"),
    "tone": N_("Tone"),
    "manner": N_("Catch-phrase"),
    "base": N_("The model it is built on"),
}
#: What the questions of the shipped packs are about; others are called as their pack calls them.
_INTENTS = {
    "who": N_("who it is"),
    "name": N_("its name"),
    "intro": N_("introduction"),
    "maker": N_("who made it"),
    "company": N_("its company"),
    "role": N_("its role"),
    "human": N_("human or not"),
    "ability": N_("what it can do"),
    "limits": N_("what it cannot do"),
    "usage": N_("how to use it"),
    "denial": N_("denials"),
    "inducement": N_("other names suggested"),
    "dictation": N_("other names dictated"),
    "base": N_("the model underneath"),
    "meet": N_("greetings"),
}
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
    "fidelity": N_("Role, skills and limits"),
    "manner": N_("Manner in talks of eight turns"),
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
    Reason.COMPLETED: N_("completed"),
    Reason.INCOMPLETE: N_("incomplete"),
    Reason.USER_STOP: N_("stopped by you"),
    Reason.LOST: N_("nobody saw its end"),
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
    "OVERFIT": N_("Learned too much"),
    "UNSETTLED": N_("Unsettled"),
    "COLLAPSED": N_("Collapsed"),
    "MEMORISED": N_("Learned by heart"),
    "PROMPT-BOUND": N_("Depends on the system prompt"),
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
    "prove": N_("proof"),
    "prove: loading the model": N_("proof: loading the model"),
    "prove: writing replies": N_("proof: writing replies"),
    "prove: comparing replies": N_("proof: comparing replies"),
    "prove: done": N_("proof: done"),
    "answer general prompts": N_("answering everyday prompts"),
    "answer near-miss prompts": N_("answering look-alike questions"),
    "simulate": N_("simulating talks"),
    "gguf": N_("writing the GGUF file"),
    "upload": N_("uploading"),
    "probes": N_("answering the questions"),
    "queued": N_("waiting"),
    "dataset": N_("Dataset"),
    "sweep": N_("Find the best checkpoint"),
    "evaluate": N_("Scorecard"),
    # Whose replies a scorecard is reading: "merged: general.en".
    "base": N_("Base"),
    "merged": N_("Merged"),
    "adapter": N_("Adapter"),
}
_STEP = re.compile(r"step (\d+)")
_SEARCH = re.compile(r"(.*) \((\d+)(?: of (\d+))? checkpoints\)")
#: What stands in a run's events beside its states.
_HAPPENED = {
    "queued": N_("Waits for the device"),
    "warning": N_("Warning"),
    "stalled": N_("Silent"),
    "active": N_("At work again"),
}


def kind(name: str) -> str:
    """A kind of rows in words."""
    return t(KINDS[name]) if name in KINDS else name


def pack_title(name: str) -> str:
    """A persona pack as a list shows it."""
    title = packs.title(name, language())
    return t("{pack} (yours)", pack=title) if packs.is_own(packs.find(name)) else title


def intent(name: str) -> str:
    """What a question is about; ``who+maker`` of a conversation of several rounds."""
    return " + ".join(t(_INTENTS[one]) if one in _INTENTS else one for one in name.split("+"))


def language_name(locale: str) -> str:
    """``en`` -> ``English``, in the language of the session."""
    return t(_LANGUAGES[locale]) if locale in _LANGUAGES else locale


def doing(stage: str) -> str:
    """What a job reports that it is doing, in the language of the session if it is known.

    ``merged: general.en`` and ``step 40: general.en (2 of 10 checkpoints)`` of scorecards, and
    ``train: load the model`` of a run of the whole pipeline, are put together from known words.
    """
    if stage in _DOING:
        return t(_DOING[stage])
    if searched := _SEARCH.fullmatch(stage):
        inner, now, of = searched.groups()
        place = t("checkpoint {n} of {of}", n=now, of=of) if of else t("checkpoint {n}", n=now)
        return f"{doing(inner)} · {place}"
    if step := _STEP.fullmatch(stage):
        return t("step {step}", step=step[1])
    first, colon, rest = stage.partition(": ")
    if colon:
        return f"{doing(first)} · {doing(rest)}"
    name, _, sample = stage.partition(", sample ")
    if name.partition(".")[0] not in _SUITES:
        return stage
    return t("{suite}, sample {n}", suite=suite(name), n=sample) if sample else suite(name)


def happened(event: str) -> str:
    """An event of a run, or the state that it came to."""
    if event in _HAPPENED:
        return t(_HAPPENED[event])
    return t(_ENDED[State(event)]) if event in State.__members__ else event


def holding(what: str, run: str | None = None) -> str:
    """Who has the device (``core.jobs.locks.Holder.what``), as people call it: plain text."""
    if what == "chat":
        return t("the chat on the Compare page")
    name = run or what.rpartition(" ")[2]
    return current.name_of(name) if name in current.seen().runs else from_core(what)


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


def reason_name(reason: str) -> str:
    """Why a run ended; '' for none."""
    known = reason in _REASONS
    return t(_REASONS[Reason(reason)]) if known else reason.replace("_", " ")


def slot_name(name: str) -> str:
    """A slot of a persona as its field is called."""
    return t(_SLOTS[name]) if name in _SLOTS else name.replace("_", " ").capitalize()


def ending(state: State, reason: str | None = None) -> str:
    """The state of a run in words, with its reason where the state does not say it."""
    if state is State.STOPPED and reason == Reason.USER_STOP:
        return t("Stopped by you")
    ended = t(_ENDED[state])
    if not reason or reason in (Reason.COMPLETED, Reason.LOST):
        return ended
    return t("{ended}: {reason}", ended=ended, reason=reason_name(reason))
