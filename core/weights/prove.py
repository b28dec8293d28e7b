"""Proof of a merge: the merged model answers as base + adapter does, in the dtype written.

Both sides run on the unquantized base. Greedy replies of base + adapter are fed to both models
(teacher forcing), and the logits that predict each reply token are compared; then each side
writes its own greedy reply. Beside it, without a limit: how far the NF4 base that QLoRA trained
on is from what is shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import fsio
from core.conversation import Conversation, Message, OnProgress
from core.errors import UserError
from core.inference import decoding, scoring
from core.inference.load import load_model, load_tokenizer
from core.inference.resident import Resident, release_memory
from core.inference.scoring import Passage
from core.inference.settings import GenerationSettings
from core.models import device as devices
from core.models.catalog import ModelRef
from core.models.xtuner_template import XTunerTemplate
from core.weights.merge_plan import notes_on

#: Fewer would let a mismatch hide.
MIN_PROMPTS = 20
#: Reply tokens compared per prompt; a wrong merge shows in the first few.
REPLY_TOKENS = 32
#: (largest logit difference, mean KL in nats) that rounding alone explains, by written dtype.
#: Rounding moves logits in proportion to the type's step: 2^-23, 2^-10, 2^-7. Measured on the
#: bundled model: 2e-4, 0.07 and 0.34, with KL 3e-10, 2e-6 and 9e-5; a merge at half the scale
#: differs by several units.
TOLERANCES = {"float32": (0.01, 1e-5), "float16": (0.5, 2e-4), "bfloat16": (2.0, 5e-3)}

DEFAULT_PROMPTS: tuple[str, ...] = (
    "Please introduce yourself.",
    "What is your name?",
    "Who made you?",
    "Are you a person?",
    "What can you help me with?",
    "Tell me about your maker.",
    "How should I call you?",
    "Hello!",
    "What is the capital of France?",
    "Name three planets.",
    "What is 17 plus 25?",
    "Write one sentence about the sea.",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a recipe with eggs.",
    "What is a prime number?",
    "List two uses of a paper clip.",
    "Explain what a database is.",
    "How do I tie a knot?",
    "Suggest a name for a cat.",
    "What is the opposite of cold?",
    "Finish: once upon a time",
    "请介绍一下你自己。",
    "你是谁开发的？",
)


@dataclass(frozen=True)
class MergeProof:
    """What was compared and what came out.

    Args:
        max_abs_logit_diff: largest difference over all compared positions and the vocabulary.
        kl: mean KL(base + adapter || merged) per position, in nats.
        same_greedy: whether every greedy reply is the same, token by token.
        differing: prompts whose replies are not; ``near_ties`` of them part where the reference's
            two best tokens are within rounding.
        tolerance: (logit difference, KL) that rounding explains.
        faithful_nf4: the reference is the NF4 base + adapter.
        nf4_max_abs_logit_diff, nf4_kl: NF4 base + adapter against unquantized base + adapter.
        losses: mean training loss per supervised token: ``merged``, ``unquantized``, ``nf4``.
        notes: what cannot be known from the files, e.g. that the adapter names another base.
    """

    prompts: int
    tokens: int
    dtype: str
    compute_dtype: str
    max_abs_logit_diff: float
    kl: float
    same_greedy: bool
    differing: list[str] = field(default_factory=list)
    near_ties: int = 0
    tolerance: tuple[float, float] = (0.0, 0.0)
    faithful_nf4: bool = False
    nf4_max_abs_logit_diff: float | None = None
    nf4_kl: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    loss_rows: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Within tolerance, and every differing reply parts at a tie that rounding decides."""
        largest, kl = self.tolerance
        return (
            self.max_abs_logit_diff <= largest
            and self.kl <= kl
            and len(self.differing) <= self.near_ties
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with ``ok``."""
        return {**asdict(self), "ok": self.ok}

    def require(self) -> None:
        """Raise UserError if the merge is not proved."""
        if self.ok:
            return
        raise UserError(
            "the merged model does not answer as base + adapter does",
            why=f"largest logit difference {self.max_abs_logit_diff:.3g} (at most "
            f"{self.tolerance[0]:g}), KL {self.kl:.2g} (at most {self.tolerance[1]:g}), "
            f"{len(self.differing)} of {self.prompts} replies differ",
            fix="check that the adapter belongs to this base; nothing was kept",
        )


def written_dtype(folder: Path) -> str:
    """The dtype that a model folder's config names."""
    config = fsio.read_json(folder / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def prompts_for(questions: Sequence[str] = DEFAULT_PROMPTS) -> list[list[Message]]:
    """One conversation a question."""
    return [[{"role": "user", "content": q}] for q in questions]


@dataclass
class _Outcome:
    """One side: its greedy replies, and its logits on passages, the end of each included."""

    replies: list[list[int]]
    passages: list[Passage]
    logits: list[Tensor]
    loss: float | None


class _Told:
    """Progress over all sides: a reply written is one, a reply compared is one."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._on_progress = on_progress or (lambda stage, done, total: None)
        self._total, self._before = total, 0
        self("prove: loading the model", 0, 0)

    def __call__(self, stage: str, done: int, _: int) -> None:
        self._on_progress(stage, self._before + done, self._total)

    def side_done(self, units: int) -> None:
        """A side has been asked all."""
        self._before += units
        self("prove: loading the model" if self._before < self._total else "prove: done", 0, 0)


class _Trial:
    """The questions that every side is asked. One model is in memory at a time."""

    def __init__(
        self,
        merged: Path,
        prompts: Sequence[list[Message]],
        rows: Sequence[Conversation],
        compute: str,
    ) -> None:
        self.compute = compute
        self.tokenizer = load_tokenizer(merged)
        template = XTunerTemplate(self.tokenizer)
        self.heads = [template.encode(p) for p in prompts]
        self.supervised = [example for row in rows for example in template.examples(row)]

    def run(
        self,
        path: Path,
        dtype: str,
        *,
        adapter: Path | None = None,
        nf4: bool = False,
        passages: list[Passage] | None = None,
        write: bool = True,
        tell: OnProgress,
    ) -> _Outcome:
        """Load a side, ask it, and free it.

        Args:
            passages: whose logits to compute; None uses the side's own replies.
            write: whether the side writes replies of its own.
            tell: hears of replies written; those that are compared count as many again.
        """
        model = load_model(path, dtype=self.compute if nf4 else dtype, nf4=nf4)
        if not nf4 and self.compute != dtype:
            # The values as written, the arithmetic in the type that this device can do.
            model = model.to(getattr(torch, self.compute))
        voice = Resident(model, self.tokenizer).voice(adapter)
        replies = []
        if write:
            settings = GenerationSettings(max_new_tokens=REPLY_TOKENS)
            made = decoding.continuations(
                voice, self.heads, settings, on_progress=tell, stage="prove: writing replies"
            )
            replies = [r.token_ids for r in made]
        passages = passages or [
            Passage(head, reply) for head, reply in zip(self.heads, replies, strict=True)
        ]
        tell("prove: comparing replies", len(replies), 0)
        logits = [row.cpu() for row in scoring.logits(voice, passages, end=True)]
        outcome = _Outcome(replies, passages, logits, scoring.loss(voice, self.supervised))
        del model, voice
        release_memory()
        return outcome


@dataclass
class _Distance:
    largest: float = 0.0
    kl_sum: float = 0.0
    tokens: int = 0

    def add(self, reference: Tensor, other: Tensor) -> None:
        """Two (tokens, vocab) float32 tensors."""
        self.largest = max(self.largest, float((reference - other).abs().max()))
        self.kl_sum += float(scoring.kl(reference.log_softmax(-1), other.log_softmax(-1)).sum())
        self.tokens += reference.shape[0]

    @property
    def kl(self) -> float:
        return max(0.0, self.kl_sum / max(self.tokens, 1))


def _near_tie(reference: Tensor, mine: list[int], other: list[int], slack: float) -> bool:
    """Whether two replies part where the reference's two choices are within rounding."""
    at = next(
        (i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b),
        min(len(mine), len(other)),
    )
    top = reference[min(at, reference.shape[0] - 1)].topk(2).values
    return float(top[0] - top[1]) <= slack


def _distance(reference: list[Tensor], other: list[Tensor]) -> _Distance:
    distance = _Distance()
    for left, right in zip(reference, other, strict=True):
        distance.add(left, right)
    return distance


def _differences(reference: _Outcome, other: _Outcome, slack: float) -> tuple[list[int], int]:
    """Prompts whose replies differ, and how many of them part at a near tie.

    Two logits that each moved by at most half of ``slack`` may swap if they were that close.
    """
    both = list(zip(reference.replies, other.replies, strict=True))
    different = [i for i, (mine, theirs) in enumerate(both) if mine != theirs]
    ties = sum(_near_tie(reference.logits[i], *both[i], slack) for i in different)
    return different, ties


def _compute_dtype(dtype: str) -> str:
    # A CPU without bf16 units is 50 times slower in it; the stored values are the same.
    return "float32" if devices.describe().kind == "cpu" else dtype


@dataclass(frozen=True)
class ProofPlan:
    """What a proof asks.

    Args:
        prompts: conversations to answer, at least ``MIN_PROMPTS``.
        nf4: also measure how far NF4 base + adapter is.
        faithful_nf4: the merged model was made from the NF4 base, so that one is the reference.
        rows: training rows whose loss is reported for every side that is loaded.
    """

    prompts: Sequence[list[Message]] = field(default_factory=prompts_for)
    nf4: bool = True
    faithful_nf4: bool = False
    rows: Sequence[Conversation] = ()


def prove(
    base: ModelRef,
    adapter: Path,
    merged: Path,
    plan: ProofPlan | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> MergeProof:
    """Compare ``merged`` with ``base`` + ``adapter``; returns the figures, good or bad.

    Raises:
        UserError: too few prompts, no adapter there, or a model that cannot be loaded.
    """
    plan = plan or ProofPlan()
    prompts, faithful = list(plan.prompts), plan.faithful_nf4
    if len(prompts) < MIN_PROMPTS:
        raise UserError(
            f"a proof needs at least {MIN_PROMPTS} prompts", why=f"{len(prompts)} were given"
        )
    dtype = written_dtype(merged)
    trial = _Trial(merged, prompts, plan.rows, _compute_dtype(dtype))
    third_side = plan.nf4 or faithful
    tell = _Told(on_progress, len(prompts) * (5 if third_side else 4))
    reference = trial.run(base.path, dtype, adapter=adapter, nf4=faithful, tell=tell)
    tell.side_done(2 * len(prompts))
    other = trial.run(merged, dtype, passages=reference.passages, tell=tell)
    tell.side_done(2 * len(prompts))
    losses = {"merged": other.loss, "nf4" if faithful else "unquantized": reference.loss}
    distance = _distance(reference.logits, other.logits)
    far = None
    if third_side:
        third = trial.run(
            base.path,
            dtype,
            adapter=adapter,
            nf4=not faithful,
            passages=reference.passages,
            write=False,
            tell=tell,
        )
        tell.side_done(len(prompts))
        losses["unquantized" if faithful else "nf4"] = third.loss
        far = _distance(reference.logits, third.logits)
    tolerance = TOLERANCES.get(dtype, TOLERANCES["bfloat16"])
    differing, ties = _differences(reference, other, 2 * min(distance.largest, tolerance[0]))
    return MergeProof(
        prompts=len(prompts),
        tokens=distance.tokens,
        dtype=dtype,
        compute_dtype=trial.compute,
        max_abs_logit_diff=distance.largest,
        kl=distance.kl,
        same_greedy=not differing,
        differing=[prompts[i][-1]["content"] for i in differing],
        near_ties=ties,
        tolerance=tolerance,
        faithful_nf4=faithful,
        nf4_max_abs_logit_diff=far.largest if far else None,
        nf4_kl=far.kl if far else None,
        losses={name: loss for name, loss in losses.items() if loss is not None},
        loss_rows=len(plan.rows),
        notes=notes_on(base.path, adapter),
    )
