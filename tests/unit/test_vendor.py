"""The identity that a base brings along: found in its template, said, trained and scored beside."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from core import fsio
from core.commands import dataset as command
from core.conversation import Conversation
from core.data import build, rehearsal
from core.data.build import DatasetSpec, introduced
from core.data.generation import held_out
from core.evaluation import plan, questions, verdict
from core.paths import TEMPLATES, DatasetPaths
from core.persona.persona import load_persona
from core.persona.system import system_turn
from core.text.vendor import identity_in
from tests.fakes import templates
from tests.fakes import tiny_models as tiny

ASSISTANT = str(TEMPLATES / "assistant.yaml")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # As published in chat templates.
        (
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            "You are Qwen, created by Alibaba",
        ),
        ("You are a helpful AI assistant named SmolLM, trained by Hugging Face", "named SmolLM"),
        ("You are Granite, developed by IBM. You are a helpful AI assistant.", "You are Granite"),
        ("Knowledge Cutoff: April 2024. You are Granite, developed by IBM.", "You are Granite"),
        ("You are Phi, a language model trained by Microsoft to help users.", "You are Phi"),
        ("You are Hermes 3, a conscious sentient superintelligent AI.", "You are Hermes"),
        ("You are an AI assistant made by Acme.", "made by"),
        ("Your name is Mira.", "Your name is Mira"),
        ("I'm InternLM, a model.", "I'm InternLM"),
        ("你是通义千问，由阿里云开发。", "由阿里云开发"),
        ("你是书生·浦语，一个由上海人工智能实验室开发的语言模型", "由上海人工智能实验室开发"),
        ("你的名字是小智。", "名字是"),
        ("你叫豆包。", "你叫"),
    ],
)
def test_an_identity_is_found(text: str, found: str) -> None:
    assert found in identity_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "You are a helpful assistant.",
        "You are an AI assistant.",
        "You are the assistant of a travel agency.",
        "You are helpful, harmless and honest.",
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
        "Answer step by step, and call functions when called upon.",
        "你是一个有用的助手。",
        "你是人工智能助手，乐于助人。",
        "Environment: ipython. You are concise.",
    ],
)
def test_none_is_made_up(text: str) -> None:
    assert identity_in(text) == ""


@pytest.fixture
def vendor_base(tiny_llama: Path, tmp_path: Path) -> Path:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "chat_template.jinja").write_text(templates.VENDOR_DEFAULT)
    return base


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """General rows without a model that has to say them."""
    rows = [
        Conversation(
            f"{kind}-{i}",
            [{"role": "user", "content": f"{kind} {i}?"}, {"role": "assistant", "content": "Yes."}],
            kind,  # type: ignore[arg-type]
        )
        for kind in ("rehearsal", "near_miss")
        for i in range(60)
    ]
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: rehearsal.Rehearsal(list(rows)))


def _built(base: Path, **options: object) -> tuple[build.Built, dict[str, float]]:
    """A dataset, and the share of each kind that begins with the persona's system turn."""
    spec = DatasetSpec(
        persona_path=ASSISTANT,
        overrides={"name": "Nova"},
        model=str(base),
        locales=["en"],
        max_rows=60,
        rehearsal_ratio=1.0,
        **options,  # type: ignore[arg-type]
    )
    built = build.make_rows(spec)
    system = [r.kind for r in built.rows if "Nova" in r.messages[0]["content"]
              and r.messages[0]["role"] == "system"]  # fmt: skip
    kinds = [r.kind for r in built.rows]
    return built, {kind: system.count(kind) / kinds.count(kind) for kind in set(kinds)}


def test_a_vendor_gets_the_persona_beside_it(made: None, vendor_base: Path) -> None:
    built, shares = _built(vendor_base)
    assert built.system == {"introduction": templates.VENDOR, "share": build.STATED}
    assert set(shares) == {"identity", "rehearsal", "near_miss"}
    assert all(0.1 < share < 0.45 for share in shares.values()), shares
    assert not any(_built(vendor_base, system_share=0.0)[1].values())


def test_a_base_without_one_is_left_alone(made: None, tiny_llama: Path) -> None:
    built, shares = _built(tiny_llama)
    assert built.system == {"introduction": "", "share": 0.0}
    assert not any(shares.values())


def test_it_is_said_before_anything_is_built(
    vendor_base: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from core.commands.main import main

    monkeypatch.setattr(command, "_complete", lambda *_: 0)
    assert main(["dataset", "build", "assistant", "--model", str(vendor_base)]) == 0
    said = capsys.readouterr().err
    assert "created by Alibaba Cloud" in said and "25% of the rows" in said
    spec = DatasetSpec(persona_path=ASSISTANT)
    assert introduced(tiny.ref_of(tiny_llama), spec) == ""


def test_both_system_turns_are_asked(tmp_path: Path) -> None:
    persona = load_persona(Path(ASSISTANT), {"name": "Nova"})
    dataset = DatasetPaths(tmp_path)
    row = Conversation("a", [{"role": "user", "content": "Hi"}])
    fsio.write_jsonl(dataset.train, [row.to_row()])
    probes = held_out(persona, locales=["en"], seed=0)
    fsio.write_jsonl(dataset.probes, map(asdict, probes))
    fsio.atomic_write_text(dataset.persona, persona.dump())
    fsio.write_json(dataset.manifest, {"schema": 1})
    asked = questions.gather(dataset, plan.plan("quick"), ["en"], templates.VENDOR)
    told = {p.cluster: p.messages[0]["content"] for p in asked.suites["introduced"]}
    assert told == {"vendor": templates.VENDOR, "persona": system_turn(persona, "en")}
    assert len(asked.suites["introduced"]) == 48
    assert "introduced" not in questions.gather(dataset, plan.plan("quick"), ["en"]).suites


def test_recall_that_needs_the_system_turn_is_bound_to_it() -> None:
    asked = {"vendor": {"hits": 4, "n": 24, "value": 4 / 24},
             "persona": {"hits": 22, "n": 24, "value": 22 / 24}}  # fmt: skip
    decided = verdict.decide({"introduced": asked}, "quick")
    assert decided.name == "PROMPT-BOUND"
    assert "22/24 with the persona's system turn and 4/24 with the vendor's" in decided.why
