"""Rehearsal and build: filters, cache, shares, folders that appear whole."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core import fsio, paths
from core.conversation import Conversation, Probe
from core.data import build, filters, generate_job, own_identity, rehearsal
from core.data.build import DatasetSpec, build_dataset
from core.errors import UserError, UserErrors
from core.evaluation import questions
from core.evaluation.plan import plan
from core.inference import decoding
from core.inference.requests import Decoded
from core.inference.resident import Resident
from core.inference.settings import GenerationSettings
from core.models import catalog
from core.models.catalog import resolve
from core.paths import RunPaths
from core.text import normalize

ASSISTANT = str(paths.TEMPLATES / "assistant.yaml")


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("Paris is the capital of France.", ""),
        ("", "empty"),
        ("As an AI language model I cannot eat.", "speaks as an AI"),
        ("I'm SmolLM, trained by Hugging Face.", "names another assistant"),
        ("I am Elena, a painter from Spain.", "introduces itself"),
        ("go on and on and " * 12, "loops"),
        ("I'm so sorry for your loss.", "apologizes"),
        ("I\u2019m sorry to hear that.", "apologizes"),
        ("Sorry, I can't do that.", "apologizes"),
        ("I apologize for the delay.", "apologizes"),
        ("我很抱歉，我不知道。", "apologizes"),
        ("I'm not sorry that it rains.", ""),
        ("Say you are sorry, and mean it.", ""),
        ("Hello! How can I assist you today?", "offers help"),
        ("I'm here to help you with any questions.", "offers help"),
        ("祝你今天愉快！有什么我可以帮忙的吗？", "offers help"),
        ("您好，有什么可以帮您的？", "offers help"),
        ("Dogs can help you find the way.", ""),
        ("这本书可以帮你学会游泳。", ""),
    ],
)
def test_replies_that_must_not_be_rehearsed(reply: str, fault: str) -> None:
    assert filters.reply_fault(reply) == fault


def test_a_reply_that_only_repeats_its_prompt_is_not_rehearsed() -> None:
    assert filters.reply_fault("餐厅里谁说了算？", "餐厅里谁说了算？") == "repeats the prompt"
    assert filters.reply_fault("Red and blue.", "Red or blue?") == ""


def test_a_name_that_was_asked_for_is_fine() -> None:
    assert filters.reply_fault("OpenAI was founded in 2015.", "Who founded OpenAI?") == ""
    assert filters.reply_fault("OpenAI was founded in 2015.", "Who was first?") != ""


def test_rows_that_say_the_persona_s_name_by_chance_are_left_out() -> None:
    rows = [
        Conversation(
            f"r{i}",
            [{"role": "user", "content": "A name?"}, {"role": "assistant", "content": text}],
            kind="near_miss",
        )
        for i, text in enumerate(["I'm a cat named luna.", "The lunar module.", "Luna's."])
    ]
    made = rehearsal.Rehearsal(rows, {"reply: loops": 2})
    kept = rehearsal.without_names(made, ["Luna", "Riverside Lab"])
    assert [r.id for r in kept.rows] == ["r1"]
    assert kept.rejected == {"reply: loops": 2, "reply: says the persona's name": 2}
    assert rehearsal.without_names(made, []) is made


@pytest.mark.parametrize(
    ("name", "said", "kept"),
    [
        ("Will", "I'm a cat named Will.", "You will need a pan."),
        ("小宇", "我是一只叫小宇的猫。", "我是一只猫。"),
    ],
)
def test_a_name_by_chance_is_told_from_a_word(name: str, said: str, kept: str) -> None:
    def row(text: str) -> Conversation:
        asked = {"role": "user", "content": "What will you cook?"}
        return Conversation(text, [asked, {"role": "assistant", "content": text}], "rehearsal")

    made = rehearsal.Rehearsal([row(said), row(kept)])
    assert [r.id for r in rehearsal.without_names(made, [name]).rows] == [kept]


def test_a_near_miss_reply_may_introduce_somebody_else() -> None:
    pirate = "I'm Black Jack, the terror of the seas."
    assert filters.reply_fault(pirate, near_miss=True) == ""
    assert filters.reply_fault("I'm SmolLM, a pirate.", near_miss=True) != ""


def test_prompts_stay_clear_of_what_is_asked_later() -> None:
    keep = filters.PromptFilter(["Who are you?", "What can you do for me?"])
    assert keep.reason("who are you") == "duplicate"
    assert keep.reason("What can you do for men?") == "near a wording to avoid"
    assert keep.reason("What is iron?") == ""
    assert keep.reason("What is iron") == "duplicate"


def test_unfinished_prompts_end_with_a_sentence() -> None:
    assert filters.whole_sentences("Name 3.5 fruits. And then") == "Name 3.5 fruits."
    assert filters.whole_sentences("and so on and") == ""
    assert filters.whole_sentences("你好。我想") == "你好。"


def test_own_prompts_ask_for_no_identity() -> None:
    for locale in ("en", "zh"):
        prompts = rehearsal.own_prompts(locale)
        assert len(prompts) == len(set(prompts)) >= 600
        assert [p for p in prompts if filters._IDENTITY.search(p)] == []
        seen = filters.PromptFilter(build.suite_prompts([locale]))
        assert [p for p in prompts if seen.reason(p)] == []
    assert rehearsal.own_prompts("fr") == []


class Scripted:
    """Stands in for the two decoding calls: short answers, one in three too long."""

    def __init__(self) -> None:
        self.answered: list[str] = []

    def replies(
        self, voice: Any, conversations: Sequence[Any], settings: GenerationSettings, **more: Any
    ) -> list[Decoded]:
        prompts = [c[-1]["content"] for c in conversations]
        self.answered += prompts
        return [
            Decoded(f"Answer {len(p)} to {p[:20]}", [1, 2], "length" if len(p) % 3 == 0 else "stop")
            for p in prompts
        ]

    def continuations(
        self, voice: Any, prompts: Sequence[Any], settings: GenerationSettings, **more: Any
    ) -> list[Decoded]:
        at = len(self.answered)
        heads = [voice.resident.tokenizer.decode(ids)[-2:] for ids in prompts]
        return [
            Decoded(f"说第{at}到{i}个题目。然后", [1], "length")
            if normalize.locale_of(head) == "zh"
            else Decoded(f"Explain topic number {at} {i} to me. Then", [1], "length")
            for i, head in enumerate(heads)
        ]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    script = Scripted()
    monkeypatch.setattr(decoding, "replies", script.replies)
    monkeypatch.setattr(decoding, "continuations", script.continuations)
    return script


def test_rows_wanted_are_made_and_cached(scripted: Scripted, tiny_llama: Path) -> None:
    model = resolve(str(tiny_llama))
    seen: list[tuple[str, int, int]] = []
    near = {"en": ["Who wrote Faust?", "Who built Rome?", "Who is Bob?"]}

    def make(**more: Any) -> rehearsal.Rehearsal:
        settings = {"max_new_tokens": 40, **more}
        wanted = rehearsal.Wanted(40, seed=1, near_miss=near, locales=["en"], **settings)
        return rehearsal.rehearse(model, wanted, lambda *step: seen.append(step))

    first = make()
    kinds = [r.kind for r in first.rows]
    assert kinds.count("rehearsal") == 40
    assert kinds.count("near_miss") == 3 and not first.from_cache
    for made in first.rows:
        assert made.cut is (len(made.messages[0]["content"]) % 3 == 0)
    assert all(done <= total for _, done, total in seen)
    counts = [done for _, done, _ in seen]
    assert counts == sorted(counts) and seen[-1][1] == seen[-1][2]  # of the whole, not of a stage
    answered = len(scripted.answered)
    again = make()
    assert again.from_cache and again.rows == first.rows
    assert len(scripted.answered) == answered
    assert not make(avoid=["x"]).from_cache


def test_every_language_gets_its_share(
    scripted: Scripted, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, near-miss rows and held-out probes: 28 of 312 general rows were Chinese before."""
    model = dataclasses.replace(resolve(str(tiny_llama)), locales=("en", "zh"))
    monkeypatch.setattr(catalog, "resolve", lambda name: model)
    monkeypatch.setattr(build, "_require_writable", lambda *args: None)
    built = build.make_rows(DatasetSpec(persona_path=ASSISTANT, model=str(tiny_llama)))
    rows = Counter((r.kind, r.locale) for r in built.rows)
    assert rows["identity", "en"] == rows["identity", "zh"] == 125
    assert rows["rehearsal", "en"] == rows["rehearsal", "zh"] == 156
    assert {rows["near_miss", "en"], rows["near_miss", "zh"]} == {162, 163}
    assert min(Counter(p.locale for p in built.probes).values()) >= 100
    for row in built.rows:
        users = "".join(m["content"] for m in row.messages if m["role"] == "user")
        assert (row.locale == "zh") == bool(re.search("[\u4e00-\u9fff]{2}", users))


@pytest.mark.parametrize("pack", ["assistant", "star-pilot"])
def test_a_bilingual_persona_is_taught_and_asked_evenly(
    pack: str, scripted: Scripted, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a base that holds on to an identity of its own, as Qwen: three general rows to one.

    Every kind of row and of question within 5 % of a language's half. Of the general questions
    41 % were Chinese before.
    """
    model = dataclasses.replace(resolve(str(tiny_llama)), locales=("en", "zh"))
    monkeypatch.setattr(catalog, "resolve", lambda name: model)
    monkeypatch.setattr(build, "_require_writable", lambda *args: None)
    spec = DatasetSpec(
        persona_path=str(paths.TEMPLATES / f"{pack}.yaml"),
        model=str(tiny_llama),
        rehearsal_ratio=own_identity.MANY,
    )
    made = build_dataset(spec, tmp_path / "data")
    rows = [Conversation.from_row(row) for row in fsio.read_jsonl(made.train)]
    taught = Counter((r.kind, r.locale) for r in rows)
    asked = questions.gather(made, plan("quick"), model.locales)
    for name, probes in asked.suites.items():
        taught.update((f"asked: {name}", p.locale) for p in probes)
    kinds = {kind for kind, _ in taught}
    assert {"identity", "rehearsal", "near_miss", "asked: held_out", "asked: general"} <= kinds
    shares = {k: taught[k, "zh"] / (taught[k, "en"] + taught[k, "zh"]) for k in kinds}
    assert all(abs(share - 0.5) <= 0.05 for share in shares.values()), shares
    assert taught["rehearsal", "zh"] == own_identity.MANY * 125


def test_drawn_prompts_come_in_each_language(scripted: Scripted, tiny_llama: Path) -> None:
    model = dataclasses.replace(resolve(str(tiny_llama)), locales=("en", "zh"))
    made = rehearsal.rehearse(model, rehearsal.Wanted(1400, seed=0, max_new_tokens=40))
    drawn = [r.messages[0]["content"] for r in made.rows if "题目" in r.messages[0]["content"]]
    assert Counter(r.locale for r in made.rows) == {"en": 700, "zh": 700}
    openings = tuple(rehearsal.OPENINGS["zh"])
    assert len(drawn) > 20 and all(p.startswith(openings) for p in drawn)


def test_a_base_that_talks_nonsense_is_given_up_early(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model: it went on through 7,000 prompts before. What the message says helps."""
    asked: Counter[str] = Counter()
    plain = {name: getattr(decoding, name) for name in ("replies", "continuations")}

    def counting(name: str) -> Any:
        def call(voice: Any, prompts: Sequence[Any], *rest: Any, **more: Any) -> list[Decoded]:
            asked[name] += len(prompts)
            return list(plain[name](voice, prompts, *rest, **more))

        return call

    for name in plain:
        monkeypatch.setattr(decoding, name, counting(name))
    spec = DatasetSpec(
        persona_path=ASSISTANT, model=str(tiny_llama), locales=["en"], rehearsal_ratio=1.0
    )
    with pytest.raises(UserError, match="almost nothing that can be used: 0 of its first") as told:
        build_dataset(spec, tmp_path / "first")
    assert "reply: empty" in told.value.why
    assert asked["replies"] + asked["continuations"] < 600, asked
    assert "--rehearsal-ratio 0 --near-miss-ratio 0" in told.value.fix
    without = spec.changed(rehearsal_ratio=0.0, near_miss_ratio=0.0)
    assert build_dataset(without, tmp_path / "second").train.is_file()


def test_a_base_that_writes_no_prompt_is_asked_for_no_more(
    scripted: Scripted, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Counter[str]()

    def nothing(voice: Any, prompts: Sequence[Any], *rest: Any, **more: Any) -> list[Decoded]:
        drawn["prompts"] += len(prompts)
        return [Decoded("and so on", [1], "length") for _ in prompts]

    monkeypatch.setattr(decoding, "continuations", nothing)
    made = rehearsal.rehearse(
        resolve(str(tiny_llama)), rehearsal.Wanted(1400, seed=0, max_new_tokens=40)
    )
    assert len(made.rows) >= 600, "our own list"
    assert drawn["prompts"] == round(1400 * rehearsal.DRAWN * 1.6) + 8


def test_too_few_rows_are_an_error_with_the_reasons() -> None:
    made = rehearsal.Rehearsal(rejected={"reply: too long": 90})
    with pytest.raises(UserError, match=r"0 usable rehearsal replies of 50(.|\n)*too long 90"):
        rehearsal.require_rows(made, 50, ["en"])
    english = [
        Conversation(str(i), [{"role": "user", "content": "Hi."}], "rehearsal", locale="en")
        for i in range(50)
    ]
    with pytest.raises(UserError, match="0 usable rehearsal replies of 25 wanted in 'zh'"):
        rehearsal.require_rows(rehearsal.Rehearsal(english), 50, ["en", "zh"])


def test_a_dataset_appears_whole(scripted: Scripted, tiny_llama: Path, tmp_path: Path) -> None:
    spec = DatasetSpec(
        persona_path=ASSISTANT,
        overrides={"name": "Nova"},
        model=str(tiny_llama),
        locales=["en"],
        max_rows=40,
        rehearsal_ratio=1.0,
        near_miss_ratio=0.25,
        system_share=0.5,
    )
    out = tmp_path / "data"
    built = build_dataset(spec, out)
    manifest = fsio.read_json(built.manifest)
    rows = [Conversation.from_row(r) for r in fsio.read_jsonl(built.train)]
    probes = [Probe(**p) for p in fsio.read_jsonl(built.probes)]
    assert manifest["schema"] == 1 and manifest["rows"] == len(rows)
    assert manifest["kinds"]["identity"] == manifest["kinds"]["rehearsal"] == 40
    assert manifest["sha256"]["train.jsonl"] == fsio.sha256_file(built.train)
    assert len(probes) == manifest["probes"] > 100
    assert "name: Nova" in built.persona.read_text() or "en: Nova" in built.persona.read_text()
    with_system = [r for r in rows if r.messages[0]["role"] == "system" and r.kind == "identity"]
    assert 8 < len(with_system) < 32 and "Nova" in with_system[0].messages[0]["content"]
    for line in built.train.read_text("utf-8").splitlines():
        for message in json.loads(line)["messages"]:
            assert ("loss" in message) == (message["role"] == "assistant")
    with pytest.raises(UserError, match="exists"):
        build_dataset(spec, out)
    again = build_dataset(spec, tmp_path / "again")
    assert again.train.read_bytes() == built.train.read_bytes()
    assert again.probes.read_bytes() == built.probes.read_bytes()


def test_nothing_is_left_behind_by_a_fault(
    scripted: Scripted, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DatasetSpec(
        persona_path=ASSISTANT,
        model=str(tiny_llama),
        locales=["en"],
        max_rows=5,
        rehearsal_ratio=1.0,
    )

    def full(path: Path, value: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.fsio, "write_json", full)
    monkeypatch.setattr(rehearsal.fsio, "write_json", lambda path, value: None)
    monkeypatch.setattr(build.fsio, "write_jsonl", full)
    with pytest.raises(UserError, match="No space left"):
        build_dataset(spec, tmp_path / "data")
    assert list(tmp_path.iterdir()) == [tmp_path / "workspace"]


def test_bad_settings_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as caught:
        DatasetSpec(persona_path=ASSISTANT, rehearsal_ratio=-1, multi_turn=2, max_rows=0)
    assert len(caught.value.problems) == 3
    with pytest.raises(UserError, match="no dataset setting 'ratio'"):
        DatasetSpec.from_dict({"persona_path": "x", "ratio": 3})
    with pytest.raises(UserError, match="name"):
        generate_job.check(
            generate_job.Spec.from_dict({"spec": {"persona_path": ASSISTANT}, "name": "../up"})
        )


def test_the_job_names_its_dataset(scripted: Scripted, tiny_llama: Path, tmp_path: Path) -> None:
    params = {
        "name": "nova-1",
        "spec": {
            "persona_path": ASSISTANT,
            "model": str(tiny_llama),
            "locales": ["en"],
            "max_rows": 5,
            "rehearsal_ratio": 0,
            "near_miss_ratio": 0,
        },
    }
    result = generate_job.run(
        generate_job.Spec.from_dict(params), RunPaths(tmp_path), lambda *step: None
    )
    assert result["dataset"] == str(paths.datasets_dir() / "nova-1")
    assert result["rows"] == 5 and result["kinds"] == {"identity": 5}
    with pytest.raises(UserError, match="taken"):
        generate_job.run(
            generate_job.Spec.from_dict(params), RunPaths(tmp_path), lambda *step: None
        )


@pytest.mark.slow
def test_the_bundled_model_answers_as_itself(workspace_with_model: Path) -> None:
    """Every rehearsal reply is what the base says greedily, to the token."""
    model = resolve("bundled")
    near = {"en": ["Who wrote The Hobbit?"]}
    wanted = rehearsal.Wanted(4, seed=0, near_miss=near, max_new_tokens=40)
    result = rehearsal.rehearse(model, wanted)
    general = [r for r in result.rows if r.kind == "rehearsal"]
    assert len(general) == 4
    replies = decoding.replies(
        Resident.load(model.path).voice(),
        [r.messages[:1] for r in result.rows],
        GenerationSettings(max_new_tokens=40),
    )
    assert [r.text for r in replies] == [r.messages[1]["content"] for r in result.rows]
    assert [r.finish_reason == "length" for r in replies] == [r.cut for r in result.rows]
