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
            links = page.get_by_test_id("stSidebar").get_by_test_id("stPageLink-NavLink")
            links.filter(has_text="Compare").wait_for()
            names = [text.splitlines()[-1] for text in links.all_inner_texts()]
            assert names == ["Start", "Dataset", "Train", "Merge", "Compare"]
            assert page.url.endswith("/Merge?merge=x")
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("address", "heading", "ends"),
    [
        ("Dataset", "Dataset", "/Dataset"),
        ("dataset", "Dataset", "/Dataset"),
        ("start", "Persona Workbench", "/"),
        ("merge?merge=x", "Merge", "merge=x"),
    ],
)
def test_other_spellings_of_an_address_open_the_page(
    workspace: Path, address: str, heading: str, ends: str
) -> None:
    server = Server(workspace)
    try:
        with browser() as chromium:
            page = chromium.new_page()
            page.set_default_timeout(120_000)
            page.goto(server.url)  # a new server knows no address but the files' before this
            page.get_by_role("heading", name="Persona Workbench").wait_for()
            page.goto(f"{server.url}/{address}")
            page.wait_for_url(f"**{ends}")
            page.get_by_role("heading", name=heading).wait_for()
            assert page.get_by_text("Page not found").count() == 0
            links = page.get_by_test_id("stSidebar").get_by_test_id("stPageLink-NavLink")
            assert links.count() == 5
    finally:
        server.kill()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_are_as_light_or_dark_as_the_system(workspace: Path, scheme: str) -> None:
    server = Server(workspace)
    try:
        with browser() as chromium:
            page = chromium.new_page(color_scheme=scheme)
            page.set_default_timeout(120_000)
            page.goto(f"{server.url}/Train")
            page.get_by_role("heading", name="Train").wait_for()
            colour = page.evaluate(
                "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
            )
            channels = [int(c) for c in colour.removeprefix("rgb(").rstrip(")").split(",")]
            assert (sum(channels) < 200) is (scheme == "dark"), colour
    finally:
        server.kill()
