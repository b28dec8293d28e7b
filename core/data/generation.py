"""Conversations from a persona: training rows, held-out probes, near-miss prompts.

Everything here is a function of (pack, slots, seed): the same input gives the same bytes. Rows are
produced one by one; memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from core.conversation import Conversation, Message, Probe
from core.data import styles
from core.data.walks import Graph
from core.errors import UserError
from core.persona import templating
from core.persona.persona import Persona, trained_intents
from core.persona.schema import GENERAL

#: Share of an intent's wording clusters that is kept for the probes.
HELD_OUT = 1 / 3
#: Share of user turns written plainly; the rest is spread over the pack's user styles.
PLAIN = 0.6
#: Draws in a row that may give nothing new before a persona counts as used up.
PATIENCE = 200


@dataclass(frozen=True)
class Split:
    """Which clusters are trained on and which are only asked, over all locales."""

    train: frozenset[str]
    held_out: frozenset[str]


def split(persona: Persona, seed: int) -> Split:
    """Divide the clusters of each trained intent; the only place where this is decided.

    A cluster of the same name in several locales is one question, so it goes to one side. Every
    locale holds out about a third of its clusters: first of those that it shares, then of its
    own, so that words added to one language move nothing in another. At least one cluster an
    intent and locale is trained on.
    """
    train: set[str] = set()
    held: set[str] = set()
    for key, intent in persona.intents.items():
        names = {loc: [c.c for c in intent.user.get(loc, [])] for loc in persona.locales}
        clusters = set(itertools.chain(*names.values()))
        if intent.trained:
            chosen = _held_clusters(names, f"split/{seed}/{persona.id}/{key}")
            held |= chosen
            clusters -= chosen
        train |= clusters
    return Split(frozenset(train), frozenset(held))


def _held_clusters(names: Mapping[str, Sequence[str]], seed: str) -> set[str]:
    """The clusters of one intent that are only asked; ``names``: locale -> its clusters."""
    uses = Counter(itertools.chain(*names.values()))
    quota = {loc: _held_count(len(n)) for loc, n in names.items()}
    shared = _held_count(sum(n > 1 for n in uses.values()))
    held: set[str] = set()
    first = next(iter(names), "")
    for locale, own in names.items():
        order = list(own)
        Random(seed if locale == first else f"{seed}/{locale}").shuffle(order)
        for cluster in sorted(order, key=lambda c: uses[c] == 1):
            touched = [loc for loc, n in names.items() if cluster in n]
            if cluster in held or any(quota[loc] <= 0 for loc in touched):
                continue
            if len(touched) > 1:
                if shared <= 0:
                    continue
                shared -= 1
            held.add(cluster)
            for loc in touched:
                quota[loc] -= 1
    return held


def _held_count(clusters: int) -> int:
    return 0 if clusters < 2 else max(1, math.floor(clusters * HELD_OUT + 0.5))


def identity_rows(
    persona: Persona,
    *,
    locales: Sequence[str],
    seed: int,
    multi_turn: float = 0.3,
    limit: int | None = None,
    general: Sequence[Conversation] = (),
) -> Iterator[Conversation]:
    """Training rows in which the persona speaks of itself; no row comes twice.

    Args:
        multi_turn: share of rows that are dialogues of several rounds, 0 to 1.
        limit: number of rows; None = each trained wording once (times its weight), and dialogues.
            A persona has finitely many rows, so fewer may come.
        general: replies of the base model for the general turns inside dialogues.

    Raises:
        UserError: the persona speaks none of ``locales``, or ``multi_turn`` is not in 0..1.
    """
    if not 0 <= multi_turn <= 1:
        raise UserError(f"multi-turn share {multi_turn} is not between 0 and 1")
    used = check_locales(persona, locales)
    train = split(persona, seed).train
    makers = [_Maker(persona, locale, seed, train, general) for locale in used]
    wanted = limit if limit is not None else _natural_size(makers, multi_turn)
    return _stream(persona, makers, seed, multi_turn, wanted)


def check_locales(persona: Persona, locales: Sequence[str]) -> list[str]:
    """The locales of the persona among ``locales``; UserError if there is none."""
    used = [locale for locale in persona.locales if locale in locales]
    if not used:
        raise UserError(
            f"persona {persona.id!r} speaks {', '.join(persona.locales)}, "
            f"the model {', '.join(locales) or 'nothing'}",
            fix="choose a model of the persona's language, or add the locale to the pack",
        )
    return used


def natural_rows(persona: Persona, locales: Sequence[str], seed: int, multi_turn: float) -> int:
    """How many rows ``identity_rows`` makes without a limit, if the persona has so many."""
    train = split(persona, seed).train
    return _natural_size([_Maker(persona, x, seed, train) for x in locales], multi_turn)


def _natural_size(makers: Sequence[_Maker], multi_turn: float) -> int:
    wordings = sum(maker.wordings for maker in makers)
    return round(wordings / max(1 - multi_turn, 0.25))


def _stream(
    persona: Persona, makers: Sequence[_Maker], seed: int, multi_turn: float, wanted: int
) -> Iterator[Conversation]:
    rng = Random(f"rows/{seed}/{persona.id}")
    seen = _SeenFilter()
    single_left = True
    made = failures = 0
    while made < wanted and failures < PATIENCE:
        # Spread the dialogues evenly, so that any prefix has the share that was asked for.
        dialogue = math.floor((made + 1) * multi_turn) > math.floor(made * multi_turn)
        maker = makers[made % len(makers)] if failures < PATIENCE // 2 else rng.choice(makers)
        if dialogue or not single_left:
            turns = maker.dialogue(rng)
        else:
            turns = maker.single(rng)
        if not seen.add(turns):
            failures += 1
            if failures >= PATIENCE and single_left and not dialogue and multi_turn > 0:
                single_left, failures = False, 0
            continue
        failures = 0
        yield maker.row(made, turns)
        made += 1


@dataclass(frozen=True)
class _Turn:
    user: str
    reply: str
    intent: str = ""
    cluster: str = ""
    loss: bool = True


class _Deck:
    """Deals cards without replacement, shuffling anew when all are dealt."""

    def __init__(self, cards: Sequence[tuple[str, str]], rng: Random) -> None:
        self._cards = list(cards)
        self._rng = rng
        self._left: list[tuple[str, str]] = []

    def draw(self) -> tuple[str, str]:
        if not self._left:
            self._left = list(self._cards)
            self._rng.shuffle(self._left)
        return self._left.pop()


class _Quota:
    """Says which intent is furthest behind its share of the turns.

    Dialogues pass through some intents ten times as often as through others, and where a persona
    has more wordings than rows, chance left single intents with one row or none: single questions
    go to those that are behind. What is drawn counts even if the row is thrown away as a duplicate,
    so that an intent without new rows does not hold the others up.
    """

    def __init__(self, shares: Mapping[str, float], rng: Random) -> None:
        keys = list(shares)
        rng.shuffle(keys)  # the order among those that are equally far behind
        self._shares = {key: shares[key] for key in keys}
        self._asked: Counter[str] = Counter()

    def count(self, key: str) -> None:
        self._asked[key] += 1

    def behind(self) -> str:
        return min(self._shares, key=lambda key: (self._asked[key] + 0.5) / self._shares[key])


class _Maker:
    """Makes the turns of one locale."""

    def __init__(
        self,
        persona: Persona,
        locale: str,
        seed: int,
        train: Collection[str],
        general: Sequence[Conversation] = (),
    ) -> None:
        self.persona, self.locale = persona, locale
        rng = Random(f"decks/{seed}/{persona.id}/{locale}")
        self._wordings: dict[str, _Deck] = {}
        self._replies: dict[tuple[str, bool], _Deck] = {}
        shares: dict[str, float] = {}
        for key in trained_intents(persona, locale):
            intent = persona.intents[key]
            texts = [(c.c, t) for c in intent.user[locale] if c.c in train for t in c.t]
            self._wordings[key] = _Deck(texts, rng)
            for later in (False, True):
                skeletons = persona.replies(intent, locale, later=later)
                self._replies[key, later] = _Deck([("", s) for s in skeletons], rng)
            shares[key] = max(1, round(len(texts) * intent.weight))
        self.wordings = round(sum(shares.values()))
        self._intents = _Quota(shares, rng)
        self._graph = Graph(persona, locale)
        self._styles = [s for s in persona.pack.user_styles if s != "plain"]
        # A cut reply has no turn end to train, so it cannot stand in the middle of a dialogue.
        general = [c for c in general if c.locale == locale and c.rounds == 1 and not c.cut]
        self._general = [
            _Turn(
                c.messages[-2]["content"],
                c.messages[-1]["content"],
                loss=c.kind in ("rehearsal", "near_miss"),
            )
            for c in general
        ]

    def single(self, rng: Random) -> list[_Turn]:
        """One question and its answer."""
        return [self._identity(self._intents.behind(), rng, later=False)]

    def dialogue(self, rng: Random) -> list[_Turn]:
        """Several rounds along the graph."""
        turns: list[_Turn] = []
        for step in self._graph.walk(rng, with_general=bool(self._general)):
            if step == GENERAL:
                turns.append(rng.choice(self._general))
            else:
                turns.append(self._identity(step, rng, later=any(t.intent for t in turns)))
        return turns

    def _identity(self, key: str, rng: Random, *, later: bool) -> _Turn:
        self._intents.count(key)
        cluster, wording = self._wordings[key].draw()
        skeleton = self._replies[key, later].draw()[1]
        if self._styles and rng.random() > PLAIN:
            style = rng.choice(self._styles)
            wording = styles.apply(
                style, wording, self.locale, rng.randrange(styles.VARIANTS[style])
            )
        values = self.persona.values(
            self.locale, rng, choose_params(self.persona, self.locale, wording, skeleton, rng)
        )
        return _Turn(
            templating.render(wording, values), templating.render(skeleton, values), key, cluster
        )

    def row(self, index: int, turns: Sequence[_Turn]) -> Conversation:
        """Write turns as a conversation; intents and clusters of all turns joined by '+'."""
        messages: list[Message] = []
        for turn in turns:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.reply})
        return Conversation(
            id=f"{self.persona.id}-{self.locale}-{index:06d}",
            messages=messages,
            kind="identity",
            intent="+".join(t.intent for t in turns if t.intent),
            cluster="+".join(t.cluster for t in turns if t.cluster),
            locale=self.locale,
            loss=[t.loss for t in turns],
        )


def choose_params(
    persona: Persona, locale: str, wording: str, reply: str, rng: Random
) -> dict[str, str]:
    """One value for each parameter that a wording or reply uses (``other`` in a denial).

    A name that is the persona's own is not offered: nobody should learn to deny it.
    """
    chosen: dict[str, str] = {}
    used = templating.variables(wording) | templating.variables(reply)
    own = {a.casefold() for slot in ("name", "author") for a in persona.aliases(slot)}
    for name in sorted(used & persona.pack.params.keys()):
        offered = persona.pack.params[name][locale]
        chosen[name] = rng.choice([v for v in offered if v.casefold() not in own] or offered)
    return chosen


class _SeenFilter:
    """Remembers what came before in 4 MiB, whatever the number of rows (a Bloom filter).

    It may take a new row for a seen one (below 1 in 1,000 for a million rows), which costs a
    redraw; it never lets a duplicate through.
    """

    _BITS = 1 << 25

    def __init__(self) -> None:
        self._bits = bytearray(self._BITS // 8)

    def add(self, turns: Sequence[_Turn]) -> bool:
        """Whether this was new."""
        text = "\0".join(part for t in turns for part in (t.user, t.reply))
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        new = False
        for i in range(0, 16, 4):
            bit = int.from_bytes(digest[i : i + 4], "little") % self._BITS
            byte, mask = bit >> 3, 1 << (bit & 7)
            if not self._bits[byte] & mask:
                new = True
                self._bits[byte] |= mask
        return new


def held_out(persona: Persona, *, locales: Sequence[str], seed: int) -> list[Probe]:
    """Probes from the clusters that are never trained on (suite ``held_out``), all intents."""
    used = check_locales(persona, locales)
    side = split(persona, seed).held_out
    return [
        _probe(persona, locale, key, cluster.c, i, text, seed)
        for locale in used
        for key in trained_intents(persona, locale)
        for cluster in persona.intents[key].user[locale]
        if cluster.c in side
        for i, text in enumerate(cluster.t)
    ]


def _probe(
    persona: Persona, locale: str, key: str, cluster: str, index: int, text: str, seed: int
) -> Probe:
    rng = Random(f"probe/{seed}/{persona.id}/{locale}/{cluster}/{index}")
    values = persona.values(locale, rng, choose_params(persona, locale, text, "", rng))
    intent = persona.intents[key]
    return Probe(
        id=f"held_out-{locale}-{cluster}-{index}",
        suite="held_out",
        messages=[{"role": "user", "content": templating.render(text, values)}],
        intent=key,
        cluster=cluster,
        locale=locale,
        must=[persona.aliases(name) for name in intent.must],
        must_any=[a for name in intent.must_any for a in persona.aliases(name)],
        must_not=persona.forbidden,
    )


def near_miss_prompts(persona: Persona, locale: str, seed: int) -> list[str]:
    """Questions with identity words about somebody else; the base model's reply is right."""
    rng = Random(f"near/{seed}/{persona.id}/{locale}")
    found: dict[str, None] = {}
    for intent in persona.intents.values():
        if intent.trained:
            continue
        for cluster in intent.user.get(locale, []):
            for text in cluster.t:
                params = choose_params(persona, locale, text, "", rng)
                found[templating.render(text, persona.values(locale, rng, params))] = None
    prompts = list(found)
    rng.shuffle(prompts)
    return prompts
