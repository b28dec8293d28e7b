"""A Chinese browser sees no English on any page but names; the other language is a click away."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.jobs.state import State
from core.models import bundled
from tests.app.test_train_page import ended
from tests.e2e.test_newcomer import tiny_as_bundled
from tests.e2e.test_train_page import Server, browser, screenshot, settled
from tests.fakes.trained_run import make_run
from tests.unit.test_eval_metrics import card
from tests.unit.test_projects import run

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

PAGES = (
    "",
    "Dataset",
    "Dataset?view=rows",
    "Dataset?view=report",
    "Dataset?view=simulate",
    "Dataset?view=files",
    "Train?view=new",
    "Train?view=watch",
    "Train?view=history",
    "Merge",
    "Compare",
    "Compare?tab=batch",
    "Compare?tab=scorecard",
    "Compare?tab=transcripts",
)
#: Blocks of text that can be seen, and the headings of grids, which are drawn on a canvas.
#: Left out: code, icons, what models and people said, and the buttons of Streamlit's own.
LINES = """() => {
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const apart = 'pre,code,script,style,noscript,textarea,option,' +
    '[data-testid=stIconMaterial],[data-testid=stChatMessage],[data-testid=stToolbar],' +
    '[data-testid=stFileUploaderDropzone],[data-testid=InputInstructions]';
  while (walker.nextNode()) {
    let box = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || box.closest(apart)) continue;
    if (box.closest('canvas')) {
      const heading = box.closest('th,[role=columnheader]');
      if (heading) found.add(heading.textContent.trim());
      continue;
    }
    if (!box.checkVisibility({visibilityProperty: true})) continue;
    while (getComputedStyle(box).display === 'inline' && box.parentElement) box = box.parentElement;
    for (const line of (box.innerText ?? box.textContent).split('\\n')) found.add(line.trim());
  }
  return [...found];
}"""
UNFOLD = "document.querySelectorAll('details:not([open]) > summary').forEach((s) => s.click())"
#: Names, which are the same in every language: of this app, of other software and its settings, of
#: models, files and file formats, of units and measures, and what this workspace calls its things.
NAMES = re.compile(
    r"\b(?:Persona Workbench|English|Language / 语言|Luna(-data)?|luna(-data)?|kai|x"
    r"|Riverside Lab|SmolLM2-135M-Instruct|smollm2-135m-instruct|bundled"
    r"|Ollama|GGUF|Hugging Face|OpenAI messages|ShareGPT|Alpaca|UltraChat|XTuner"
    r"|Markdown|JSON|HTML|CSV|TSV|sha256|KL|Self-BLEU|Top-p|config\.py|scorecard\.json"
    r"|(float|bfloat|int)\d+|nf4|fp4|none|auto|xtuner chat)\b"
)


def english(page: Any) -> list[str]:
    """Lines with a word in Latin letters and none in Chinese."""
    lines = page.evaluate(LINES)
    spoken = [line for line in lines if re.search("[A-Za-z]{3}", line)]
    return sorted(
        line
        for line in spoken
        if not re.search("[\u4e00-\u9fff]", line) and re.search("[A-Za-z]{3}", NAMES.sub("", line))
    )


def workspace_with_everything(home: Path, tiny: Path) -> None:
    """A dataset, a finished and a failed training, and a scorecard with gates that fail."""
    tiny_as_bundled(home, tiny)
    trained = make_run(home, bundled.folder(), recommended=None)
    fsio.write_json(
        trained.exit,
        {"schema": 1, "state": "SUCCEEDED", "reason": "completed", "ended": 2.0, "elapsed": 1.0},
    )
    data = str(home / "datasets" / "luna-data")
    ended("train", State.FAILED, "oom_gpu", dataset=data, model="bundled")
    score = run("evaluate", {"base": "bundled", "dataset": data}, result={"verdict": "UNDERFIT"})
    fsio.write_json(score.root / "scorecard.json", card(recall=(80, 126), leak=(9, 323)))


def test_no_page_is_left_in_english(workspace: Path, tiny_llama: Path) -> None:
    workspace_with_everything(workspace, tiny_llama)
    server = Server(workspace)
    left: dict[str, list[str]] = {}
    try:
        with browser() as chromium:
            page = chromium.new_page(viewport={"width": 1440, "height": 1000}, locale="zh-CN")
            page.set_default_timeout(120_000)
            for address in PAGES:
                page.goto(f"{server.url}/{address}")
                page.get_by_test_id("stMainBlockContainer").get_by_role("heading").first.wait_for()
                settled(page)
                page.evaluate(UNFOLD)
                settled(page)
                assert page.get_by_test_id("stException").count() == 0, address
                screenshot(page, "zh-" + re.sub(r"\W+", "-", address or "Start"))
                if lines := english(page):
                    left[address] = lines
            assert left == {}
            _switches(page)
    finally:
        server.kill()


def _switches(page: Any) -> None:
    """To English by one click; a reload, which is a new session, keeps it."""
    page.get_by_role("heading", name="对比").first.wait_for()
    page.get_by_test_id("stSidebar").get_by_text("English", exact=True).click()
    page.get_by_role("heading", name="Compare", exact=True).wait_for()
    settled(page)
    page.reload()
    page.get_by_role("heading", name="Compare", exact=True).wait_for()
    assert "persona_language=en" in page.evaluate("document.cookie")
