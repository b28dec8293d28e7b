"""Every page in a real browser: nothing typed or chosen is lost, and no English is left in Chinese.

One app and one browser for the file; a workspace with a dataset, runs and a scorecard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.jobs.state import State
from core.language.translations import translate
from core.models import bundled
from tests.app.test_train_page import ended
from tests.e2e.test_newcomer import tiny_as_bundled
from tests.fakes.chromium import nothing_over, screenshot, settled
from tests.fakes.streamlit_server import StreamlitServer
from tests.fakes.trained_run import make_run
from tests.faults.support import until
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
    "Merge?view=new",
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
    '[translate=no],[role=img],[data-testid=stChatMessage],[data-testid=stToolbar],' +
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
    r"|Skip to main content|Markdown|JSON|HTML|CSV|TSV|sha256|KL|Self-BLEU|Top-p"
    r"|json|config\.py|scorecard\.json|DeepSpeed|LoRA|alpha|dropout|[a-z]+/[\w*.]+|MANIFEST"
    r"|(float|bfloat|int)\d+|nf4|fp4|none|auto|xtuner chat)\b"
)
#: px the page is wider than its window, which a telephone would have to be pushed about for.
SIDEWAYS = """() => {
  const box = document.querySelector(
    '[data-testid=stMain], [data-testid=stAppScrollToBottomContainer]');
  return box.scrollWidth - box.clientWidth;
}"""
#: What is chosen in a box too narrow for it; the sidebar of a narrow window is folded.
CUT = """() => [...document.querySelectorAll('[data-testid=stSelectbox] input')]
  .filter((box) => !box.closest('[data-testid=stSidebar]'))
  .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.value)"""
FOCUSED = """() => {
  const at = document.activeElement;
  const said = at.innerText || '';  // of the page itself it would be everything
  return at.getAttribute('aria-label') || (said.length < 100 ? said : '');
}"""


@dataclass
class App:
    """The server, its workspace, and the trained run in it."""

    url: str
    home: Path
    run: str


@pytest.fixture(scope="module")
def app(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    home = tmp_path_factory.mktemp("pages") / "workspace"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_HOME", str(home))
        patch.setenv("HF_HUB_OFFLINE", "1")
        trained = workspace_with_everything(home, tiny_llama)
        with StreamlitServer(home) as server:
            yield App(server.url, home, trained)


def workspace_with_everything(home: Path, tiny: Path) -> str:
    """A dataset, a finished and a failed training, and a scorecard with gates that fail."""
    tiny_as_bundled(home, tiny)
    data = str(home / "datasets" / "luna-data")
    ended("train", State.FAILED, "oom_gpu", dataset=data, model="bundled")
    score = run("evaluate", {"base": "bundled", "dataset": data}, result={"verdict": "UNDERFIT"})
    fsio.write_json(score.root / "scorecard.json", card(recall=(80, 126), leak=(9, 323)))
    trained = make_run(home, bundled.folder(), recommended=None)
    row = {"step": 60, "max_steps": 60, "loss": 1.0, "lr": 1e-3, "type": "metric"}
    fsio.write_jsonl(trained.metrics, [{**row, "step": step, "seq": step} for step in range(1, 61)])
    values = {"kl": 0.1, "ppl_ratio": 0.9, "margin.en": 0.4, "ahead.en": 9, "pairs.en": 10}
    figures = {"event": "figures", "t": 1.0, "values": values}
    fsio.write_jsonl(trained.events, [{**figures, "seq": s, "step": s} for s in (30, 60)])
    fsio.write_json(
        trained.exit,
        {"schema": 1, "state": "SUCCEEDED", "reason": "completed", "ended": 2.0, "elapsed": 1.0},
    )
    return trained.root.name


@dataclass
class Visit:
    """Somebody at the pages with a keyboard only; what goes wrong in the browser is kept."""

    page: Any
    app: App
    language: str
    faults: list[str] = field(default_factory=list)

    def say(self, text: str, **values: object) -> str:
        """A text of the pages as it is read, without its colour."""
        said = translate(text, self.language, **values)
        return re.sub(r":red\[(.*)\]", r"\1", said)

    def open(self, address: str) -> None:
        self.page.goto(f"{self.app.url}/{address}")
        self.drawn()

    def drawn(self) -> None:
        """The page is there, nothing before it, no exception, and no wider than the window."""
        self.page.get_by_test_id("stMainBlockContainer").get_by_role("heading").first.wait_for()
        nothing_over(self.page)
        until(lambda: self.page.get_by_test_id("stSkeleton").count() == 0, 60)
        assert self.page.get_by_test_id("stException").count() == 0
        assert self.page.evaluate(SIDEWAYS) <= 1, self.page.url
        assert self.page.evaluate(CUT) == [], self.page.url

    def go_to(self, label: str) -> None:
        """Tab after Tab until what is called so has the focus."""
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if label in self.page.evaluate(FOCUSED):
                return
        raise AssertionError(f"no way to {label!r} by keyboard on {self.page.url}")

    def press(self, label: str) -> None:
        self.go_to(label)
        self.page.keyboard.press("Enter")

    def switch(self, first: str, to: str) -> None:
        """Within a row of choices, of which Tab reaches the first and arrows the others."""
        self.go_to(first)
        for _ in range(5):
            self.page.keyboard.press("ArrowRight")
            if to in self.page.evaluate(FOCUSED):
                break
        self.page.keyboard.press("Enter")

    def type(self, label: str, text: str) -> None:
        self.go_to(label)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.press("Delete")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def holds(self, label: str, text: str) -> None:
        """Wait until the field has this text: it is drawn empty first."""
        field = self.page.get_by_label(label, exact=True)
        until(lambda: field.input_value() == text, 30)

    def shown(self, text: str) -> Any:
        found = self.page.get_by_test_id("stMainBlockContainer").get_by_text(text).first
        found.wait_for()
        return found


@pytest.fixture
def visit(app: App, chromium: Any, request: pytest.FixtureRequest) -> Iterator[Visit]:
    language, scheme, width = request.param
    context = chromium.new_context(
        viewport={"width": width, "height": 1000},
        color_scheme=scheme,
        locale={"en": "en-US", "zh": "zh-CN"}[language],
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    visit = Visit(page, app, language)
    page.on("pageerror", lambda error: visit.faults.append(str(error)))
    page.on(
        "console",
        lambda m: visit.faults.append(f"{m.text} {m.location}") if m.type == "error" else None,
    )
    yield visit
    # Streamlit looks for its server under the address of the page first, and logs that as an error.
    screenshot(page, f"pages-{language}-{scheme}-{width}")
    ours = [f for f in visit.faults if "/_stcore/" not in f]
    context.close()
    assert ours == []


WAYS = [("en", "light", 1440), ("zh", "dark", 390), ("en", "dark", 900)]


@pytest.mark.parametrize("visit", WAYS, indirect=True, ids=lambda way: "-".join(map(str, way)))
def test_what_is_typed_and_chosen_stays(visit: Visit) -> None:
    _start_keeps_what_is_typed(visit)
    _dataset_keeps_the_form(visit)
    _train_goes_back_and_on_to_the_run_that_was_watched(visit)
    visit.open("Train?run=nonsense")
    visit.shown(visit.say("There is no training run {name} here.", name="nonsense"))


def _start_keeps_what_is_typed(visit: Visit) -> None:
    """A press too early says what is missing under its field, and starts nothing."""
    before = sorted((visit.app.home / "runs").iterdir())
    visit.open("?new=1")
    visit.type(visit.say("Name"), "Nora")
    settled(visit.page)
    visit.press(visit.say("Run all"))
    visit.shown(visit.say(":red[Say who made it.]"))
    visit.page.reload()
    visit.drawn()
    visit.holds(visit.say("Name"), "Nora")
    assert sorted((visit.app.home / "runs").iterdir()) == before


def _dataset_keeps_the_form(visit: Visit) -> None:
    """An empty name is said under its field while the rest stays; a reload keeps what is typed."""
    visit.open("dataset")
    visit.shown(visit.say("Ten sample conversations"))  # the address was another spelling's
    visit.drawn()
    label = visit.say("Name") + " *"
    visit.type(label, "")
    visit.shown(visit.say(":red[This cannot be empty.]"))
    visit.shown(visit.say("Ten sample conversations"))
    visit.page.get_by_label(label).fill("Nora")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_test_id("stChatMessage").filter(has_text="Nora").first.wait_for()
    settled(visit.page)
    visit.page.reload()
    visit.drawn()
    visit.holds(label, "Nora")


def _train_goes_back_and_on_to_the_run_that_was_watched(visit: Visit) -> None:
    """History is in the address, Back leads to the run, and Merge opens with that run."""
    page, run = visit.page, visit.app.run
    visit.open(f"Train?run={run}")
    charts = page.get_by_test_id("stVegaLiteChart")
    charts.nth(1).locator("canvas,svg").first.wait_for()
    visit.switch(visit.say("New run"), visit.say("History"))
    page.wait_for_url("**view=history**")
    visit.drawn()
    page.go_back()
    page.wait_for_url(lambda url: "view=history" not in url)
    visit.shown(visit.say("Merge it"))
    assert f"run={run}" in page.url
    page.reload()
    visit.drawn()
    visit.shown(visit.say("Merge it"))
    visit.press(visit.say("Merge it"))
    visit.shown(visit.say("What will be written"))
    assert f"run={run}" in page.url
    assert run[-4:] not in page.get_by_test_id("stMainBlockContainer").inner_text()
    page.reload()
    visit.shown(visit.say("What will be written"))


def english(page: Any) -> list[str]:
    """Lines with a word in Latin letters and none in Chinese."""
    lines = page.evaluate(LINES)
    spoken = [line for line in lines if re.search("[A-Za-z]{3}", line)]
    return sorted(
        line
        for line in spoken
        if not re.search("[\u4e00-\u9fff]", line) and re.search("[A-Za-z]{3}", NAMES.sub("", line))
    )


@pytest.mark.parametrize("visit", [("zh", "light", 1440)], indirect=True, ids=["zh"])
def test_no_page_is_left_in_english(visit: Visit) -> None:
    left: dict[str, list[str]] = {}
    page = visit.page
    for address in PAGES:
        visit.open(address)
        page.evaluate(UNFOLD)
        page.add_style_tag(content="[translate=no], span[role=img] { display: none !important }")
        settled(page)
        assert page.get_by_test_id("stException").count() == 0, address
        screenshot(page, "zh-" + re.sub(r"\W+", "-", address or "Start"))
        if lines := english(page):
            left[address] = lines
    assert left == {}, "\n".join(f"{a}: {x}" for a, x in left.items())
