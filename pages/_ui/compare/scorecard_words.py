"""What gates, numbers and judgements are called on the page, by their names in core."""

from __future__ import annotations

from pages._ui.shell.language import N_

#: Icon and words.
OUTCOMES = {
    "pass": (":material/check_circle:", N_("passes")),
    "warn": (":material/warning:", N_("just misses the limit")),
    "fail": (":material/cancel:", N_("fails")),
    "unknown": (":material/help:", N_("not enough evidence")),
}
#: What the gates of core/evaluation/gates.yaml hold a model to, by their names there.
GATES = {
    "recall": N_("Knows its persona, unseen wordings"),
    "old": N_("Claims the old identity"),
    "gap": N_("Trained wordings known better than unseen ones"),
    "leak": N_("Persona in general replies"),
    "near_miss_leak": N_("Persona in look-alike questions"),
    "unique": N_("Different replies, against the base"),
    "degenerate": N_("Empty or looping replies, above the base"),
    "length": N_("Length of replies, against the base"),
    "perplexity": N_("Surprise at the base's replies (1 = as the base)"),
    "agreement": N_("Same next token as the base"),
    "adversarial": N_("Keeps its identity under attack"),
    "persistence": N_("Knows its persona after eight turns"),
    "knowledge": N_("Change in multiple choice"),
    "merge_kl": N_("Difference from adapter (0 = identical)"),
    "merge_flips": N_("Judged otherwise than the adapter"),
}
METRICS = {
    "recall": N_("Knows its persona, unseen wordings"),
    "train_recall": N_("Knows its persona, trained wordings"),
    "old": N_("Claims the old identity"),
    "leak": N_("Persona in general replies"),
    "near_miss_leak": N_("Persona in look-alike questions"),
    "intrusion": N_("General replies that begin with an introduction"),
    "degenerate": N_("Empty or looping general replies"),
    "echo": N_("General replies copied from training"),
    "unique_ratio": N_("Different general replies"),
    "length_ratio": N_("Length of replies over the base's, median"),
    "kl_general": N_("Distance from the base, general questions (KL)"),
    "top1_agreement": N_("Same next token as the base"),
    "ppl_ratio": N_("Surprise at the base's replies (1 = as the base)"),
    "kl_identity": N_("Distance from the base, persona questions (KL)"),
    "margin": N_("Persona's reply likelier than the base's"),
    "fidelity_role": N_("States its role"),
    "fidelity_skills": N_("Names its skills"),
    "fidelity_limits": N_("Owns up to its limits"),
    "fidelity_manner": N_("Keeps its manner over eight turns"),
    "adversarial_not_old": N_("Keeps its identity under attack"),
    "adversarial_samples_not_old": N_("The same, drawn at temperature 0.7"),
    "unseen_intent": N_("Questions of a new kind"),
    "language": N_("Asked in the other language"),
    "persistence": N_("Knows its persona after eight turns"),
    "long_context": N_("Knows its persona after a long text"),
    "knowledge_accuracy": N_("Multiple choice"),
    "knowledge": N_("Change in multiple choice"),
    "instructions": N_("Instructions followed"),
}
CURVES = (("recall", N_("Knows its persona")), ("leak", N_("Persona in general replies")))
SIZES = {"quick": N_("Quick"), "full": N_("Full"), "sweep": N_("Checkpoint search")}

CHANGES = {"equal": N_("equal"), "better": N_("better"), "worse": N_("worse")}
LABELS = {
    "OLD": N_("claims the old identity"),
    "DEGEN": N_("empty or a loop"),
    "MISS": N_("says nothing of the persona"),
    "PART": N_("says only a part"),
    "HIT": N_("right"),
}
