"""Packs: what is refused, with which line; slots as data; the shipped packs."""

from __future__ import annotations

import copy
import re
import textwrap
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core import paths
from core.data import build
from core.data.filters import PromptFilter
from core.data.generation import held_out, identity_rows, near_miss_prompts, split
from core.data.pack_lint import lint_pack
from core.errors import UserError, UserErrors
from core.persona import templating
from core.persona.persona import Persona, list_packs, load_persona, parse_persona
from core.probes.scorer import score_reply
from core.text.normalize import unmatchable

PACK = """\
schema: persona/1
persona: {id: tiny, locales: [en]}
slots:
  name: {text: {en: Luna}, aliases: [Lunna], required: true}
  author: {text: {en: Riverside Lab}, required: true}
  role: {text: {en: assistant}}
  skills: {items: {en: [cooking, sailing, chess, knitting]}, pick: 2}
  base: {text: {en: ""}, disclose: never}
params: {other: {en: [ChatGPT, Claude]}}
forbid_self: [ChatGPT, Claude, River]
user_styles: [plain, terse, typo]
intents:
  who:
    family: identity
    user:
      en:
        - {c: who_a, t: ["Who are you?", "So who are you?"]}
        - {c: who_b, t: ["Tell me who you are."]}
        - {c: who_c, t: ["Whom am I talking to?"]}
    reply:
      en: ["I'm {{ name }}, {{ role | a }} by {{ author }}.", "{{ name }} it is."]
    must: [name]
    next: [{to: deny, p: 0.9}, {to: END, p: 0.1}]
  deny:
    family: denial
    user: {en: [{c: deny_a, t: ["Are you {{ other }}?"]}, {c: deny_b, t: ["Is this {{ other }}?"]}]}
    reply: {en: ["No, I'm {{ name }}.", "I'm not {{ other }}, {{ author }} made me."]}
    must_any: [name, author]
    next: [{to: who, p: 1}]
  other:
    family: near_miss
    user: {en: [{c: near_a, t: ["Who wrote Faust?"]}]}
    reply: BASE
"""
#: Text that every store and loader must carry: no lone surrogates, not blank.
any_text = st.text(min_size=1, max_size=60).filter(lambda t: not unmatchable(t))


@pytest.fixture(scope="module", params=[p.stem for p in list_packs(paths.TEMPLATES)])
def shipped(request: pytest.FixtureRequest) -> Persona:
    return load_persona(paths.TEMPLATES / f"{request.param}.yaml")


def test_shipped_packs_have_what_the_studio_promises(shipped: Persona) -> None:
    assert shipped.locales == ["en", "zh"]
    families = {i.family for i in shipped.intents.values()}
    assert {"denial", "inducement", "near_miss", "ability", "limits"} <= families
    assert {"name", "author", "role", "skills", "limits", "tone", "base"} <= set(shipped.pack.slots)
    for locale in shipped.locales:
        trained = [i for i in shipped.intents.values() if i.trained]
        assert len(trained) >= 12
        assert all(len(i.user[locale]) >= 3 for i in trained)
        near = near_miss_prompts(shipped, locale, 0)
        suites = build.suite_prompts([locale])
        assert len(build.near_miss(shipped, [locale], 0, 10_000, suites)[locale]) >= 320
        assert len(near) - len([p for p in near if not PromptFilter(suites).reason(p)]) <= 3
    assert [f for f in lint_pack(shipped) if f.level != "note"] == []


@pytest.mark.parametrize("locale", ["en", "zh"])
def test_every_language_has_enough_held_out_and_enough_training(
    shipped: Persona, locale: str
) -> None:
    for seed in range(5):
        probes = held_out(shipped, locales=[locale], seed=seed)
        assert len(probes) >= 140
        assert {p.intent for p in probes} == {k for k, i in shipped.intents.items() if i.trained}
        rows = list(identity_rows(shipped, locales=[locale], seed=seed))
        assert len(rows) >= 100
        asked = {m["content"] for r in rows for m in r.messages if m["role"] == "user"}
        assert not asked & {p.messages[0]["content"] for p in probes}


def test_words_added_to_a_language_move_nothing_in_another(shipped: Persona) -> None:
    fewer = copy.deepcopy(shipped)
    english = {c.c for i in shipped.intents.values() for c in i.user["en"]}
    for intent in fewer.intents.values():
        intent.user["zh"] = [c for c in intent.user["zh"] if c.c in english]
    for seed in range(3):
        held = split(shipped, seed).held_out
        assert held & english == split(fewer, seed).held_out & english
        for cluster in held - english:
            assert cluster not in split(fewer, seed).held_out


def test_replies_are_short(shipped: Persona) -> None:
    for row in identity_rows(shipped, locales=["en"], seed=1, multi_turn=0):
        assert len(row.messages[1]["content"].split()) <= 30, row.messages[1]["content"]


def test_overrides_fill_slots_and_drop_old_aliases() -> None:
    persona = parse_persona(
        PACK, overrides={"name": "Nova", "skills": "a; b ;c", "author.en": "Qu"}
    )
    assert persona.slot("name", "en") == "Nova"
    assert persona.aliases("name") == ["Nova"]
    assert persona.items("skills", "en") == ["a", "b", "c"]
    assert parse_persona(PACK, overrides={"name.aliases": "x1;x2"}).aliases("name") == [
        "Luna",
        "x1",
        "x2",
    ]


def test_forbidden_leaves_the_persona_its_own_names() -> None:
    persona = parse_persona(PACK)
    assert persona.forbidden == ["ChatGPT", "Claude"]  # "River" is part of Riverside Lab
    assert parse_persona(PACK, overrides={"author": "Claude & Sons"}).forbidden == [
        "ChatGPT",
        "River",
    ]


def test_disclosure_decides_about_the_base() -> None:
    text = PACK.replace("forbid_self: [ChatGPT,", "forbid_self: [SmolLM, ChatGPT,").replace(
        "    must: [name]\n",
        '    disclosed: {en: ["I am {{ name }}, tuned from {{ base }}."]}\n    must: [name]\n',
    )
    shy = parse_persona(text, overrides={"base": "SmolLM"})
    open_ = parse_persona(text, overrides={"base": "SmolLM", "base.disclose": "always"})
    assert "SmolLM" in shy.forbidden and "SmolLM" not in open_.forbidden
    who = open_.intents["who"]
    assert open_.replies(who, "en") == ["I am {{ name }}, tuned from {{ base }}."]
    assert len(shy.replies(shy.intents["who"], "en")) == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{{ author }} made me", "{{ maker }} made me", "unknown slot 'maker'"),
        ("{{ name }} it is.", "It is me.", "lacks its 'must' slot 'name'"),
        ("en: Luna}", 'en: ""}', "'name' has no value"),
        ("slots:", "slots: ]", "not valid YAML"),
        ("deny_b", "who_a", "'who_a' is used before"),
        ("Is this {{ other }}?", "Who are you", "stands in the clusters"),
        ("{to: who, p: 1}", "{to: nobody, p: 1}", "leads to 'nobody'"),
        ("family: denial", "family: refusal", "Input should be"),
        ("must: [name]", "mist: [name]", "unknown field 'mist'"),
        ('"So who are you?"', "no", "Input should be a valid string"),
        ("persona/1", "persona/9", "persona/1"),
        ("role: {text: {en: assistant}}", "name: {text: {en: X}}", "written twice"),
        ("text: {en: assistant}", "text: &x {en: assistant}", "anchors"),
        ("{{ name }} it is.", "{% for i in [1] %}{{ name }}{% endfor %}", "not allowed"),
        ("{{ name }} it is.", "{{ name * 1000000000 }}", "not allowed"),
        ("{{ name }} it is.", "{{ name.__class__ }}", "not allowed"),
        ("{{ name }} it is.", "{{ name | upper }}", "upper"),
        ("{{ name }} it is.", "{{ name", "not a valid sentence"),
    ],
)
def test_faults_are_told_with_line_and_fix(old: str, new: str, words: str) -> None:
    assert old in PACK
    with pytest.raises(UserError) as caught:
        parse_persona(PACK.replace(old, new, 1), "my.yaml")
    problems = caught.value.problems if isinstance(caught.value, UserErrors) else [caught.value]
    hit = [p for p in problems if words in str(p)]
    assert hit, str(caught.value)
    line = PACK[: PACK.index(old)].count("\n") + 1
    assert hit[0].where.split()[0] == f"my.yaml:{line}"
    assert hit[0].fix or words == "persona/1"


def test_all_faults_come_at_once() -> None:
    with pytest.raises(UserErrors) as caught:
        parse_persona(
            PACK,
            overrides={
                "nmae": "x",
                "author": " ",
                "base.disclose": "maybe",
                "name.fr": "y",
                "role": "\ud800",
            },
        )
    assert len(caught.value.problems) == 5


JUNK = [b"", b"\xff\xfe", b"- 1\n", b"a: " + b"[" * 5000, b"x" * 2_100_000]


@pytest.mark.parametrize("raw", JUNK)
def test_junk_files(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "junk.yaml"
    path.write_bytes(raw)
    with pytest.raises(UserError):
        load_persona(path)


def test_missing_file_and_bom(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_persona(tmp_path / "none.yaml")
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + PACK.replace("\n", "\r\n").encode())
    assert load_persona(path).slot("name", "en") == "Luna"


EXTENDING = """\
schema: persona/1
extends: assistant
persona: {id: mini, locales: [en]}
slots:
  name: {text: {en: Rosa}}
intents:
  who:
    reply:
      en: ["{{ name }}!"]
  base: null
"""


def test_extends_merges_and_points_to_the_right_file() -> None:
    persona = parse_persona(EXTENDING)
    assert persona.pack.intents["who"].reply == {"en": ["{{ name }}!"]}
    assert "base" not in persona.intents and persona.slot("author", "en") == "Riverside Lab"
    assert all(s.to != "base" for i in persona.intents.values() for s in i.next)
    assert "zh" not in persona.dump()
    with pytest.raises(UserErrors, match=r"persona\.yaml:9 intents\.who\.reply\.en\.0"):
        parse_persona(EXTENDING.replace("{{ name }}!", "{{ nobody }}"))
    # What this file broke in a sentence of the other is told with the other's line.
    with pytest.raises(UserErrors, match=r"assistant\.yaml:\d+ intents\.role"):
        parse_persona(EXTENDING + "  role: {must: [skills]}\n")
    with pytest.raises(UserError, match="there is no pack"):
        parse_persona(EXTENDING.replace("assistant", "../secret"))
    with pytest.raises(UserError, match="extends a pack itself"):
        parse_persona(EXTENDING.replace("assistant", "tutor"))


def test_the_readme_example_is_a_pack() -> None:
    blocks = (paths.TEMPLATES / "README.md").read_text("utf-8").split("```yaml\n")[1:]
    first, who, season = [textwrap.dedent(b.split("```")[0]) for b in blocks]
    persona = parse_persona(first + who + textwrap.indent(season, "  "))
    assert persona.id == "gardener" and "season" in persona.intents
    assert len(held_out(persona, locales=["en"], seed=0)) > 100


@given(name=any_text, author=any_text)
@example(name="{{ $HOME:x }}", author="{% for %}")
@example(name="quo\"te's\\", author="line\nbreak\r\nand\ttab")
@example(name="עברית ‏{{name}}", author="😀 {{ author }} \u2028\x85")
@settings(max_examples=150, deadline=None)
def test_slot_text_is_data(name: str, author: str) -> None:
    persona = parse_persona(PACK, overrides={"name": name, "author": author})
    reply = templating.render("I'm {{ name }} by {{ author }}.", persona.values("en", Random(0)))
    ended = author.rstrip("\"'”’)）」』").endswith(tuple(".!?…。！？"))
    assert reply == f"I'm {name} by {author}" + "." * (not ended)
    again = parse_persona(persona.dump())
    assert again.pack == persona.pack
    for row in identity_rows(persona, locales=["en"], seed=0, limit=4):
        for message in row.messages:
            if message["role"] == "assistant":
                # An article that begins a sentence gets a capital, and nothing else changes.
                reply = message["content"].casefold()
                assert name.casefold() in reply or author.casefold() in reply


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_a_sentence_is_refused_or_renders_short(source: str) -> None:
    if templating.check(source, ["name"]) is None and source:
        assert len(templating.render(source, {"name": "x"})) <= len(source) + 80


@given(st.text(alphabet="{}%| namefori1*+()[]'\"_.", max_size=40))
@settings(max_examples=300, deadline=None)
def test_jinja_like_junk_never_runs_long(source: str) -> None:
    if templating.check(source, ["name", "a"]) is None:
        templating.render(source, {"name": "x", "a": "y"})


def test_rendered_length_is_capped() -> None:
    with pytest.raises(UserError, match="grew"):
        templating.render("{{ name }}{{ name }}", {"name": "x" * 15_000})
    assert "2,000" in str(templating.check("x" * 3_000, []))


def test_an_article_that_begins_a_sentence_gets_a_capital() -> None:
    values = {"author": "the Sundial Collective", "name": "iris"}
    assert templating.render("{{ author }} made me.", values) == "The Sundial Collective made me."
    text = "I'm {{ name }}. {{ author }} made me, and {{ author }} runs me."
    assert (
        templating.render(text, values)
        == "I'm iris. The Sundial Collective made me, and the Sundial Collective runs me."
    )
    assert templating.render("{{ name }}.", values) == "iris.", "a name keeps its own spelling"


def test_a_weight_asks_an_intent_more_often() -> None:
    def share(weight: str) -> float:
        field = "    must_any: [name, author]\n"
        pack = parse_persona(PACK.replace(field, f"{field}    weight: {weight}\n"))
        rows = list(identity_rows(pack, locales=["en"], seed=0, limit=8, multi_turn=0))
        return sum(r.intent == "deny" for r in rows) / len(rows)

    assert share("8") > share("1")


def test_an_empty_required_slot_is_one_problem() -> None:
    with pytest.raises(UserError) as caught:
        parse_persona(PACK, overrides={"name": ""})
    found = caught.value.problems if isinstance(caught.value, UserErrors) else [caught.value]
    assert len(found) == 1 and "'name' has no value" in str(found[0])


def test_english_articles_and_lists() -> None:
    assert templating.article("AI guide") == "an AI guide"
    assert templating.article("university tutor") == "a university tutor"
    assert templating.article("the boss") == "the boss"
    assert templating.words(["a", "b", "c"]) == "a, b and c"
    assert templating.words(["甲", "乙"]) == "甲、乙"
    assert templating.render("I can't {{ x | either }}.", {"x": ["a", "b"]}) == "I can't a or b."


def test_split_keeps_both_sides_in_every_locale(shipped: Persona) -> None:
    for seed in range(10):
        sides = split(shipped, seed)
        assert not sides.train & sides.held_out
        for intent in shipped.intents.values():
            for locale in shipped.locales if intent.trained else ():
                names = {c.c for c in intent.user[locale]}
                assert names & sides.train and names & sides.held_out


@pytest.mark.parametrize("slot", ["name", "author"])
@pytest.mark.parametrize("value", ["X", "🦊", "宇", "it", "!!"])
def test_names_that_no_reply_can_be_scored_by_are_refused_at_once(slot: str, value: str) -> None:
    with pytest.raises(UserError, match="cannot be recognised") as error:
        load_persona(paths.TEMPLATES / "assistant.yaml", {slot: value})
    assert f"slots.{slot}" in str(error.value)
    # The way out that the message names gets past it.
    load_persona(paths.TEMPLATES / "assistant.yaml", {slot: "Jo"})
    with pytest.raises(UserError, match="leave this spelling out of the aliases"):
        load_persona(paths.TEMPLATES / "assistant.yaml", {f"{slot}.aliases": "Mira;X"})
    load_persona(paths.TEMPLATES / "assistant.yaml", {f"{slot}.aliases": "Mira"})
    # Replies would be trained with the value, so an alias that can be told apart saves nothing.
    long = {slot: value, f"{slot}.aliases": "Mister Longname"}
    with pytest.raises(UserError, match="cannot be recognised"):
        load_persona(paths.TEMPLATES / "assistant.yaml", long)


def test_a_name_of_two_letters_is_scored_as_a_word() -> None:
    persona = load_persona(paths.TEMPLATES / "assistant.yaml", {"name": "Jo", "name.zh": "小乔"})
    probe = next(p for p in held_out(persona, locales=["en"], seed=0) if p.must == [["Jo", "小乔"]])
    assert score_reply("I'm Jo, your assistant.", probe).label == "HIT"
    assert score_reply("I'm Joanna, no joke.", probe).label == "MISS"


ENDED = ["Acme Inc.", "Yahoo!", "Who?", "Toys “R” Us.", "Wow!!", "公司。", "好！", "Etc...", "…"]


@pytest.mark.parametrize("value", ENDED)
def test_no_end_mark_comes_twice(shipped: Persona, value: str) -> None:
    slots = {"name": f"Mira {value}", "author": f"Lab {value}"}
    persona = load_persona(paths.TEMPLATES / f"{shipped.id}.yaml", slots)
    wanted = re.compile(rf"{re.escape(value)}[.!。！…]|{re.escape(value)}[?？](?<=[?？][?？])")
    rows = list(identity_rows(persona, locales=persona.locales, seed=0, limit=150))
    replies = [m["content"] for r in rows for m in r.messages if m["role"] == "assistant"]
    assert sum(value in reply for reply in replies) > 50
    assert [reply for reply in replies if wanted.search(reply)] == []
    # The mark that was dropped is the sentence's own: the value stays as it is.
    for row in rows:
        for slot in persona.intents[row.intent].must if row.intent in persona.intents else ():
            assert any(a in row.messages[-1]["content"] for a in persona.aliases(slot))


def test_a_question_keeps_its_mark() -> None:
    sentence = "Is it {{ author }}? By {{ author }}."
    assert templating.render(sentence, {"author": "Acme Inc."}) == "Is it Acme Inc.? By Acme Inc."
    listed = {"a": ["I sing.", "I dance."]}
    assert templating.render("{{ a | words }}.", listed) == "I sing. and I dance."
