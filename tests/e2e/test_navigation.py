"""Addresses: the first thing that a new server is asked for, other spellings, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.chromium import nothing_over
from tests.fakes.streamlit_server import StreamlitServer

pytestmark = [pytest.mark.browser, pytest.mark.slow]
_SLOW = 120_000  # ms


@pytest.mark.parametrize(
    "address", ["Merge?merge=x", "merge?merge=x", "compare"], ids=["ours", "small", "bare"]
)
def test_a_bookmark_opened_first_has_the_menu_and_keeps_its_address(
    workspace: Path, chromium: Any, address: str
) -> None:
    path, _, query = address.partition("?")
    with StreamlitServer(workspace) as server:
        page = chromium.new_page()
        page.set_default_timeout(_SLOW)
        page.goto(f"{server.url}/{address}")
        page.get_by_role("heading", name=path.capitalize(), exact=True).wait_for()
        links = page.get_by_test_id("stSidebar").get_by_test_id("stPageLink-NavLink")
        links.filter(has_text="Compare").wait_for()
        names = [text.splitlines()[-1] for text in links.all_inner_texts()]
        assert names == ["Start", "Dataset", "Train", "Merge", "Compare"]
        assert page.url == f"{server.url}/{path.capitalize()}{'?' if query else ''}{query}"
        nothing_over(page)
        page.reload()
        page.get_by_role("heading", name=path.capitalize(), exact=True).wait_for()
        nothing_over(page)
        page.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[str]:
    """A server that was asked for its first page: it knows no address but the files' before."""
    with StreamlitServer(tmp_path_factory.mktemp("workspace")) as server:
        page = chromium.new_page()
        page.set_default_timeout(_SLOW)
        page.goto(server.url)
        page.get_by_role("heading", name="Persona Workbench").wait_for()
        page.close()
        yield server.url


@pytest.mark.parametrize(
    ("address", "heading", "ends"),
    [
        ("Dataset", "Dataset", "/Dataset"),
        ("dataset", "Dataset", "/Dataset"),
        ("train", "Train", "/Train"),
        ("compare?tab=batch", "Compare", "/Compare?tab=batch"),
        ("Start", "Persona Workbench", "/"),
        ("start?new=1", "Persona Workbench", "/?new=1"),
        ("merge?merge=x", "Merge", "merge=x"),
    ],
)
def test_other_spellings_of_an_address_open_the_page(
    url: str, chromium: Any, address: str, heading: str, ends: str
) -> None:
    page = chromium.new_page()
    page.set_default_timeout(_SLOW)
    page.goto(f"{url}/{address}")
    page.wait_for_url(f"**{ends}")
    page.get_by_role("heading", name=heading).wait_for()
    nothing_over(page)
    links = page.get_by_test_id("stSidebar").get_by_test_id("stPageLink-NavLink")
    links.nth(4).wait_for()
    assert links.count() == 5
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_are_as_light_or_dark_as_the_system(url: str, chromium: Any, scheme: str) -> None:
    page = chromium.new_page(color_scheme=scheme)
    page.set_default_timeout(_SLOW)
    page.goto(f"{url}/Train")
    page.get_by_role("heading", name="Train").wait_for()
    colour = page.evaluate(
        "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
    )
    channels = [int(c) for c in colour.removeprefix("rgb(").rstrip(")").split(",")]
    assert (sum(channels) < 200) is (scheme == "dark"), colour
    page.close()
