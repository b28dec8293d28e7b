"""One pass over the sides of a pool: ask, label, compare with the base.

The scorecard asks the base and a tuned model, the sweep the base and then every checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.conversation import OnProgress, Probe
from core.evaluation import ability, measures, screening
from core.evaluation.answers import Answer, Clock, answer
from core.evaluation.measures import Measured, Row, Yardstick
from core.evaluation.plan import Plan
from core.evaluation.pool import Pool, Subject
from core.evaluation.questions import Questions
from core.evaluation.screening import Rates, SoFar
from core.inference import scoring
from core.inference.settings import GenerationSettings
from core.text.intervals import paired_change, quantile, rate

#: The side that everything is compared with.
BASE = "base"


@dataclass(frozen=True)
class _Asked:
    """One suite as one side answered it; ``sample`` 0 is the greedy pass."""

    suite: str
    sample: int
    probes: list[Probe]
    answers: list[Answer]


class Run:
    """One pass over the sides of a pool; also used by the sweep, which adds sides one by one."""

    def __init__(
        self,
        pool: Pool,
        asked: Questions,
        chosen: Plan,
        on_progress: OnProgress | None,
        *,
        tuned: int | None = 1,
        screen: bool = False,
    ) -> None:
        """Nothing is asked yet.

        Args:
            tuned: how many sides will follow the base, for the progress; None if unknown.
            screen: a tuned side that fails for certain on a third is not asked the rest.

        Attributes that may be set between two sides:
            ahead: the plan of a scorecard that will ask the same; greedy replies are made as long
                as it wants them.
            hopeless: whether a side is given up, from the gates' rates so far with what is asked in
                all; a side that is, ends in ``given_up``.
        """
        self.pool = pool
        self.asked = asked
        self.plan = chosen
        self.on_progress = on_progress
        self.screen = screen
        self._expected = 0 if tuned is None else self._load(BASE) + tuned * self._load("")
        self._finished = 0
        self._stopped: set[str] = set()
        self.ahead: Plan | None = None
        self.hopeless: Callable[[Rates], bool] | None = None
        self.given_up: set[str] = set()
        self.clock = Clock({}, {})
        self.notes: list[str] = []
        self.rows: dict[str, list[Row]] = {}
        self.measured: dict[str, Measured] = {}
        self._base_answers: dict[str, dict[str, Answer]] = {}
        self._common: Collection[str] = ()
        self._general: scoring.Reference | None = None
        self._identity: scoring.Reference | None = None
        self._margins: list[tuple[scoring.Passage, scoring.Passage]] = []
        self._knowledge: list[bool] = []
        self._log_probs: dict[str, scoring.Reference] = {}

    def ask(self, side: str) -> Measured:
        """Ask one side everything and measure it. The base must be the first."""
        before = self._finished
        with self.pool.use(side) as subject:
            answered = self._replies(subject)
            if side == BASE:
                self._base_answers = {
                    a.suite: {p.id: r for p, r in zip(a.probes, a.answers, strict=True)}
                    for a in answered
                }
                self._common = self.asked.common_words(
                    [r.text for r in self._base_answers["general"].values()]
                )
                self._refer(subject)
            measured = self._measure(side, answered)
            if side not in self._stopped:
                measured.values.update(self._likelihood(subject))
        self._note_base(side, measured)
        self._compare_with_base(side, measured)
        self.measured[side] = measured
        self._finished = before + self._load(side)
        return measured

    def _load(self, side: str) -> int:
        """Replies that a side gives in all, the unit of the progress."""
        return sum(
            len(probes)
            * (self.plan.suites[name].base if side == BASE else 1 + self.plan.suites[name].samples)
            for name, probes in self.asked.suites.items()
        )

    def _advance(self, stage: str, done: int, _: int) -> None:
        """Progress over all sides and suites, so that the time left is that of the whole."""
        if self.on_progress:
            self.on_progress(stage, self._finished + done, self._expected)

    def _replies(self, subject: Subject) -> list[_Asked]:
        if self.screen and subject.side != BASE:
            return self._screened(subject)
        found: list[_Asked] = []
        for name, probes in self.asked.suites.items():
            suite = self.plan.suites[name]
            if subject.side == BASE and not suite.base:
                continue
            for sample in range(suite.samples + 1 if subject.side != BASE else 1):
                found.append(self._asked(subject, name, probes, sample))
        return found

    def _asked(
        self, subject: Subject, name: str, probes: Sequence[Probe], sample: int = 0
    ) -> _Asked:
        later = self.ahead.suites.get(name) if self.ahead else None
        answers = answer(
            subject,
            probes,
            self._draw(name, sample),
            stage=f"{subject.side}: {name}" + (f", sample {sample}" if sample else ""),
            clock=self.clock,
            on_progress=self._advance,
            ahead=later.max_new_tokens if later else 0,
        )
        self._finished += len(probes)
        return _Asked(name, sample, list(probes), answers)

    def _draw(self, suite: str, sample: int) -> GenerationSettings:
        return GenerationSettings(
            temperature=0.7 if sample else 0.0,
            seed=sample,
            max_new_tokens=self.plan.suites[suite].max_new_tokens,
        )

    def _screened(self, subject: Subject) -> list[_Asked]:
        """Ask in blocks, and no further than there is hope."""
        samples = {name: self.plan.suites[name].samples for name in self.asked.suites}
        blocks, so_far = screening.blocks(self.asked.suites, samples), SoFar(self.asked.suites)
        parts: list[_Asked] = []
        for at, (name, sample, probes) in enumerate(blocks, 1):
            parts.append(self._asked(subject, name, probes, sample))
            if not sample:
                so_far.count(name, self._judged("", parts[-1]))
            if lost := so_far.lost() if at == so_far.thirds else "":
                self._stop(
                    subject.side,
                    f"{subject.side}: stopped after a third of the probes ({lost}): it fails "
                    "whatever the rest says",
                )
                break
            if at < len(blocks) and self.hopeless and self.hopeless(so_far.rates()):
                self.given_up.add(subject.side)
                self._stop(
                    subject.side,
                    f"{subject.side}: given up, for another one stays better whatever the rest "
                    "says",
                )
                break
        return [
            self._joined(name, sample, [p for p in parts if (p.suite, p.sample) == (name, sample)])
            for name in self.asked.suites
            for sample in sorted({p.sample for p in parts if p.suite == name})
        ]

    def _stop(self, side: str, note: str) -> None:
        self._stopped.add(side)
        self.notes.append(note)

    def _joined(self, name: str, sample: int, parts: Sequence[_Asked]) -> _Asked:
        """The blocks of a suite as one, in the suite's order."""
        said = {p.id: a for part in parts for p, a in zip(part.probes, part.answers, strict=True)}
        probes = [p for p in self.asked.suites[name] if p.id in said]
        return _Asked(name, sample, probes, [said[p.id] for p in probes])

    def _judged(self, side: str, asked: _Asked) -> list[Row]:
        tuned = side != BASE
        against = Yardstick(
            aliases=self.asked.names.aliases,
            base=self._base_answers.get(asked.suite, {}) if tuned else {},
            train_replies=self.asked.train_replies if tuned else (),
            common_words=self._common,
        )
        return measures.judge(side, asked.probes, asked.answers, against, asked.sample)

    def _measure(self, side: str, answered: Sequence[_Asked]) -> Measured:
        self.rows[side] = [row for asked in answered for row in self._judged(side, asked)]
        measured = measures.measure(self.rows[side], self.rows[BASE] if side != BASE else None)
        for asked in answered:
            if asked.suite == "instructions":
                measured.values["instructions"] = ability.follow(asked.probes, asked.answers)
        return measured

    def _refer(self, subject: Subject) -> None:
        """What the base says and how likely it finds it: the yardstick of every other side."""
        with _timed(self.clock, f"{BASE}: likelihood"):
            self._general = self._reference(subject, "general", self.plan.divergence)
            self._identity = self._reference(subject, "held_out", self.plan.divergence // 2)
            self._margins = self._margin_pairs(subject)

    def _reference(self, subject: Subject, suite: str, count: int) -> scoring.Reference:
        probes = self.asked.suites[suite]
        answers = list(self._base_answers[suite].values())
        items = [
            self._passage(subject, probes[i], answers[i].token_ids, self.plan.divergence_tokens)
            for i in scoring.spread(len(probes), count)
            if answers[i].token_ids
        ]
        return scoring.reference(subject.voice, items)

    @staticmethod
    def _passage(
        subject: Subject, probe: Probe, reply: Sequence[int], limit: int
    ) -> scoring.Passage:
        """A probe with the first ``limit`` tokens of a reply."""
        template = subject.voice.resident.template
        return scoring.Passage(template.encode(probe.messages), list(reply[:limit]))

    def _margin_pairs(self, subject: Subject) -> list[tuple[scoring.Passage, scoring.Passage]]:
        """(persona's reply, base's reply) to held-out probes whose intent has a trained reply."""
        probes = self.asked.suites["held_out"]
        answers = list(self._base_answers["held_out"].values())
        usable = [
            i for i, p in enumerate(probes) if self.asked.reply_for(p) and answers[i].token_ids
        ]
        pairs = []
        for i in (usable[k] for k in scoring.spread(len(usable), self.plan.margin)):
            wanted = subject.voice.resident.tokenizer.encode(
                self.asked.reply_for(probes[i]), add_special_tokens=False
            )
            pairs.append(
                (
                    self._passage(subject, probes[i], wanted, 64),
                    self._passage(subject, probes[i], answers[i].token_ids, 64),
                )
            )
        return pairs

    def _likelihood(self, subject: Subject) -> dict[str, Any]:
        assert self._general is not None and self._identity is not None
        out: dict[str, Any] = {}
        with _timed(self.clock, f"{subject.side}: likelihood"):
            self._advance(f"{subject.side}: likelihood", 0, 0)
            if subject.side != BASE:
                general, kls = scoring.divergence(subject.voice, self._general)
                out["kl_general"] = general.to_json()
                out["top1_agreement"], out["ppl_ratio"] = general.top1, general.ppl_ratio
                out["kl_identity"] = scoring.divergence(subject.voice, self._identity)[0].to_json()
                self._note_kl(subject.side, kls)
            out.update(self._margin(subject))
        if self.plan.knowledge:
            with _timed(self.clock, f"{subject.side}: knowledge"):
                out.update(self._know(subject))
        if subject.side == "adapter" and "merged" in self.pool.sides:
            self._log_probs["adapter"] = scoring.reference(subject.voice, self._general.passages)
        if subject.side == "merged" and "adapter" in self._log_probs:
            found, _ = scoring.divergence(subject.voice, self._log_probs["adapter"])
            out["merge"] = {"kl": found.kl, "top1": found.top1}
        return out

    def _note_kl(self, side: str, kls: Sequence[float]) -> None:
        """Write each prompt's KL beside its reply, for the list of most changed ones."""
        answers = list(self._base_answers["general"].items())
        chosen = (answers[i] for i in scoring.spread(len(answers), self.plan.divergence))
        said = [probe_id for probe_id, answer in chosen if answer.token_ids]
        by_id = dict(zip(said, kls, strict=True))
        self.rows[side] = [
            replace(r, kl=by_id.get(r.probe.id)) if r.probe.suite == "general" else r
            for r in self.rows[side]
        ]

    def _margin(self, subject: Subject) -> dict[str, Any]:
        """Share of probes where the persona's reply is likelier than the base's, and the median."""
        if not self._margins:
            return {}
        flat = scoring.mean_log_prob(subject.voice, [p for pair in self._margins for p in pair])
        margins = [flat[i] - flat[i + 1] for i in range(0, len(flat), 2)]
        positive = rate([m > 0 for m in margins])
        return {"margin": {**positive.to_json(), "median": quantile(margins, 0.5)}}

    def _know(self, subject: Subject) -> dict[str, Any]:
        right = ability.knowledge(
            subject, self.asked.knowledge, lambda stage, *_: self._advance(stage, 0, 0)
        )
        if subject.side == BASE:
            self._knowledge = right
            return {"knowledge_accuracy": rate(right)}

        return {
            "knowledge_accuracy": rate(right),
            "knowledge": paired_change(self._knowledge, right).to_json(),
        }

    def _compare_with_base(self, side: str, measured: Measured) -> None:
        if side == BASE:
            return
        base = self.measured[BASE].values
        values = measured.values
        values["base_degenerate"] = base["degenerate"]
        values["unique_of_base"] = values["unique_ratio"] / max(base["unique_ratio"], 1e-9)
        values["degenerate_above_base"] = values["degenerate"].value - base["degenerate"].value
        if "train_recall" in values:
            values["gap"] = values["train_recall"].value - measured.recall.value

    def _note_base(self, side: str, measured: Measured) -> None:
        """A base that already answers as the persona makes the recall say less."""
        if side == BASE and measured.recall.hits:
            self.notes.append(
                f"the base already answers {measured.recall} of the held-out wordings as the "
                "persona should (its own maker, or a common word?): look at the gain"
            )

    def merge_fidelity(self) -> dict[str, Any]:
        """KL and label changes between adapter and merged model."""
        merged = [r for r in self.rows["merged"] if r.probe.suite == "held_out"]
        adapter = [r for r in self.rows["adapter"] if r.probe.suite == "held_out"]
        flips = [a.scored.label != b.scored.label for a, b in zip(adapter, merged, strict=True)]
        found: dict[str, Any] = dict(self.measured["merged"].values.get("merge") or {})
        return {**found, "flips": rate(flips).to_json()}


class _timed:
    """Adds the wall time of a block to the clock, as uncached work."""

    def __init__(self, clock: Clock, stage: str) -> None:
        self.clock, self.stage = clock, stage

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self.started
        self.clock.add(self.stage, seconds, seconds)
