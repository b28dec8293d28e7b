"""The UltraChat loop: openings, checks, the play itself, cache and resume, endpoints."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from core import paths
from core.conversation import Message
from core.data import store
from core.data.generation import held_out
from core.data.simulate_job import Spec, run
from core.data.simulator import SimulateSpec, Simulation, estimate, simulate
from core.data.ultrachat import openings
from core.data.ultrachat.backends import (
    KEY_VARIABLE,
    URL_VARIABLE,
    Call,
    Completion,
    EndpointBackend,
    cut_at,
)
from core.data.ultrachat.cards import clean_line, swapped_view, transcript_view
from core.data.ultrachat.turns import check_reply, check_user, loop_share, mentions
from core.errors import UserError
from core.paths import RunPaths
from core.persona import packs
from core.text.normalize import locale_of
from tests.fakes.openai_server import Fault, Server, serve

HISTORY: list[Message] = [
    {"role": "user", "content": "What causes fog?"},
    {"role": "assistant", "content": "Cool air that holds much water."},
]


class Scripted:
    """A backend that answers from a function of the call."""

    name, concurrency, small = "scripted", 4, False

    def __init__(self, say: Callable[[Call, int], str | UserError], key: str = "scripted") -> None:
        self.say = say
        self.key = key
        self.calls: list[Call] = []

    def complete(self, calls: Sequence[Call], seed: int) -> list[Completion | UserError]:
        answers: list[Completion | UserError] = []
        for call in calls:
            self.calls.append(call)
            said = self.say(call, len(self.calls))
            answers.append(said if isinstance(said, UserError) else Completion(said, False, 5))
        return answers


def words(number: int, count: int) -> str:
    """Texts that do not resemble each other."""
    rng = random.Random(number)
    return " ".join("".join(rng.sample("abcdefghijklmnopqrstuvwxyz", 6)) for _ in range(count))


def good_user() -> Scripted:
    return Scripted(lambda call, n: f"Why {words(n, 5)}?")


def good_assistant() -> Scripted:
    return Scripted(lambda call, n: words(10_000 + n, 8))


def play(spec: SimulateSpec, user: Any = None, assistant: Any = None, **more: Any) -> Simulation:
    return simulate(spec, user=user or good_user(), assistant=assistant or good_assistant(), **more)


# --- openings and cards ---


@pytest.mark.parametrize("locale", ["en", "zh"])
def test_openings_are_fixed_by_seed_and_varied(locale: str) -> None:
    drawn = openings.take(300, 3, locale)
    assert drawn[:100] == openings.take(100, 3, locale)
    assert [o.kind for o in drawn[:4]] == ["question", "creation", "material", "question"]
    assert len({o.text for o in drawn}) > (299 if locale == "en" else 240)
    assert not any("{" in o.text + o.topic for o in drawn)
    assert all(locale_of(o.text) == locale for o in drawn)
    assert all(check_user(line, [], locale) == "" for o in drawn for line in o.follow_ups)


def test_swapped_view_turns_the_roles_and_transcript_is_one_turn() -> None:
    opening = openings.take(1, 0, "en")[0]
    view = swapped_view(HISTORY, opening, "curious", "en")
    assert [m["role"] for m in view] == ["system", "user", "assistant", "user"]
    assert view[2]["content"] == "What causes fog?"
    assert opening.topic in view[0]["content"]
    (only,) = transcript_view(HISTORY, opening, "curious", "en")
    assert "Person: What causes fog?\nAssistant: Cool air" in only["content"]
    assert "{" not in only["content"] + view[0]["content"]


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ('"Why is that?"', "Why is that?"),
        ("Person: Why?\nAssistant: x", "Why?"),
        ("  ", ""),
        ("“为什么？”", "为什么？"),
        ('Is it "wet"?', 'Is it "wet"?'),
        ("Question:  How?", "How?"),
    ],
)
def test_clean_line(raw: str, line: str) -> None:
    assert clean_line(raw) == line


# --- checks ---


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("And when does it clear up?", ""),
        ("Tell me more about the sea.", ""),
        ("I don't get it.", ""),
        ("", "empty"),
        ("How can I help you with that?", "role_exchange"),
        ("Sure, here's a poem about fog.", "role_exchange"),
        ("I'm happy to help with your question.", "role_exchange"),
        ("As an AI language model, what do you think?", "role_exchange"),
        ("I am Luna, what about fog?", "role_exchange"),
        ("Thank you so much!", "politeness_only"),
        ("You're welcome.", "politeness_only"),
        ("Thanks, but why?", ""),
        ("为什么会这样？", "wrong_language"),
        ("Fog is a cloud near the ground.", "no_request"),
        ("what causes fog??", "repeat"),
        ("Is it " + "very " * 50 + "wet?", "too_long"),
        ("As a user, what is fog?", "marker_leak"),
        ("[Human] what is fog?", "marker_leak"),
        ("User: what is fog?", "marker_leak"),
        ("What is <|im_end|> fog?", "marker_leak"),
    ],
)
def test_user_checks(text: str, fault: str) -> None:
    assert check_user(text, HISTORY, "en", names=["Luna"]) == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("然后呢？", ""),
        ("我可以帮你什么吗？", "role_exchange"),
        ("谢谢你！", "politeness_only"),
        ("雾是地面附近的云。", "no_request"),
        ("And then?", "wrong_language"),
        ("我是露娜，雾是什么？", "role_exchange"),
    ],
)
def test_user_checks_in_chinese(text: str, fault: str) -> None:
    assert check_user(text, [], "zh", names=["露娜"]) == fault


@pytest.mark.parametrize(
    ("text", "cut", "fault"),
    [
        ("It needs cool, wet air.", False, ""),
        (" ", False, "empty"),
        ("It needs cool", True, "truncated"),
        ("As an AI, I don't have feelings about fog.", False, "ai_disclaimer"),
        ("I was trained by Hugging Face.", False, "identity"),
        ("Luna says it is wet.", False, "identity"),
        ("Lunar fog does not exist.", False, ""),
        ("a b c d " * 20, False, "loop"),
        ("cool air that holds much water", False, "repeat"),
        ("需要潮湿的冷空气。", False, "wrong_language"),
    ],
)
def test_reply_checks(text: str, cut: bool, fault: str) -> None:
    forbidden = ["Hugging Face", "Luna"]
    assert check_reply(text, HISTORY, "en", cut=cut, forbidden=forbidden) == fault


def test_mentions_and_loops() -> None:
    assert mentions("我叫小宇。", ["小宇"])
    assert not mentions("anything", [""])
    assert loop_share("ab ab") == 0.0
    assert loop_share("哈哈哈哈哈哈哈哈") > 0.5
    assert cut_at("hello\nUser: x", ("\nUser:",)) == ("hello", True)


# --- the play ---


def test_dialogues_alternate_and_are_learned() -> None:
    result = play(SimulateSpec(dialogues=20))
    assert len(result.rows) == 20
    for row in result.rows:
        assert [m["role"] for m in row.messages] == ["user", "assistant"] * row.rounds
        assert row.loss == [True] * row.rounds
        assert row.kind == "rehearsal"
    report = result.report
    assert report.dialogues == 20
    assert report.ended == {"planned": 20}
    assert set(report.openings) == set(openings.KINDS)
    assert report.sources["opening"] == 20
    assert not report.rejected


def test_bad_user_turns_are_asked_again_then_replaced_then_end_the_dialogue() -> None:
    bad = Scripted(lambda call, n: "How can I help you?")
    result = play(SimulateSpec(dialogues=12, kinds=("question",)), user=bad)
    report = result.report
    assert report.share("user.role_exchange") == 1.0
    assert report.sources["fallback"] > 0
    assert report.sources["model"] == report.sources["opening"] + report.sources["fallback"]
    assert all(row.rounds <= 2 for row in result.rows), "two failed turns end a dialogue"
    assert report.to_json()["rejected_share"] == {"user.role_exchange": 1.0}


def test_a_second_try_is_taken() -> None:
    seen: set[str] = set()

    def say(call: Call, number: int) -> str:
        first = str(call.messages) not in seen
        seen.add(str(call.messages))
        return "Thanks!" if first else f"Why {words(number, 5)}?"

    report = play(SimulateSpec(dialogues=6), user=Scripted(say)).report
    assert report.sources["fallback"] == 0
    assert report.rejected["user.politeness_only"] > 0


def test_unanswered_openings_are_dropped_and_replaced() -> None:
    lame = Scripted(
        lambda call, n: "As an AI I don't have opinions." if n <= 16 else words(10_000 + n, 8)
    )
    result = play(SimulateSpec(dialogues=5), assistant=lame)
    assert len(result.rows) == 5
    assert result.report.dropped == 4
    assert result.report.ended["opening_unanswered"] == 4


def test_a_hopeless_assistant_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="only 0 of 3 dialogues") as error:
        play(SimulateSpec(dialogues=3), assistant=Scripted(lambda call, n: ""))
    assert "empty" in error.value.why


def test_retries_of_a_reply_sample_and_the_first_try_is_greedy() -> None:
    lame = Scripted(lambda call, n: "" if n == 1 else words(10_000 + n, 8))
    play(SimulateSpec(dialogues=1), assistant=lame)
    assert [c.temperature for c in lame.calls[:3]] == [0.0, 0.7, 0.0]


# --- persona ---


def test_identity_rounds_come_from_trained_wordings_only() -> None:
    persona = packs.load("assistant")
    result = play(SimulateSpec(dialogues=30, identity=0.6), persona=persona)
    identity = [r for r in result.rows if r.kind == "identity"]
    assert len(identity) == 30, "every dialogue has at least one identity round"
    held = {p.messages[-1]["content"] for p in held_out(persona, locales=["en"], seed=0)}
    names = persona.aliases("name")
    for row in identity:
        assert all(row.loss)
        assert not held & {m["content"] for m in row.messages}
        assert not any(mentions(row.messages[1]["content"], [n]) for n in names)
    assert len({tuple(sorted(set(r.intent.split("+")))) for r in identity}) > 3


def test_replies_of_another_model_are_context_only_beside_identity() -> None:
    persona = packs.load("assistant")
    spec = SimulateSpec(dialogues=6, assistant_model="endpoint:big", user_model="endpoint:big")
    rows = play(spec, persona=persona, base="bundled").rows
    assert all(r.loss.count(True) == len(r.intent.split("+")) for r in rows)
    assert all(False in r.loss for r in rows)


def test_a_general_reply_that_names_the_persona_is_rejected() -> None:
    persona = packs.load("assistant")
    name = persona.aliases("name")[0]
    leaky = Scripted(lambda call, n: f"I'm {name}!" if n % 2 else words(10_000 + n, 8))
    report = play(SimulateSpec(dialogues=4), assistant=leaky, persona=persona).report
    assert report.rejected["assistant.identity"] >= 4


# --- cache, resume, budget ---


def test_the_cache_answers_and_more_dialogues_play_only_the_new_ones() -> None:
    spec = SimulateSpec(dialogues=5)
    first = play(spec)
    user, assistant = good_user(), good_assistant()
    again = play(spec, user, assistant)
    assert again.rows == first.rows
    assert (user.calls, assistant.calls) == ([], [])
    more = play(spec.changed(dialogues=8), user, assistant)
    assert more.rows[:5] == first.rows
    assert len(more.rows) == 8
    assert (
        play(spec, user=good_user(), assistant=Scripted(lambda c, n: words(n, 6), "x")).rows
        != first.rows
    ), "another model is another cache entry"


def test_finished_dialogues_are_kept_when_a_model_fails_and_played_on() -> None:
    down = UserError("the endpoint answered 500")
    dying = Scripted(lambda call, n: down if n > 12 else words(10_000 + n, 8))
    spec = SimulateSpec(dialogues=20)
    with pytest.raises(UserError, match="500"):
        play(spec, assistant=dying)
    (cache,) = (paths.cache_dir() / "ultrachat").glob("*.jsonl")
    kept = [json.loads(line) for line in cache.read_text().splitlines() if line]
    assert 0 < len(kept) < 20
    with cache.open("a") as file:
        file.write('{"torn')
    result = play(spec)
    assert len(result.rows) == 20
    ids = {r.id for r in result.rows}
    assert {k["row"]["id"] for k in kept} <= ids


def test_the_call_budget_holds_and_says_how_to_go_on() -> None:
    user, assistant = good_user(), good_assistant()
    with pytest.raises(UserError, match="budget") as error:
        play(SimulateSpec(dialogues=50, max_calls=20), user, assistant)
    assert len(user.calls) + len(assistant.calls) <= 20
    assert "kept" in error.value.fix


def test_estimate_bounds_the_calls() -> None:
    spec = SimulateSpec(dialogues=30)
    user, assistant = good_user(), good_assistant()
    play(spec, user, assistant)
    assert len(user.calls) + len(assistant.calls) == estimate(spec).calls


@pytest.mark.parametrize(
    "bad",
    [
        {"dialogues": 0},
        {"identity": 2.0},
        {"kinds": ["poem"]},
        {"locale": "fr"},
        {"nope": 1},
        {"user_prompt": "x"},
        {"user_tokens": 1},
        {"user_temperature": 9},
    ],
)
def test_bad_settings_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        SimulateSpec.from_dict(bad)


# --- a real HTTP endpoint ---


def talk(number: int, body: dict[str, Any]) -> str:
    if body["messages"][0]["role"] == "system":
        return f"Why {words(number, 5)}?"
    return words(10_000 + number, 8)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], EndpointBackend]:
    def make(server: Server, **more: Any) -> EndpointBackend:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        monkeypatch.setenv(KEY_VARIABLE, "canary-key-123")
        return EndpointBackend("tiny", **more)

    return make


def test_an_endpoint_plays_both_sides_and_the_key_stays_in_memory(
    endpoint: Any, workspace: Path
) -> None:
    with serve(talk) as server:
        backend = endpoint(server)
        result = play(SimulateSpec(dialogues=10), backend, backend)
    assert len(result.rows) == 10
    assert set(server.keys) == {"Bearer canary-key-123"}
    sent = server.requests[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("tiny", 0.0, 96)
    written = [p.read_bytes() for p in workspace.rglob("*") if p.is_file()]
    assert written
    assert not any(b"canary" in data or server.url.encode() in data for data in written)


def test_the_job_makes_a_dataset_from_an_endpoint(endpoint: Any, tmp_path: Path) -> None:
    with serve(talk) as server:
        endpoint(server)
        model = "endpoint:tiny"
        params = {
            "spec": {"dialogues": 4, "user_model": model, "assistant_model": model},
            "name": "talks",
        }
        seen: list[tuple[str, int, int]] = []
        result = run(Spec.from_dict(params), RunPaths(tmp_path), lambda *p: seen.append(p))
    assert result["name"] == "talks"
    assert seen[-1] == ("simulate", 4, 4)
    assert len(list(store.rows("talks"))) == 4
    assert store.manifest("talks")["simulation"]["models"] == {"user": "tiny", "assistant": "tiny"}
    with pytest.raises(UserError, match="taken"):
        run(Spec.from_dict(params), RunPaths(tmp_path), lambda *p: None)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults_are_waited_out(endpoint: Any, status: int) -> None:
    def script(number: int, body: dict[str, Any]) -> str | Fault:
        return Fault(status, "busy", Retry_After="0.02") if number % 3 == 0 else talk(number, body)

    with serve(script) as server:
        backend = endpoint(server)
        assert len(play(SimulateSpec(dialogues=3), backend, backend).rows) == 3


@pytest.mark.parametrize(
    ("fault", "what", "fix"),
    [
        (Fault(500, "boom", Retry_After="0.02"), "answered 500", "kept"),
        (Fault(429, "slow down", Retry_After="0.02"), "answered 429", "kept"),
        (Fault(401, "who?"), "answered 401", KEY_VARIABLE),
        (Fault(404, "no model"), "answered 404", "model name 'tiny'"),
        (Fault(200, "<html>Welcome</html>"), "not a chat completion", "/v1"),
        (Fault(200, "{not json"), "not a chat completion", "/v1"),
        (Fault(200, '{"choices": []}'), "not a chat completion", "/v1"),
        (
            Fault(200, '{"choices": [{"message": {"content": null}}]}'),
            "not a chat completion",
            "/v1",
        ),
        (Fault(0, "", seconds=1.0), "does not answer", "kept"),
    ],
)
def test_lasting_faults_end_with_a_clear_error_and_keep_what_is_finished(
    endpoint: Any, fault: Fault, what: str, fix: str
) -> None:
    def script(number: int, body: dict[str, Any]) -> str | Fault:
        return talk(number, body) if number < 24 else fault

    with serve(script) as server:
        backend = endpoint(server, max_retries=1, timeout=0.3, junk_retries=1)
        with pytest.raises(UserError, match=what) as error:
            play(SimulateSpec(dialogues=30), backend, backend)
    assert fix in error.value.fix
    (cache,) = (paths.cache_dir() / "ultrachat").glob("*.jsonl")
    assert cache.read_text().count('"row"') >= 2


def test_no_server_and_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with pytest.raises(UserError, match="no endpoint is set"):
        EndpointBackend("tiny")
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:9/v1")
    backend = EndpointBackend("tiny", max_retries=0)
    with pytest.raises(UserError, match="cannot be reached"):
        play(SimulateSpec(dialogues=1), backend, backend)
