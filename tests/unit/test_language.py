"""Every text of the pages has its Chinese, with the same holes, and nothing stands there unused."""

from __future__ import annotations

import ast
import re
import time
from functools import cache
from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.language import numbers, translations
from core.language.messages import captured, pieces_of, translate_message
from core.paths import REPO
from tests.texts import Key, core_keys, keys_of, page_keys, read

HELP = (
    "write it in core/language/zh.po or core.zh.po; `python -m tests.texts` sorts, adds and drops"
)
DOMAINS: list[translations.Domain] = ["pages", "core"]


@cache
def wanted(domain: translations.Domain) -> dict[Key, str]:
    return page_keys() if domain == "pages" else core_keys()


def holes(text: str) -> list[str]:
    return sorted({name for _, name, _, _ in Formatter().parse(text) if name is not None})


def forms(entry: object) -> list[str]:
    return list(entry) if isinstance(entry, tuple) else [str(entry)]


@cache
def chinese(domain: translations.Domain) -> dict[Key, list[str]]:
    entries = {m.id: m.string for m in read(translations.path_of("zh", domain)) if m.id}
    return {tuple(k) if isinstance(k, list) else k: forms(v) for k, v in entries.items()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_text_is_without_chinese(domain: translations.Domain) -> None:
    known = chinese(domain)
    missing = [f"{at} {key!r}" for key, at in wanted(domain).items() if not any(known.get(key, []))]
    assert missing == [], HELP


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_chinese_is_unused(domain: translations.Domain) -> None:
    assert sorted(set(chinese(domain)) - set(wanted(domain)), key=str) == [], HELP


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_chinese_has_the_holes_of_the_english(domain: translations.Domain) -> None:
    for key, found in chinese(domain).items():
        english = key if isinstance(key, str) else key[1]
        for form in found:
            assert holes(form) == holes(english), (english, form)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_chinese_is_set_as_chinese_is(domain: translations.Domain) -> None:
    """Full-width punctuation, and a space between Chinese and Latin words or digits."""
    han, latin = "[\u4e00-\u9fff]", "[A-Za-z0-9]"
    for found in chinese(domain).values():
        for form in found:
            shown = re.sub(r"`[^`]*`|\{\{.*?\}\}|:material/\w+:", "", form)
            assert not re.search(f"{han}[,;?!]|{han}:(?!//)", shown), form
            assert not re.search(f"{han}{latin}|{latin}{han}", shown), form
            assert "您" not in form, form
            # Markdown sees no end of bold between a full stop and a character.
            bold = form.split("**")[1::2]
            assert not any(text[-1] in "，。：；？！）”" for text in bold), form


def test_the_extraction_sees_what_is_marked() -> None:
    source = 'x = N_("A")\nt("B" if x else "C", n=1)\ntn("{n} row", "{n} rows", 2)\nf(t(x))'
    keys = [key for _, key in keys_of(source)]
    assert keys == ["A", "B", "C", ("{n} row", "{n} rows")]


def test_values_go_in_after_translation() -> None:
    assert translations.translate("{time} left", "zh", time="{x}") == "还剩 {x}"
    assert translations.translate("no such text {a:,}", "zh", a=1234) == "no such text 1,234"
    assert translations.translate_count("{n} row", "{n} rows", 1, "en") == "1 row"
    assert translations.translate_count("{n} row", "{n} rows", 1200, "en") == "1,200 rows"


def test_the_browser_chooses() -> None:
    asked = ["zh-CN", "zh", "zh_TW", "en-GB", "de", "", None]
    assert [translations.nearest(a) for a in asked] == ["zh", "zh", "zh", "en", "en", "en", "en"]


def test_durations_are_as_fine_as_one_reads_them() -> None:
    spans = [0, 40, 75, 600, 3_570, 7_200, 7_500]
    assert [numbers.duration(s, "en") for s in spans] == [
        "0 s", "40 s", "1 min 15 s", "10 min", "1 h", "2 h", "2 h 5 min",
    ]  # fmt: skip
    assert numbers.duration(75, "zh") == "1 分 15 秒"
    assert [numbers.time_left(s, "en") for s in (None, 70, 250)] == [
        "", "1 min 10 s left", "4 min left",
    ]  # fmt: skip
    assert numbers.time_left(250, "zh") == "还剩 4 分钟"


def test_dates_follow_the_language() -> None:
    from zoneinfo import ZoneInfo

    utc = ZoneInfo("UTC")
    assert numbers.moment(0, "zh", utc) == "1970年1月1日 00:00:00"
    assert numbers.day(0, "en", utc) == "Jan 1, 1970"
    assert numbers.clock(0, "zh", ZoneInfo("Asia/Shanghai")) == "08:00"


def test_a_message_of_core_is_known_by_its_text() -> None:
    assert translate_message("no row has a supervised token", "zh") == (
        "没有一条数据带有用于监督的 token"
    )
    said = translate_message("about 3.1 GB needed, 2.0 GB there", "zh")
    assert said == "约需 3.1 GB，现有 2.0 GB"
    assert translate_message("my own words", "zh") == "my own words"
    assert translate_message("about 3.1 GB needed, 2.0 GB there", "en").startswith("about")


def test_messages_within_a_message_and_several_in_one() -> None:
    because = "recall is 9/10 without a system turn and 1/10 under the default one"
    both = f"{because}; every gate passes"
    assert translate_message(both, "zh") == (
        "不带系统提示词时召回率为 9/10，使用默认系统提示词时为 1/10；全部达标"
    )
    near = translate_message(
        "no gate fails; just missed: Leak into general replies: 1/159, limit 0.02", "zh"
    )
    assert near == "没有未达标的指标；差一点达标：泄漏到通用回复：1/159，限值 0.02"


def test_a_record_of_yesterday_shows_in_chinese() -> None:
    """The error went through a file; the text is all that is left of it."""
    from core.training.spec import TrainSpec

    problems = TrainSpec(dataset="x", steps=5, warmup_steps=50).problems()
    kept = UserError.from_dict(problems[0].to_dict())
    assert translate_message(kept.what, "zh") == "预热 50 步放不进总共 5 步"


def test_every_message_of_core_is_recognised() -> None:
    for template in core_keys():
        assert isinstance(template, str)
        pieces = pieces_of(template)
        said = "".join(part + f"/a{n}" for n, part in enumerate(pieces[:-1])) + pieces[-1]
        shown = translate_message(said, "zh")
        told = chinese("core")[template][0]
        vague = sum(map(str.isalpha, "".join(pieces))) < 3
        assert vague or shown != said or told == template, said


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=5), st.lists(st.text(max_size=8)))
def test_what_stood_in_the_holes_comes_back(pieces: list[str], values: list[str]) -> None:
    """Whatever the pieces are, the text that they make with the captured values is the text."""
    values = (values + [""] * len(pieces))[: len(pieces) - 1]
    text = "".join(p + v for p, v in zip(pieces, [*values, ""], strict=True))
    found = captured(tuple(pieces), text)
    if len(pieces) > 1:
        assert found is not None
        assert "".join(p + v for p, v in zip(pieces, [*found, ""], strict=True)) == text


def test_a_long_hostile_text_takes_no_time() -> None:
    started = time.perf_counter()
    translate_message("a: " * 1_300, "zh")
    translate_message("cannot " * 500, "zh")
    assert time.perf_counter() - started < 2.0


_DRAWN = """
markdown caption write error warning info success subheader header title toast button
download_button expander popover metric checkbox toggle radio selectbox multiselect text_input
text_area number_input slider spinner status link_button badge segmented_control pills
file_uploader form_submit_button chat_input page_link
"""
#: Calls of Streamlit whose first argument, help, text or label a person reads.
DRAWN = set(_DRAWN.split())
#: Names, which are the same in every language; and paths and addresses as examples.
NAMES = {"Persona Workbench", "Language / 语言", "Top-p", "-badge["}
EXAMPLE = re.compile(r"(/|https?://|pages/)\S+|\w+\.(json|py)")


def raw_literals(source: str) -> list[tuple[int, str]]:
    """(line, text) of English sentences that a module gives to Streamlit as they are."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        if call.func.attr not in DRAWN or not ast.unparse(call.func.value).startswith("st"):
            continue
        named = [
            k.value for k in call.keywords if k.arg in {"help", "text", "label", "placeholder"}
        ]
        for node in [*call.args[:1], *named]:
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            for part in parts:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    shown = re.sub(r":[\w/]+:", "", part.value)
                    known = part.value in NAMES or EXAMPLE.fullmatch(part.value)
                    if re.search(r"[A-Za-z]{3}", shown) and not known:
                        found.append((part.lineno, part.value))
    return found


def test_the_pages_say_nothing_in_raw_english() -> None:
    found = {}
    for path in sorted((REPO / "pages").rglob("*.py")):
        name = str(path.relative_to(REPO / "pages"))
        raw = raw_literals(path.read_text(encoding="utf-8"))
        if raw:
            found[name] = raw
    assert found == {}, "t() of pages/_ui/shell/language.py"


def test_the_rule_sees_a_raw_sentence() -> None:
    source = (
        "st.info('Ready to start.')\nst.button(t('Start'))\nst.caption(f'{n} of them', help='Why')"
    )
    assert [text for _, text in raw_literals(source)] == ["Ready to start.", " of them", "Why"]
