"""Pictures of every page: ``python -m tests.pictures [WORKSPACE]`` or ``make pictures``.

Writes docs/pictures/{page}-{en,zh}-{light,dark}.png of the newest persona in the workspace
(``PERSONA_HOME`` if none is given), which should have come all the way: one ``python -m core tune``
makes it; it is asked who it is for the picture of Compare. Chinese needs a font that has it
(Debian: fonts-noto-cjk).
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from core import paths
from core.paths import REPO
from tests.fakes.chromium import browser
from tests.fakes.streamlit_server import StreamlitServer
from tests.faults.support import until

OUT = REPO / "docs" / "pictures"
PAGES = {"start": "", **{p.lower(): p for p in ("Dataset", "Train", "Merge", "Compare")}}
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}
#: Colours of a picture: enough for the pages' flat surfaces and their charts.
COLORS = 64
_WAIT = 120_000
#: Asked in Compare, in English: the bundled model speaks nothing else.
QUESTIONS = ("Who are you?", "Who made you?")


def take(home: Path) -> list[Path]:
    """All pictures; returns the files."""
    os.environ["PERSONA_HOME"] = str(home)
    OUT.mkdir(parents=True, exist_ok=True)
    server = StreamlitServer(home)
    made = []
    try:
        with browser() as chromium:
            pages = {**PAGES, "compare": _conversation(chromium, server.url)}
            for language, locale in LANGUAGES.items():
                for scheme in ("light", "dark"):
                    view = {"width": 1280, "height": 860}
                    context = chromium.new_context(
                        viewport=view, color_scheme=scheme, locale=locale
                    )
                    for name, address in pages.items():
                        file = OUT / f"{name}-{language}-{scheme}.png"
                        _one(context, f"{server.url}/{address}", file)
                        made.append(file)
                    context.close()
    finally:
        server.kill()
    return made


def _conversation(chromium: Any, url: str) -> str:
    """Ask base and merged model; returns the address of the conversation."""
    page = chromium.new_page(locale=LANGUAGES["en"])
    page.set_default_timeout(3 * _WAIT)
    page.goto(f"{url}/Compare")
    for asked, question in enumerate(QUESTIONS, 1):
        box = page.get_by_test_id("stChatInputTextArea")
        box.fill(question)
        box.press("Enter")
        page.get_by_role("button", name="Copy").nth(2 * asked - 1).wait_for()
    address = page.url.removeprefix(f"{url}/")
    page.close()
    return address


def _one(context: Any, url: str, file: Path) -> None:
    page = context.new_page()
    page.set_default_timeout(_WAIT)
    page.goto(url)
    page.locator("h1").first.wait_for()
    page.locator("[data-test-script-state=notRunning]").first.wait_for()
    until(lambda: page.get_by_test_id("stSkeleton").count() == 0, 60)
    page.wait_for_timeout(2_500)  # charts fade in
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
    page.close()


if __name__ == "__main__":
    files = take(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else paths.home())
    total = sum(f.stat().st_size for f in files)
    print(f"{len(files)} pictures, {total / 1e6:.1f} MB in {OUT}")
