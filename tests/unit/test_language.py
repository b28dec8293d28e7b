"""Every text of the pages has its Chinese, with the same holes, and nothing stands there unused."""

from __future__ import annotations

from string import Formatter

from core.language import catalog, formats
from tests.texts import Key, keys_of, page_keys, read

HELP = "write it in core/language/zh.po; `python -m tests.texts` sorts, adds and drops"


def holes(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def forms(entry: object) -> list[str]:
    return list(entry) if isinstance(entry, tuple) else [str(entry)]


def chinese() -> dict[Key, list[str]]:
    entries = {m.id: m.string for m in read(catalog.path_of("zh")) if m.id}
    return {tuple(k) if isinstance(k, list) else k: forms(v) for k, v in entries.items()}


def test_no_text_is_without_chinese() -> None:
    known = chinese()
    missing = [f"{at} {key!r}" for key, at in page_keys().items() if not any(known.get(key, []))]
    assert missing == [], HELP


def test_no_chinese_is_unused() -> None:
    assert sorted(set(chinese()) - set(page_keys()), key=str) == [], HELP


def test_the_chinese_has_the_holes_of_the_english() -> None:
    for key, found in chinese().items():
        english = key if isinstance(key, str) else key[1]
        for form in found:
            assert holes(form) == holes(english), (english, form)


def test_the_extraction_sees_what_is_marked() -> None:
    source = 'x = N_("A")\nt("B" if x else "C", n=1)\ntn("{n} row", "{n} rows", 2)\nf(t(x))'
    keys = [key for _, key in keys_of(source)]
    assert keys == ["A", "B", "C", ("{n} row", "{n} rows")]


def test_values_go_in_after_translation() -> None:
    assert catalog.translate("{time} left", "zh", time="{x}") == "还剩 {x}"
    assert catalog.translate("no such text {a:,}", "zh", a=1234) == "no such text 1,234"
    assert catalog.translate_count("{n} row", "{n} rows", 1, "en") == "1 row"
    assert catalog.translate_count("{n} row", "{n} rows", 1200, "en") == "1,200 rows"


def test_the_browser_chooses() -> None:
    asked = ["zh-CN", "zh", "zh_TW", "en-GB", "de", "", None]
    assert [catalog.nearest(a) for a in asked] == ["zh", "zh", "zh", "en", "en", "en", "en"]


def test_durations_are_as_fine_as_one_reads_them() -> None:
    spans = [0, 40, 75, 600, 3_570, 7_200, 7_500]
    assert [formats.duration(s, "en") for s in spans] == [
        "0 s", "40 s", "1 min 15 s", "10 min", "1 h", "2 h", "2 h 5 min",
    ]  # fmt: skip
    assert formats.duration(75, "zh") == "1 分 15 秒"
    assert [formats.time_left(s, "en") for s in (None, 70, 250)] == [
        "", "1 min 10 s left", "4 min left",
    ]  # fmt: skip
    assert formats.time_left(250, "zh") == "还剩 4 分钟"


def test_dates_follow_the_language() -> None:
    from zoneinfo import ZoneInfo

    utc = ZoneInfo("UTC")
    assert formats.moment(0, "zh", utc) == "1970年1月1日 00:00:00"
    assert formats.day(0, "en", utc) == "Jan 1, 1970"
    assert formats.clock(0, "zh", ZoneInfo("Asia/Shanghai")) == "08:00"
