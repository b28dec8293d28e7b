"""Rehearsal: the base model's own greedy replies, mixed in so that it stays what it was.

Prompts come from two places: drawn from the base itself, by letting it go on after an empty user
turn (the idea of Magpie, arXiv 2406.08464), and from our own list in ``prompts/``. Near-miss
prompts are answered the same way. Because each reply is what the base says anyway, training on it
pulls nothing away; it only holds the ground that identity rows would take.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from core import fsio, paths
from core.conversation import Conversation, Kind, OnProgress
from core.data.filters import PromptFilter, prompt_fault, reply_fault, whole_sentences
from core.errors import UserError
from core.inference.settings import GenerationSettings
from core.models.catalog import ModelRef
from core.probes import scorer
from core.text import normalize

PROMPTS = Path(__file__).parent / "prompts"
#: Share of prompts that the base makes up itself. Our own list is tidier and ends sooner; the
#: drawn ones are what this model really is used to.
DRAWN = 0.2
#: How a drawn prompt begins in a language that is not the base's first: an open user turn mostly
#: gets the first one. The words are common openings of a request, and the base goes on from there.
OPENINGS = {
    "zh": (
        "请",
        "怎样",
        "什么是",
        "为什么",
        "写一",
        "如何",
        "给我",
        "帮我",
        "列出",
        "解释",
        "我想",
    ),
}
#: Tokens drawn for a prompt. The bundled model's own prompts run on (7 of 8 beyond 40 tokens), so
#: one that has not ended is cut after its last whole sentence: nothing is learned from user turns.
MAX_PROMPT_TOKENS = 32
#: So many replies are judged before a base is given up, and so few of a hundred must be usable. Of
#: the bundled model's and a real 0.5B's most are; a random model gives none.
JUDGED, FEWEST = 96, 5
#: Part of the cache key, with the prompts; raise it when the filters change.
RECIPE = 8


@dataclass
class Rehearsal:
    """What was made (some replies ``cut``) and why others were dropped (reason -> count)."""

    rows: list[Conversation] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    prompts_drawn: int = 0
    replies_made: int = 0
    from_cache: bool = False


@dataclass(frozen=True)
class Wanted:
    """What to rehearse.

    Attributes:
        n: number of general rows wanted, each language its share (``shares``); fewer come if the
            prompts run out.
        max_new_tokens: replies that do not end by themselves within this are cut there and
            marked ``cut``: they are trained without a turn end, so that no brevity is taught that
            the base does not have. (Of the bundled model's replies 3 of 4 are longer than 64
            tokens; dropping them would cost most of the work and keep only the short answers.)
        near_miss: locale -> prompts for near-miss rows, which come on top of ``n``.
        locales: languages wanted; None = those of the model.
        avoid: wordings that must not come up (probes and identity questions).
    """

    n: int
    seed: int
    max_new_tokens: int
    near_miss: Mapping[str, Sequence[str]] = field(default_factory=dict)
    locales: Sequence[str] | None = None
    avoid: Sequence[str] = ()


def rehearse(model: ModelRef, wanted: Wanted, on_progress: OnProgress | None = None) -> Rehearsal:
    """General rows and near-miss rows, answered greedily by the base model.

    Returns:
        Rows sorted as made; deterministic by what is wanted and the model. Kept in the cache
        folder under a hash of all of it.
    """
    n, seed, near, cap, avoid = (
        wanted.n, wanted.seed, wanted.near_miss, wanted.max_new_tokens, wanted.avoid,
    )  # fmt: skip
    spoken = [x for x in (wanted.locales or model.locales) if x in model.locales]
    locales = spoken or list(model.locales)
    own = [prompt for locale in locales for prompt in own_prompts(locale)]
    key = _cache_key(model, n, seed, near, cap, locales, avoid, own)
    cached = paths.cache_dir() / "rehearsal" / f"{key}.json"
    if cached.is_file():
        return _load(cached)
    result = _Maker(model, seed, cap, locales, avoid, on_progress).make(n, near)
    fsio.write_json(cached, {**asdict(result), "rows": [r.to_row() for r in result.rows]})
    return result


def _load(cached: Path) -> Rehearsal:
    data = fsio.read_json(cached)
    rows = [Conversation.from_row(row) for row in data["rows"]]
    return Rehearsal(**{**data, "rows": rows, "from_cache": True})


def _cache_key(model: ModelRef, *parts: Any) -> str:
    text = json.dumps([RECIPE, model.fingerprint(), *parts], ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


def shares(n: int, locales: Sequence[str]) -> dict[str, int]:
    """``n`` rows divided evenly among languages; the first take what is left over."""
    each, over = divmod(n, len(locales))
    return {locale: each + (i < over) for i, locale in enumerate(locales)}


def _counted(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in rejected.items())


def own_prompts(locale: str) -> list[str]:
    """Our list of everyday prompts for a locale (empty if we have none)."""
    path = PROMPTS / f"general_{locale}.txt"
    if not path.is_file():
        return []
    return [line for _, line in fsio.numbered_lines(path.read_text("utf-8"))]


class _Maker:
    def __init__(
        self,
        model: ModelRef,
        seed: int,
        max_new_tokens: int,
        locales: Sequence[str],
        avoid: Sequence[str],
        on_progress: OnProgress | None,
    ) -> None:
        from core.inference.resident import Resident

        self._voice = Resident.load(model.path).voice()
        self._seed, self._cap, self._locales = seed, max_new_tokens, list(locales)
        self._avoid = PromptFilter(avoid)
        self._progress = _Overall(on_progress)
        self._rejected: Counter[str] = Counter()
        self._result = Rehearsal()
        self._kept = 0
        #: Usable prompts of those drawn last, by language.
        self._share_drawn: dict[str, float] = {}

    def make(self, n: int, near_miss: Mapping[str, Sequence[str]]) -> Rehearsal:
        rng = Random(f"rehearsal/{self._seed}")
        own = {locale: own_prompts(locale) for locale in self._locales}
        for prompts in own.values():
            rng.shuffle(prompts)
        wanted = shares(n, self._locales)
        first = {locale: round(k * DRAWN * 1.6) + 8 if k else 0 for locale, k in wanted.items()}
        self._progress.expect(sum(first.values()) + sum(map(len, near_miss.values())) + n)
        drawn = {locale: self._draw(k, locale) for locale, k in first.items() if k}
        rows: list[Conversation] = []
        for locale, near in near_miss.items():
            rows += self._answer(near, "near_miss", locale, len(near))
        for locale, count in wanted.items():
            pool = self._pool(own[locale], drawn.get(locale, []), rng)
            rows += self._general(pool, locale, count, rng)
        self._result.rows = rows
        self._result.rejected = dict(sorted(self._rejected.items()))
        return self._result

    def _general(
        self, pool: list[str], locale: str, wanted: int, rng: Random
    ) -> list[Conversation]:
        """General rows of one language; more prompts are drawn while there are too few.

        A base that wrote hardly a prompt of all that were drawn before is asked for no more.
        """
        rows = self._answer(pool, "rehearsal", locale, wanted)
        for extra in range(1, 7):
            missing = wanted - len(rows)
            if missing <= 0 or self._share_drawn[locale] * 100 < FEWEST:
                break
            self._progress.expect(missing * 4 + 16)
            more = self._pool([], self._draw(missing * 3 + 16, locale, extra), rng)
            rows += self._answer(more, "rehearsal", locale, missing)
        return rows

    def _pool(self, own: list[str], drawn: list[str], rng: Random) -> list[str]:
        """Own and drawn prompts interleaved, without what is to be avoided or came before."""
        pool = [*own, *drawn]
        rng.shuffle(pool)
        kept = []
        for prompt in pool:
            reason = self._avoid.reason(prompt)
            if reason:
                self._rejected[f"prompt: {reason}"] += 1
            else:
                kept.append(prompt)
        return kept

    def _draw(self, count: int, locale: str, attempt: int = 0) -> list[str]:
        """Let the base write user turns of its own in a language."""
        from core.inference import decoding

        mark = "@PROMPT@"
        resident = self._voice.resident
        head = resident.template.render([{"role": "user", "content": mark}]).split(mark)[0]
        place = self._locales.index(locale)
        openings = OPENINGS.get(locale, ("",)) if place else ("",)
        heads = [resident.template.ids(head + opening) for opening in openings]
        settings = GenerationSettings(
            temperature=1.0,
            max_new_tokens=MAX_PROMPT_TOKENS,
            seed=self._seed * 1009 + attempt + 101 * place,
        )
        drawn = decoding.continuations(
            self._voice,
            [heads[i % len(heads)] for i in range(count)],
            settings,
            on_progress=self._progress,
            stage="draw prompts",
        )
        self._progress.stage_done(count)
        self._result.prompts_drawn += count
        prompts = []
        for i, reply in enumerate(drawn):
            text = openings[i % len(openings)] + reply.text
            text = text if reply.finish_reason == "stop" else whole_sentences(text)
            reason = prompt_fault(text) if text else "no whole sentence"
            if not reason and normalize.locale_of(text) != locale:
                reason = "other language"
            if reason:
                self._rejected[f"prompt: {reason}"] += 1
            else:
                prompts.append(text)
        self._share_drawn[locale] = len(prompts) / max(1, count)
        return prompts

    def _answer(
        self, prompts: Sequence[str], kind: Kind, locale: str, wanted: int
    ) -> list[Conversation]:
        """Answer until ``wanted`` rows are kept; in blocks, because many replies run too long."""
        stage = "answer general prompts" if kind == "rehearsal" else "answer near-miss prompts"
        rows: list[Conversation] = []
        at = 0
        while at < len(prompts) and len(rows) < wanted:
            block = prompts[at : at + max(32, min(192, round((wanted - len(rows)) * 1.3)))]
            at += len(block)
            base = len(rows)

            def report(_: str, done: int, total: int, base: int = base) -> None:
                self._progress(stage, min(wanted, base + done), wanted)

            rows += self._answer_block(block, kind, locale, report)[: wanted - len(rows)]
            self._progress(stage, len(rows) if at < len(prompts) else wanted, wanted)
        self._progress.stage_done(wanted)
        return rows

    def _answer_block(
        self,
        block: Sequence[str],
        kind: Kind,
        locale: str,
        report: Callable[[str, int, int], None],
    ) -> list[Conversation]:
        from core.inference import decoding

        replies = decoding.replies(
            self._voice,
            [[{"role": "user", "content": p}] for p in block],
            GenerationSettings(max_new_tokens=self._cap),
            on_progress=report,
        )
        self._result.replies_made += len(block)
        rows = []
        for prompt, reply in zip(block, replies, strict=True):
            cut = reply.finish_reason == "length"
            # A cut may fall inside a character of several tokens.
            text = reply.text.rstrip("\ufffd").rstrip() if cut else reply.text
            reason = reply_fault(text, prompt, near_miss=kind == "near_miss")
            if reason:
                self._rejected[f"reply: {reason}"] += 1
                continue
            digest = hashlib.sha256(f"{prompt}\0{text}".encode()).hexdigest()[:12]
            rows.append(
                Conversation(
                    id=f"{kind.replace('_', '-')}-{digest}",
                    messages=[
                        {"role": "user", "content": prompt},
                        {"role": "assistant", "content": text},
                    ],
                    kind=kind,
                    locale=locale,
                    cut=cut,
                )
            )
        self._kept += len(rows)
        self._require_sense()
        return rows

    def _require_sense(self) -> None:
        """Raise UserError if almost nothing of what the base said by now can be used."""
        asked = self._result.replies_made
        if asked >= JUDGED and self._kept * 100 < asked * FEWEST:
            raise UserError(
                f"the model says almost nothing that can be used: {self._kept} of its first "
                f"{asked} replies",
                why=f"dropped: {_counted(self._rejected)}",
                fix="choose a model that answers questions, or build without its replies: both "
                "ratios 0 (--rehearsal-ratio 0 --near-miss-ratio 0)",
            )


class _Overall:
    """Progress in replies over all stages, so that the time left is that of the whole."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._report = on_progress or (lambda stage, done, total: None)
        self._before = self._total = 0

    def expect(self, replies: int) -> None:
        """So many more replies are to come."""
        self._total += replies

    def stage_done(self, replies: int) -> None:
        """A stage that was expected to take so many has ended."""
        self._before += replies

    def __call__(self, stage: str, done: int, _: int) -> None:
        self._report(stage, self._before + done, self._total)


def without_names(result: Rehearsal, names: Sequence[str]) -> Rehearsal:
    """Without the rows that happen to say one of ``names``, such as a cat that the base calls Luna.

    They would teach the persona's name as the answer to something else. A name that is also an
    everyday word of the prompts ("will") counts only where the scorer takes it for a name.
    """
    prompts = "\n".join(r.messages[0]["content"] for r in result.rows)
    common = {normalize.spaced(n) for n in scorer.everyday(names, prompts)}
    kept = [
        r
        for r in result.rows
        if not any(scorer.mentions(m["content"], names, common) for m in r.messages)
    ]
    dropped = len(result.rows) - len(kept)
    if not dropped:
        return result
    rejected = {**result.rejected, "reply: says the persona's name": dropped}
    return replace(result, rows=kept, rejected=rejected)


def require_rows(result: Rehearsal, wanted: int, locales: Sequence[str]) -> None:
    """Raise UserError if the base gave less than half of the rows wanted in a language."""
    made = Counter(r.locale for r in result.rows if r.kind == "rehearsal")
    for locale, share in shares(wanted, locales).items():
        if made[locale] * 2 < share:
            raise UserError(
                f"the model gave {made[locale]} usable rehearsal replies of {share} wanted in "
                f"{locale!r}",
                why=f"dropped: {_counted(result.rejected)}",
                fix="allow longer replies, ask for fewer rows, or leave this language out",
            )
