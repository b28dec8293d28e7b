"""A merge by hand in a browser: one button, a proof, an Ollama folder; it outlives a reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.weights import manifest
from tests.fakes import tiny_models as tiny
from tests.fakes.streamlit_server import StreamlitServer
from tests.fakes.trained_run import make_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]
_SLOW = 240_000  # ms; a proof on two busy cores


def test_merge_by_hand(workspace: Path, bundled_model: Path, chromium: Any) -> None:
    from playwright.sync_api import expect

    base = tiny.save_base(workspace / "models" / "tiny", tokenizer=bundled_model)
    make_run(workspace, base.path)
    with StreamlitServer(workspace) as server:
        page = chromium.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(_SLOW)
        page.goto(f"{server.url}/Merge")
        main = page.get_by_test_id("stMainBlockContainer")
        expect(main.get_by_text("What will be written")).to_be_visible(timeout=_SLOW)
        main.get_by_role("button", name="Merge and verify").click()
        expect(main.get_by_text("so far")).to_be_visible(timeout=_SLOW)
        page.reload()
        done = main.get_by_text("answers as base + adapter does")
        expect(done).to_be_visible(timeout=_SLOW)
        main.get_by_role("tab", name="Export").click()
        main.get_by_role("button", name="Export", exact=True).click()
        expect(main.get_by_text("ollama create")).to_be_visible(timeout=_SLOW)
    merged = next(workspace.glob("runs/*/export/merged"))
    manifest.verify(merged)
    manifest.verify(next(workspace.glob("runs/*/export/ollama")))
