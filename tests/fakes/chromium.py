"""A real Chromium, and what every test does with a page of the app."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

#: No request of the browser's own leaves the machine.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium by playwright; the test is skipped where one of them is missing."""
    sync_api = pytest.importorskip("playwright.sync_api")
    installed = shutil.which("chromium") or shutil.which("chromium-browser")
    if installed is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=installed, args=_FLAGS)
        yield chromium
        chromium.close()


def screenshot(page: Any, name: str) -> None:
    """Kept where PERSONA_SCREENSHOTS says; nowhere if it does not."""
    if folder := os.environ.get("PERSONA_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def settled(page: Any) -> None:
    """Wait until the script has run to its end, so that nothing drawn is stale."""
    page.wait_for_timeout(500)  # what was pressed has to reach the server first
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()


def nothing_over(page: Any) -> None:
    """No dialog stands over a page that has been drawn, as "Page not found" would."""
    settled(page)
    dialogs = page.get_by_role("dialog")
    assert dialogs.count() == 0, f"{page.url}: {dialogs.all_inner_texts()}"
