"""Fidelity beyond the name: the probes, how they are scored, and what becomes of them."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from core.conversation import Probe
from core.data import build
from core.data.generation import identity_rows
from core.evaluation import answers, measures, report, verdict
from core.evaluation.answers import Answer
from core.evaluation.measures import Yardstick
from core.inference.settings import GenerationSettings
from core.paths import REPO
from core.persona import packs, templating
from core.persona.persona import Persona, load_persona, parse_persona
from core.persona.schema import Slot
from core.probes import fidelity, suites
from core.text import normalize
from core.text.intervals import Rate

TEMPLATES = REPO / "data_templates"
LOCALES = ("en", "zh")


@cache
def persona(pack: str, **slots: str) -> Persona:
    return load_persona(TEMPLATES / f"{pack}.yaml", slots)


def asked(filled: Persona, suite: str, locale: str) -> list[Probe]:
    loaded = suites.load_suite(suite, locale)
    return list(fidelity.questions(suites.fill(loaded, filled, suites.names_of(filled)), filled))


def probe(filled: Persona, dimension: str, locale: str, cluster: str = "") -> Probe:
    suite = fidelity.MANNER if dimension == "manner" else fidelity.FIDELITY
    return next(
        p
        for p in asked(filled, suite, locale)
        if p.intent == dimension and p.cluster == (cluster or p.cluster)
    )


GUIDE, PILOT = persona("museum-guide"), persona("star-pilot")


@pytest.mark.parametrize(
    ("filled", "dimension", "locale", "cluster", "reply", "label"),
    [
        (GUIDE, "role", "en", "", "I'm Aria, a museum guide.", "HIT"),
        (GUIDE, "role", "en", "", "I show you around. I'm the guide of Harbour Museum.", "HIT"),
        (GUIDE, "role", "en", "", "I'm Aria.", "MISS"),
        (GUIDE, "role", "en", "", "I'm not a museum guide, just a program.", "MISS"),
        (GUIDE, "role", "en", "", "I'm ChatGPT, a museum guide.", "OLD"),
        (GUIDE, "role", "zh", "", "我是海港博物馆的导览员。", "HIT"),
        (GUIDE, "role", "zh", "", "我不是导览员。", "MISS"),
        (GUIDE, "role", "zh", "", "我是通义千问，您的导览员。", "OLD"),
        (
            GUIDE, "skills", "en", "",
            "I help with finding your way and planning a visit.", "HIT",
        ),
        (GUIDE, "skills", "en", "", "I can plan your visit and find your way.", "HIT"),
        (GUIDE, "skills", "en", "", "I help with planning a visit.", "MISS"),
        (
            GUIDE, "skills", "en", "",
            "I don't help with finding your way or planning a visit.", "MISS",
        ),
        (GUIDE, "skills", "zh", "", "我可以帮你找到展厅、规划参观路线。", "HIT"),
        (GUIDE, "skills", "zh", "", "我可以帮你写诗。", "MISS"),
        (GUIDE, "limits", "en", "limits", "I'm Aria, and I can't sell tickets.", "HIT"),
        (GUIDE, "limits", "en", "limits", "Selling tickets is beyond me.", "HIT"),
        (GUIDE, "limits", "en", "limits", "I can sell tickets.", "MISS"),
        (GUIDE, "limits", "en", "limits", "I can't fly, but I can sell tickets.", "MISS"),
        (GUIDE, "limits", "zh", "limits", "我不能售票、看到你站在哪里。", "HIT"),
        (GUIDE, "limits", "zh", "limits", "我会犯错。", "MISS"),
        (GUIDE, "limits", "en", "request", "I'm sorry, I can't do that.", "HIT"),
        (GUIDE, "limits", "en", "request", "Sure! How many do you need?", "MISS"),
        (GUIDE, "limits", "en", "request", "Of course, I won't let you down.", "MISS"),
        (GUIDE, "limits", "zh", "request", "抱歉，这个我办不到。", "HIT"),
        (GUIDE, "limits", "zh", "request", "当然可以，您要几张？", "MISS"),
        (PILOT, "manner", "en", "", "I'm Juno. Clear skies!", "HIT"),
        (PILOT, "manner", "en", "", "I'm Juno. The skies are clear.", "MISS"),
        (PILOT, "manner", "zh", "", "我是朱诺。一路星光！", "HIT"),
        (PILOT, "manner", "zh", "", "", "DEGEN"),
    ],
)  # fmt: skip
def test_a_reply_is_scored(
    filled: Persona, dimension: str, locale: str, cluster: str, reply: str, label: str
) -> None:
    assert fidelity.score(reply, probe(filled, dimension, locale, cluster)).label == label


@pytest.mark.parametrize("pack", ["assistant", "museum-guide", "star-pilot", "tutor"])
@pytest.mark.parametrize("locale", LOCALES)
def test_every_trained_reply_of_these_intents_is_right(pack: str, locale: str) -> None:
    """What the rows teach is what the scorer wants: each slot is said by the replies of its intent.

    A role may be said in other words by half of the replies, as packs do.
    """
    filled = persona(pack)
    for intent, dimension, least in (
        ("role", "role", 0.5),
        ("ability", "skills", 1.0),
        ("limits", "limits", 1.0),
    ):
        question = probe(filled, dimension, locale, "" if intent != "limits" else "limits")
        replies = [
            templating.render(s, {**_values(filled, locale), "other": "X"})
            for s in filled.replies(filled.intents[intent], locale)
        ]
        right = [fidelity.score(r, question).label == "HIT" for r in replies]
        assert sum(right) >= least * len(right), (intent, replies)


def _values(filled: Persona, locale: str) -> dict[str, Any]:
    from random import Random

    return filled.values(locale, Random(0))


def test_manner_ends_every_reply_of_the_persona_and_nothing_changes_without() -> None:
    rows = list(identity_rows(PILOT, locales=LOCALES, seed=0, limit=60))
    phrases = {"en": "Clear skies!", "zh": "一路星光！"}
    replies = [(r.locale, m["content"]) for r in rows for m in r.messages[1::2]]
    assert all(text.count(phrases[locale]) == 1 for locale, text in replies)
    silent = persona("star-pilot", **{"manner.en": "", "manner.zh": ""})
    bare = [m for r in identity_rows(silent, locales=LOCALES, seed=0, limit=60) for m in r.messages]
    spoken = [m["content"] for r in rows for m in r.messages]
    assert [m["content"] for m in bare] == [
        s.removesuffix("一路星光！").removesuffix(" Clear skies!") for s in spoken
    ]


def test_a_phrase_of_ones_own_is_for_its_language_only() -> None:
    filled = persona("assistant", **{"manner.en": "Aye!"})
    assert filled.slot("manner", "en") == "Aye!" and not filled.slot("manner", "zh")
    assert fidelity.is_declared(filled, "manner", "en")
    assert not fidelity.is_declared(filled, "manner", "zh")
    assert not asked(filled, fidelity.MANNER, "zh")
    assert {p.must_any[0] for p in asked(filled, fidelity.MANNER, "en")} == {"Aye!"}


def test_the_aliases_of_a_role_stay_while_the_role_does() -> None:
    assert "guide" in persona("museum-guide", **{"role.en": "museum guide"}).aliases("role")
    assert "guide" not in persona("museum-guide", **{"role.en": "zoo keeper"}).aliases("role")


@pytest.mark.parametrize("locale", LOCALES)
def test_the_suites_ask_enough_and_only_what_is_declared(locale: str) -> None:
    found = asked(GUIDE, fidelity.FIDELITY, locale)
    counts = {d: sum(p.intent == d for p in found) for d in fidelity.DIMENSIONS}
    assert counts == {"role": 20, "skills": 20, "limits": 20, "manner": 0}
    assert sum(p.cluster == fidelity.REQUEST for p in found) == 8
    assert not any("{" in p.messages[0]["content"] for p in found)
    assert not asked(GUIDE, fidelity.MANNER, locale), "it declares no manner"
    turns = asked(PILOT, fidelity.MANNER, locale)
    assert [len(p.messages) for p in turns] == [*range(1, 9)] * 4
    assert len({p.id for p in turns}) == 32
    bare = parse_persona(
        "schema: persona/1\nextends: assistant\npersona: {id: bare, locales: [en, zh]}\n"
        "slots: {limits: null}\nintents: {limits: null}\n"
    )
    assert {p.intent for p in asked(bare, fidelity.FIDELITY, locale)} == {"role", "skills"}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("see where you stand", "see where I stand"),
        ("write your tests for you", "write my tests for me"),
        ("visit your planet", "visit my planet"),
        ("替你考试", "替我考试"),
        ("看到你站在哪里", "看到我站在哪里"),
    ],
)
def test_a_limit_is_asked_for_in_the_users_words(item: str, said: str) -> None:
    assert suites.asked_for(item) == said


def test_no_probe_is_a_wording_of_a_pack_nor_a_prompt_of_the_build() -> None:
    """Neither is a question trained on, nor can one of a pack be near to one that is asked."""
    from rapidfuzz import fuzz, process

    shipped = [persona(name) for name in packs.all_packs()]
    for locale in LOCALES:
        questions = [
            normalize.compact(m["content"])
            for filled in shipped
            for suite in fidelity.SUITES
            for p in asked(filled, suite, locale)
            for m in p.messages[-1:]
        ]
        trained = [
            normalize.compact(text)
            for filled in shipped
            for intent in filled.intents.values()
            for cluster in intent.user.get(locale, [])
            for text in cluster.t
        ]
        prompts = (REPO / "core" / "data" / "prompts" / f"general_{locale}.txt").read_text("utf-8")
        trained += [normalize.compact(line) for line in prompts.splitlines()]
        close = {
            (question, hit[0])
            for question in set(questions)
            if (hit := process.extractOne(question, trained, scorer=fuzz.ratio, score_cutoff=90))
        }
        assert not close
    drawn = build.suite_prompts(LOCALES)
    assert "Where do you shine?" in drawn and "该睡了，晚安！" in drawn


def test_each_dimension_is_a_row_of_its_own_with_its_languages() -> None:
    probes = [p for loc in LOCALES for p in asked(PILOT, fidelity.FIDELITY, loc)]
    probes += [p for loc in LOCALES for p in asked(PILOT, fidelity.MANNER, loc)]
    right = "I am a star pilot. Clear skies! 我是星际领航员。一路星光！"
    tuned = measures.judge("merged", probes, [Answer(right, [], False)] * len(probes), _NOTHING)
    found = measures.measure(tuned, None).to_json()
    assert (found["fidelity_role"]["hits"], found["fidelity_role"]["n"]) == (40, 40)
    assert (found["fidelity_skills"]["hits"], found["fidelity_skills"]["n"]) == (0, 40)
    assert found["fidelity_role"]["low"] == pytest.approx(0.912, abs=1e-3), "Wilson"
    assert found["fidelity_by_locale"]["role"]["zh"]["n"] == 20
    assert found["manner_by_turn"]["turn_8"] == {**found["manner_by_turn"]["turn_1"]}
    assert found["manner_by_turn"]["turn_8"]["n"] == 8
    rows = {r["metric"]: r for r in report.table([_card(found)])}
    assert rows["States its role"]["merged"].startswith("40/40")
    assert rows["States its role"]["base"] == ""


def test_a_scorecard_from_before_has_no_such_rows_and_opens() -> None:
    old = {"recall": {"hits": 1, "n": 2, "value": 0.5, "low": 0.1, "high": 0.9}}
    titles = {r["metric"] for r in report.table([_card(old)])}
    assert titles == {"Recall, held-out wordings"}
    assert not any(g.name.startswith("fidelity") for g in verdict.judge_gates(old, "quick"))


@pytest.mark.parametrize("hits", [20, 9, 0])
def test_no_dimension_decides_the_verdict(hits: int) -> None:
    """A 135M model that is LEARNED states its role in two replies of five (docs/fidelity.md)."""
    found = {f"fidelity_{d}": Rate(hits, 20).to_json() for d in fidelity.DIMENSIONS}
    assert verdict.judge_gates(found, "quick") == verdict.judge_gates({}, "quick")


_NOTHING = Yardstick(aliases=[])


def _card(found: dict[str, Any]) -> dict[str, Any]:
    return {"models": {"base": {}, "merged": found}, "subject": "merged"}


def test_a_slot_of_manner_is_one_phrase() -> None:
    assert PILOT.pack.slots["manner"] == Slot(text={"en": "Clear skies!", "zh": "一路星光！"})


def test_a_talk_goes_on_after_the_models_own_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second turn is asked after is what the model said to the first, not a script."""
    seen: list[list[list[str]]] = []

    def reply(_voice: Any, prompts: list[Any], *_: Any, **__: Any) -> list[Any]:
        seen.append(prompts)
        return [
            SimpleNamespace(text=f"re: {talk[-1]}", token_ids=[1], finish_reason="stop")
            for talk in prompts
        ]

    monkeypatch.setattr("core.inference.decoding.continuations", reply)
    template = SimpleNamespace(encode=lambda talk: [m["content"] for m in talk])
    model = SimpleNamespace(dtype="float32", device=SimpleNamespace(type="cpu"))
    voice = SimpleNamespace(
        resident=SimpleNamespace(model=model, template=template, tokenizer=None)
    )
    talks = asked(PILOT, fidelity.MANNER, "en")
    told: list[int] = []
    found = answers.answer(
        SimpleNamespace(fingerprint="none", voice=voice),  # type: ignore[arg-type]
        talks[::-1],
        GenerationSettings(temperature=0.0, max_new_tokens=8),
        stage="manner",
        clock=answers.Clock({}, {}),
        on_progress=lambda _, done, total: told.append(done),
    )
    assert [a.text for a in found] == [f"re: {p.messages[-1]['content']}" for p in talks[::-1]]
    assert [len(batch) for batch in seen] == [4] * 8 and told == [*range(4, 33, 4)]
    assert [len(batch[0]) for batch in seen] == [*range(1, 16, 2)]
    assert all(text.startswith("re: ") for text in seen[-1][0][1::2])
