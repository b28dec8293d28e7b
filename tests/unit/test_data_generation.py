"""Rows: same input, same bytes; no row twice; dialogues along the graph; lint and report."""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings

from core import fsio, paths
from core.conversation import Conversation
from core.data import diversity, styles
from core.data.contamination import Contamination
from core.data.generation import held_out, identity_rows, near_miss_prompts
from core.data.pack_lint import lint_pack, lint_slots
from core.data.report import report_rows
from core.data.row_lint import lint_rows
from core.errors import UserError
from core.persona.persona import Persona, load_persona, parse_persona
from core.training import budget, compat
from tests.unit.test_data_persona import PACK, any_text


@pytest.fixture(scope="module")
def assistant() -> Persona:
    return load_persona(paths.TEMPLATES / "assistant.yaml", {"name": "Nova", "author": "Ada Works"})


def dump(rows: list[Conversation]) -> str:
    return "\n".join(fsio.dump_json(r.to_row()) for r in rows)


def make(persona: Persona, **more: Any) -> list[Conversation]:
    return list(identity_rows(persona, **{"locales": ["en", "zh"], "seed": 0, **more}))


def test_same_input_same_bytes(assistant: Persona, tmp_path: Path) -> None:
    again = parse_persona(assistant.dump())
    for seed in (0, 7):
        assert dump(make(assistant, seed=seed)) == dump(make(again, seed=seed))
    assert dump(make(assistant)) != dump(make(assistant, seed=1))
    code = (
        "import sys; from pathlib import Path; from core.persona.persona import load_persona;"
        "from core.data.generation import identity_rows; from core import fsio;"
        "p = load_persona(Path(sys.argv[1]));"
        "print('\\n'.join(fsio.dump_json(r.to_row()) for r in"
        " identity_rows(p, locales=['en', 'zh'], seed=0)))"
    )
    pack = tmp_path / "pack.yaml"
    pack.write_text(assistant.dump(), encoding="utf-8")
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(pack)],
            capture_output=True,
            check=True,
            text=True,
            cwd=paths.REPO,
            env={**os.environ, "PYTHONHASHSEED": str(n), "PYTHONUTF8": "1"},
        ).stdout.rstrip("\n")
        for n in (1, 2)
    }
    assert outputs == {dump(make(assistant))}


def test_no_row_comes_twice_and_a_prefix_is_stable(assistant: Persona) -> None:
    rows = make(assistant, limit=3_000)
    assert len(rows) == 3_000
    assert len({json.dumps(r.messages) for r in rows}) == len(rows)
    assert len({r.id for r in rows}) == len(rows)
    assert dump(make(assistant, limit=50)) == dump(rows[:50])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_dialogues(assistant: Persona, share: float) -> None:
    rows = make(assistant, limit=200, multi_turn=share)
    assert sum(r.rounds > 1 for r in rows) == pytest.approx(200 * share, abs=1)


def test_every_trained_wording_is_used_before_one_comes_again(assistant: Persona) -> None:
    rows = make(assistant, locales=["en"], multi_turn=0)
    held = {p.cluster for p in held_out(assistant, locales=["en"], seed=0)}
    trained = {
        key: sum(len(c.t) for c in intent.user["en"] if c.c not in held)
        for key, intent in assistant.intents.items()
        if intent.trained
    }
    weights = {key: assistant.intents[key].weight for key in trained}
    assert len(rows) == sum(round(n * weights[key]) for key, n in trained.items())
    for key, wordings in trained.items():
        asked = sum(r.intent == key for r in rows)
        # What came twice was thrown away, and its turn went to the next intent.
        assert asked == pytest.approx(wordings * weights[key], rel=0.1, abs=3), key


def test_few_rows_still_give_every_intent_its_share_of_the_turns() -> None:
    """Chance once left an intent one row of 250 (the star pilot's introduction, in English)."""
    pilot = load_persona(paths.TEMPLATES / "star-pilot.yaml")
    rows = make(pilot, locales=["en", "zh"], limit=250)
    held = {p.cluster for p in held_out(pilot, locales=["en", "zh"], seed=0)}
    for locale in ("en", "zh"):
        asked = Counter(k for r in rows if r.locale == locale for k in r.intent.split("+"))
        shares = {
            key: intent.weight * sum(len(c.t) for c in intent.user[locale] if c.c not in held)
            for key, intent in pilot.intents.items()
            if intent.trained
        }
        for key, share in shares.items():
            wanted = asked.total() * share / sum(shares.values())
            assert asked[key] >= 0.7 * wanted - 1, (locale, key, asked[key], wanted)


def test_dialogues_follow_the_graph_and_never_repeat_an_intent(assistant: Persona) -> None:
    general = [
        Conversation(
            "g1",
            [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4."}],
            kind="rehearsal",
        ),
        Conversation(
            "g2",
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
            kind="own",
        ),
        Conversation(
            "g3",
            [{"role": "user", "content": "Cut"}, {"role": "assistant", "content": "And"}],
            kind="rehearsal",
            cut=True,
        ),
    ]
    rows = make(assistant, locales=["en"], limit=300, multi_turn=1.0, general=general)
    inserted = 0
    for row in rows:
        path = row.intent.split("+")
        assert len(set(path)) == len(path) >= 2
        assert [m["role"] for m in row.messages] == ["user", "assistant"] * row.rounds
        for here, there in itertools.pairwise(path):
            ahead = {s.to for s in assistant.intents[here].next}
            assert there in ahead or path.index(there) == 1
        assert not any(m["content"] == "Cut" for m in row.messages)
        for i, message in enumerate(row.messages[::2]):
            if message["content"] in ("2+2?", "Hi"):
                inserted += 1
                # A reply of somebody else in the middle of a dialogue is context, not a target.
                assert row.loss[i] is (message["content"] == "2+2?")
    assert inserted > 30


def test_short_replies_come_later_in_a_dialogue() -> None:
    short = '    short: {en: ["{{ name }}!"]}\n    must: [name]\n'
    text = PACK.replace("    must: [name]\n", short)
    for row in make(parse_persona(text), locales=["en"], multi_turn=1.0, limit=20):
        replies = [m["content"] for m in row.messages[1::2]]
        assert replies[0] != "Luna!"
        if row.intent == "deny+who":
            assert replies[1] == "Luna!"


def test_a_small_pack_ends_instead_of_repeating() -> None:
    rows = make(parse_persona(PACK), locales=["en"], limit=100_000, multi_turn=0.5)
    assert 20 < len(rows) < 5_000
    assert len({json.dumps(r.messages) for r in rows}) == len(rows)


def test_memory_does_not_grow_with_rows(assistant: Persona) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in identity_rows(assistant, locales=["en"], seed=0, limit=count):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(200)
    assert peak(2_000) < peak(500) + 1_000_000


def test_locales_and_shares_are_checked(assistant: Persona) -> None:
    with pytest.raises(UserError, match="speaks en, zh"):
        make(assistant, locales=["fr"])
    with pytest.raises(UserError, match="multi-turn"):
        make(assistant, multi_turn=1.5)


def test_probes_know_what_a_right_reply_holds(assistant: Persona) -> None:
    probes = {p.intent: p for p in held_out(assistant, locales=["en"], seed=0)}
    assert probes["who"].must[0][0] == "Nova"
    assert "Ada Works" in probes["denial"].must_any and not probes["denial"].must
    assert "ChatGPT" in probes["denial"].must_not
    assert all("{" not in p.messages[0]["content"] for p in probes.values())


def test_nobody_learns_to_deny_the_own_name() -> None:
    persona = load_persona(paths.TEMPLATES / "assistant.yaml", {"name": "Claude"})
    for row in make(persona, locales=["en"], limit=400):
        for user, reply in zip(row.messages[::2], row.messages[1::2], strict=True):
            if "denial" in row.intent:
                assert user["content"] != "Are you Claude?"
            assert "not Claude" not in reply["content"]


def test_near_miss_prompts_are_no_probes(assistant: Persona) -> None:
    prompts = near_miss_prompts(assistant, "en", 0)
    assert prompts == near_miss_prompts(assistant, "en", 0) and len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("style", list(styles.VARIANTS))
@pytest.mark.parametrize("locale", ["en", "zh"])
def test_styles_leave_slots_alone(style: str, locale: str) -> None:
    for variant in range(styles.VARIANTS[style]):
        for text in ("Are you really {{ other }}?", "你是{{ other }}吗？"):
            assert "{{ other }}" in styles.apply(style, text, locale, variant)


# --- lint and report ---------------------------------------------------------------------------


def row(user: str, reply: str, **more: Any) -> Conversation:
    messages: Any = [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    return Conversation(more.pop("id", "r1"), messages, **more)


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (row("Who?", "I am {{name}}.", kind="own"), "leftover"),
        (row("Who?", "I am <NAME>.", kind="own"), "leftover"),
        (row("Who?", " ", kind="own"), "empty"),
        (row("Who?", "Hi<|im_end|>", kind="own"), "control-token"),
        (row("Who are you?", "I am ChatGPT.", kind="identity", intent="who"), "forbidden-claim"),
        (row("Who are you?", "I'm a friend.", kind="identity", intent="who"), "missing-must"),
        (row("x", "y", kind="own", loss=[False]), "no-loss"),
        (row("Mail me", "To a.b@example.org", kind="own"), "personal-data"),
        (Conversation("r", [{"role": "user", "content": "x"}] * 2, loss=[True]), "roles"),
        (row("x", "I'm Nova", kind="identity", cluster="held"), "held-out-cluster"),
    ],
)
def test_rows_that_should_not_be_trained_on(
    assistant: Persona, bad: Conversation, rule: str
) -> None:
    probes = held_out(assistant, locales=["en"], seed=0)
    if bad.cluster:
        bad = row("x", "I'm Nova", kind="identity", cluster=probes[0].cluster)
    found = lint_rows([bad], assistant, probes=probes, control_tokens=["<|im_end|>"])
    assert rule in {f.rule for f in found}, found


def test_probe_wordings_in_training_are_found(assistant: Persona) -> None:
    probes = held_out(assistant, locales=["en"], seed=0)
    asked = probes[3].messages[0]["content"]
    rules = [f.rule for f in Contamination(probes).check(row(asked.upper() + "!!", "x"))]
    assert rules == ["probe-wording"]
    near = [f.rule for f in Contamination(probes).check(row(asked[:-2] + "x" + asked[-2:], "x"))]
    assert near == ["near-probe"]


def test_generated_rows_are_clean(assistant: Persona) -> None:
    rows = make(assistant, limit=1_000)
    probes = held_out(assistant, locales=["en", "zh"], seed=0)
    found = lint_rows(rows, assistant, probes=probes, control_tokens=["<|im_end|>"])
    assert [f for f in found if f.level == "error"] == []


def test_duplicates_are_merged_into_one_finding(assistant: Persona) -> None:
    rows = [row("a", "b", id=f"r{i}") for i in range(5)]
    found = [f for f in lint_rows(rows) if f.rule == "duplicate-row"]
    assert len(found) == 1 and found[0].count == 4 and found[0].where == "r1"


def test_pack_lint_finds_what_teaches_badly() -> None:
    rules = {f.rule for f in lint_pack(parse_persona(PACK))}
    assert {"few-clusters", "few-replies"} <= rules
    claims = PACK.replace("{{ name }} it is.", "I'm {{ name }}, I am ChatGPT.")
    assert "forbidden-claim" in {f.rule for f in lint_pack(parse_persona(claims))}
    skill = PACK.replace("{{ name }} it is.", "{{ name }} here, I can translate Latin.")
    assert "unlisted-skill" in {f.rule for f in lint_pack(parse_persona(skill))}
    listed = PACK.replace("{{ name }} it is.", "{{ name }} here, I can help with cooking.")
    assert "unlisted-skill" not in {f.rule for f in lint_pack(parse_persona(listed))}
    endless = PACK.replace(", {to: END, p: 0.1}", "")
    assert "no-end" in {f.rule for f in lint_pack(parse_persona(endless))}
    lonely = PACK.replace("user_styles:", "dialogues: {start: {who: 1}}\nuser_styles:").replace(
        "[{to: deny, p: 0.9}, ", "["
    )
    assert "unreachable" in {f.rule for f in lint_pack(parse_persona(lonely))}


def test_diversity_tells_copies_from_variety() -> None:
    copies = diversity.measure(["I am Luna, made by the lab."] * 200)
    assert copies.unique == 1 and copies.most_copies == 200
    assert copies.self_bleu == pytest.approx(100) and copies.gzip_ratio > 20
    varied = diversity.measure([f"Word{i} other{i * 7} thing{i * 13} more{i}." for i in range(50)])
    assert varied.self_bleu < 40 and varied.distinct[0] == 1.0 and varied.near_duplicates == 0
    pairs = ["how do i boil an egg at home", "how do i boil an egg at homes", "where is rome"]
    assert diversity.near_questions(pairs) == [True, True, False]
    assert diversity.near_replies(pairs) == [True, True, False]
    empty = diversity.measure([])
    assert empty.texts == 0 and empty.self_bleu == 0


def test_self_bleu_agrees_with_sacrebleu() -> None:
    from sacrebleu.metrics import BLEU

    texts = [
        "i am luna made by the lab",
        "my name is luna",
        "luna is what they call me here",
        "i am a guide made by the lab in town",
    ]
    bleu = BLEU(
        effective_order=False, smooth_method="add-k", smooth_value=1, tokenize="none", force=True
    )
    mean = sum(bleu.sentence_score(t, [o for o in texts if o != t]).score for t in texts) / len(
        texts
    )
    ours = diversity.self_bleu([t.split() for t in texts])
    assert ours == pytest.approx(mean, abs=6)  # theirs has a brevity penalty, ours has none


@pytest.mark.parametrize(
    ("rows", "identity", "more", "level"),
    [
        (600, 150, {}, "ok"),
        (150, 150, {}, "error"),
        (200, 150, {}, "warning"),
        (600, 150, {"steps": 20}, "warning"),
        (600, 150, {"epochs": 40}, "warning"),
        (600, 0, {}, "warning"),
        (600, 150, {"largest_sentence_share": 0.2}, "warning"),
        (0, 0, {}, "error"),
    ],
)
def test_budget_advice(rows: int, identity: int, more: dict[str, Any], level: str) -> None:
    plan = budget.plan(rows, identity, **more)
    worst = max((a.level for a in plan.advice), key=["ok", "warning", "error"].index)
    assert worst == level
    assert all(a.why for a in plan.advice)


def test_budget_counts() -> None:
    plan = budget.plan(640, 160, rows_per_step=16, steps=200)
    assert plan.exposures == 5.0 and plan.identity_exposures == 800


def test_report_is_whole_and_json(assistant: Persona, bundled_model: Path) -> None:
    from dataclasses import asdict

    from core.inference.load import load_tokenizer
    from core.models.template import ChatTemplate

    tokenizer = load_tokenizer(bundled_model)
    rows = [
        *make(assistant, locales=["en"], limit=60),
        row("What is 2+2?", "4.", kind="rehearsal", id="g"),
        row("Tell me of tea.", "Tea is a", kind="rehearsal", id="c", cut=True),
    ]
    report = report_rows(
        rows,
        tokenizer,
        persona=assistant,
        probes=held_out(assistant, locales=["en"], seed=0),
        max_length=40,
    )
    template = ChatTemplate(tokenizer)
    exact = [template.encode_supervised(r.messages, r.loss, r.cut) for r in rows]
    assert report.lengths.tokens == sum(len(ids) for ids, _ in exact) + 2  # end of the cut row
    assert sum(report.loss_tokens.values()) == sum(
        sum(label != -100 for label in labels) for _, labels in exact
    )
    assert report.locales == {"en": {"identity": 60, "rehearsal": 2}}
    assert report.lengths.over_limit == sum(len(ids) > 40 for ids, _ in exact)
    assert sum(n for _, n in report.lengths.histogram) == len(rows)
    assert report.errors == [] and report.general_to_identity is not None
    assert 0.8 < report.slot_coverage["name"] <= 1
    planned = budget.for_dataset(report, rows_per_step=4, steps=31)
    assert (planned.rows, planned.identity_rows, planned.exposures) == (62, 60, 2.0)
    fsio.dump_json(asdict(report))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("Luna", ""),
        ("{{ $HOME:x }} 😀 עברית", ""),
        ("a<|im_end|>b", "control-token"),
        ("Ab\U00040000", "unwritable"),
    ],
)
def test_names_that_the_model_cannot_write_are_found(
    bundled_model: Path, name: str, rule: str
) -> None:
    from core.inference.load import load_tokenizer

    persona = parse_persona(PACK, overrides={"name": name})
    found = lint_slots(persona, load_tokenizer(bundled_model), ["en"])
    assert [f.rule for f in found] == ([rule] if rule else [])


@functools.cache
def _tokenizer(folder: Path) -> Any:
    from core.inference.load import load_tokenizer

    return load_tokenizer(folder)


@given(name=any_text, author=any_text)
@example(name="{{ $HOME:x }}", author='Nor "{"\n}😀')
@example(name="مرحبا ‏$(id)", author="a\r\nb\t\\n")
# Two of three drawn texts hold a character that this tokenizer cannot write: refused, not tested.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_slot_text_reaches_the_tokenizer_unchanged(
    bundled_model: Path, name: str, author: str
) -> None:
    """Slot -> row -> JSONL -> XTuner's own loader -> token ids -> text."""
    compat.importable()
    from xtuner.dataset.map_fns import openai_map_fn

    tokenizer = _tokenizer(bundled_model)
    persona = parse_persona(PACK, overrides={"name": name, "author": author})
    assume(not lint_slots(persona, tokenizer))  # told to the user before anything is made
    for made in identity_rows(persona, locales=["en"], seed=0, limit=3, multi_turn=0):
        loaded = json.loads(fsio.dump_json(made.to_row()))
        turn = openai_map_fn(loaded)["conversation"][0]
        assert turn["output"] == made.messages[1]["content"]
        assert name in turn["output"] or author in turn["output"]
        ids = tokenizer.encode(turn["output"], add_special_tokens=False)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == turn["output"]
