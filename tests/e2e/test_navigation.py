"""The first thing that a new server is asked for is a bookmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_train_page import Server, browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_bookmark_opened_first_has_the_menu_and_keeps_its_address(workspace: Path) -> None:
    server = Server(workspace)
    try:
        with browser() as chromium:
            page = chromium.new_page()
            page.set_default_timeout(120_000)
            page.goto(f"{server.url}/Merge?merge=x")
            page.get_by_role("heading", name="Merge").wait_for()
            links = page.get_by_test_id("stSidebarNavLink")
            page.get_by_test_id("stSidebarNavLink").filter(has_text="Compare").wait_for()
            names = [text.splitlines()[-1] for text in links.all_inner_texts()]
            assert names == ["Dataset", "Train", "Merge", "Compare"]
            assert page.url.endswith("/Merge?merge=x")
    finally:
        server.kill()
