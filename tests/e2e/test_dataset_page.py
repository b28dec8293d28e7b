"""The Dataset page in a real browser: fill, build, reload, edit the grid, undo, import, export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from core.data import drafts, store
from tests.fakes.streamlit_server import StreamlitServer

pytestmark = [pytest.mark.browser, pytest.mark.slow]
_SLOW = 120_000  # ms; importing torch on two busy cores


def open_page(
    chromium: Any, server: StreamlitServer, query: str = "", width: int = 1440
) -> tuple[Any, Any, list[str]]:
    """(page, its main block, addresses asked for outside the server)."""
    page = chromium.new_page(viewport={"width": width, "height": 1200}, accept_downloads=True)
    page.set_default_timeout(_SLOW)
    outside: list[str] = []
    page.on(
        "request",
        lambda r: r.url.startswith((server.url, "data:", "blob:", "ws")) or outside.append(r.url),
    )
    page.goto(f"{server.url}/Dataset{query}")
    main = page.get_by_test_id("stMainBlockContainer")
    main.get_by_role("radiogroup").or_(main.get_by_text("Persona")).first.wait_for()
    return page, main, outside


def type_into_grid(page: Any, main: Any, row: int, column: int, text: str) -> None:
    """Click a cell of the grid (drawn on a canvas) and type over it; 35 px a line.

    A click into a grid that is still being laid out goes nowhere, so it is made again until the
    editor of the cell is there.
    """
    grid = main.get_by_test_id("stDataFrame")
    page.locator("[data-test-script-state=notRunning]").first.wait_for()
    editor = page.locator("textarea.gdg-input")
    for _ in range(20):
        grid.scroll_into_view_if_needed()
        box = grid.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + column, box["y"] + 35 * (row + 1) + 17)
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
        if editor.is_visible():
            break
    editor.fill(text)
    assert editor.input_value() == text
    editor.press("Enter")


def test_from_a_pack_to_an_edited_version(workspace_with_model: Path, chromium: Any) -> None:
    drafts.save_form({"rehearsal_ratio": 0.0, "near_miss_ratio": 0.0, "max_rows": 12})
    with StreamlitServer(workspace_with_model) as server:
        page, main, outside = open_page(chromium, server)
        name = main.get_by_label("Name *")
        name.fill("Mira")
        name.press("Enter")
        main.get_by_text(re.compile(r"\bMira\b")).first.wait_for()
        author = main.get_by_label("Made by *")
        author.fill("<img src=x onerror=alert(1)> ![p](http://example.invalid/p.png)")
        author.press("Enter")
        main.get_by_text("example.invalid").first.wait_for()
        page.reload()
        main.get_by_label("Name *").wait_for()
        assert main.get_by_label("Name *").input_value() == "Mira"
        assert outside == []

        main.get_by_label("Name of the dataset").fill("mira")
        main.get_by_label("Name of the dataset").press("Enter")
        main.get_by_role("button", name="Build dataset").click()
        main.get_by_text("Mira, build 1").first.wait_for()
        page.reload()
        main.get_by_text("is saved as").wait_for()
        main.get_by_role("button", name="Look at it").click()
        main.get_by_text("12 conversations · no unsaved edits").wait_for()
        type_into_grid(page, main, 0, 500, "Edited reply.")
        main.get_by_text("12 conversations · 1 unsaved edit, kept on disk").wait_for()
        page.reload()
        main.get_by_text("12 conversations · 1 unsaved edit, kept on disk").wait_for()
        main.get_by_role("button", name="Undo").click()
        main.get_by_text("no unsaved edits").wait_for()
        main.get_by_role("button", name="Redo").click()
        main.get_by_text("1 unsaved edit").wait_for()
        main.get_by_role("button", name="Save as version").click()
        page.get_by_role("button", name="Save", exact=True).click()
        main.get_by_text("12 conversations · no unsaved edits").wait_for()
        assert "dataset=mira-2" in page.url
        assert outside == []
    changed = [r for a, r in zip(store.rows("mira"), store.rows("mira-2"), strict=True) if a != r]
    assert [m["content"] for m in changed[0].messages].count("Edited reply.") == 1
    assert len(changed) == 1
    assert drafts.load_form()["own"]["name.en"] == "Mira"


def test_import_and_export_in_a_narrow_window(
    workspace_with_model: Path, tmp_path: Path, chromium: Any
) -> None:
    good = {
        "conversations": [{"from": "human", "value": "Hi {{x}}"}, {"from": "gpt", "value": "Hello"}]
    }
    upload = tmp_path / "talks.jsonl"
    upload.write_text("\n".join(json.dumps(r) for r in (good, {"x": 1}, good)))
    with StreamlitServer(workspace_with_model) as server:
        page, main, outside = open_page(chromium, server, "?view=files", width=900)
        main.locator("input[type=file]").set_input_files(str(upload))
        main.get_by_text("1 row left out").wait_for()
        main.get_by_role("button", name="Save as a new dataset").click()
        page.get_by_role("button", name="Save", exact=True).click()
        main.get_by_text("2 conversations · no unsaved edits").wait_for()
        page.goto(f"{server.url}/Dataset?view=files&dataset=talks")
        main.get_by_text("train.jsonl").wait_for()
        with page.expect_download() as download:
            main.get_by_role("button", name="Download").click()
        overflow = page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        assert not overflow
        assert outside == []
        text = Path(download.value.path()).read_text(encoding="utf-8")
    first = json.loads(text.splitlines()[0])
    assert first["messages"][0] == {"role": "user", "content": "Hi {{x}}"}
