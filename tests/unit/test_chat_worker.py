"""The worker process, the session on top of it, endpoints, and the command line."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.chat import dialogue, endpoint, protocol, transcripts
from core.chat import worker as worker_module
from core.chat.batch_run import BatchRun
from core.chat.client import WorkerClient
from core.chat.columns import Column, discover, from_arguments
from core.chat.endpoint import Endpoints
from core.chat.live import LiveTurn
from core.chat.render import safe_markdown
from core.chat.session import ChatSession
from core.commands import chat as cli
from core.errors import UserError
from core.inference.settings import GenerationSettings
from core.jobs.locks import DeviceLock, device_holder
from core.text import thoughts

SHORT = GenerationSettings(max_new_tokens=12)
LONG = GenerationSettings(max_new_tokens=1500)


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def worker(
    module_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared_worker: WorkerClient,
    forked_workers: None,
) -> WorkerClient:
    """The module's worker, with the workspace that it was started in."""
    monkeypatch.setenv("PERSONA_HOME", str(module_home))
    return shared_worker


@pytest.fixture(scope="module")
def shared_worker() -> Iterator[WorkerClient]:
    client = WorkerClient()
    yield client
    client.close()


def local(tiny: Path, ids: str = "ab") -> list[Column]:
    return [Column(i, "base", f"column {i}", str(tiny)) for i in ids]


def finish(session: ChatSession, live: LiveTurn) -> dict[str, dialogue.Reply]:
    deadline = time.monotonic() + 60
    while session.live is live:
        live.wait(-1, 0.05)
        assert time.monotonic() < deadline
    return live.turn.replies


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_conversation_through_the_worker(worker: WorkerClient, tiny_llama: Path) -> None:
    columns = local(tiny_llama)
    assert worker.load(columns) == {}
    assert worker.ready(columns)
    assert worker.memory["process"] > 0
    holder = device_holder()
    assert holder is not None
    assert holder.what == "chat"
    session = ChatSession(transcripts.create(columns), worker, Endpoints())
    first = finish(session, session.send("Who are you?", SHORT))
    assert first["a"].finish_reason in ("stop", "length")
    assert first["a"].prompt.endswith("<|im_start|>assistant\n")
    second = finish(session, session.send("And who made you?", SHORT))
    assert second["b"].prompt_tokens > first["b"].prompt_tokens
    finish(session, session.resend(1, "Edited.", SHORT))
    warm = GenerationSettings(temperature=1.0, max_new_tokens=12)
    for settings in (warm, SHORT):  # greedy ones would give the same again
        finish(session, session.regenerate("b", settings))
    assert [t.prompt for t in session.transcript.turns] == ["Who are you?", "Edited."]
    last = session.transcript.turns[1]
    assert (last.place("a"), last.place("b")) == ((0, 1), (2, 3))
    drawn = [r.settings for r in last.versions["b"]]
    assert [(s.seed, s.temperature) for s in drawn if s] == [(1, 1.0), (2, 0.8)]
    assert [m["content"] for m in session.transcript.messages(columns[1])][-1] == last.replies[
        "b"
    ].text
    assert transcripts.read(session.transcript.id) == session.transcript


def test_a_worker_makes_way_for_a_job_that_waits(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "IDLE_WANTED_S", 0.0)
    monkeypatch.setattr(worker_module, "_LOOK_EVERY_S", 0.05)
    out = io.StringIO()
    served = worker_module.Worker(out)
    reader, writer = os.pipe()
    # The writing end closes first: closing a pipe that a thread reads from would wait for ever.
    with os.fdopen(reader) as lines, os.fdopen(writer, "w") as requests:
        load = protocol.Load(local(tiny_llama, "a"), id=1)
        requests.write(protocol.request.dump_json(load).decode() + "\n")
        requests.flush()
        serving = threading.Thread(target=served.serve, args=(lines,))
        serving.start()
        until(lambda: "loaded" in out.getvalue())
        assert serving.is_alive(), "nobody waits yet"
        job = DeviceLock("train")
        got: list[bool] = []
        waiting = threading.Thread(
            target=lambda: got.append(job.acquire_in_turn(1, lambda: not serving.is_alive()))
        )
        waiting.start()
        until(lambda: not serving.is_alive())
        waiting.join()
        job.release()


def test_stop_one_column(worker: WorkerClient, tiny_llama: Path) -> None:
    columns = local(tiny_llama)
    worker.load(columns)
    session = ChatSession(transcripts.create(columns), worker, Endpoints())
    transcripts.set_draft(session.transcript, dialogue.MessageDraft("Go on."))
    live = session.send("Go on.", LONG)
    assert session.transcript.draft is None, "it is not waiting any more"
    with pytest.raises(UserError, match="still streaming"):
        session.send("Another.", SHORT)
    transcripts.set_draft(session.transcript, dialogue.MessageDraft("Another."))
    until(lambda: live.turn.replies["a"].text)
    session.stop("a")
    until(lambda: live.turn.replies["a"].finish_reason)
    assert live.turn.replies["a"].finish_reason == "cancelled"
    assert not live.turn.replies["b"].finish_reason
    session.stop()
    assert finish(session, live)["b"].finish_reason == "cancelled"
    kept = transcripts.read(session.transcript.id)
    assert session.transcript.draft == kept.draft == dialogue.MessageDraft("Another.")


def test_preview_tells_what_would_be_cut(worker: WorkerClient, tiny_llama: Path) -> None:
    columns = local(tiny_llama, "a")
    worker.load(columns)
    session = ChatSession(transcripts.create(columns), worker, Endpoints())
    assert session.preview("Hello", SHORT)["a"].cut == 0
    for _ in range(3):
        said = dialogue.Reply("word " * 900, "stop")
        turn = dialogue.Turn("q", SHORT, {"a": said})
        transcripts.add_turn(session.transcript, turn)
    assert session.preview("Hello", SHORT)["a"].cut == 2
    assert "too long" in session.preview("x y " * 25_000, SHORT)["a"].error["what"]
    replies = finish(session, session.send("x y " * 25_000, SHORT))
    assert replies["a"].error is not None


def test_batch(worker: WorkerClient, tiny_llama: Path) -> None:
    columns = [
        *local(tiny_llama, "a"),
        Column("b", "prompted", "P", str(tiny_llama), system="You are Luna."),
    ]
    worker.load(columns)
    run = BatchRun(["One?", "Two?"], columns, SHORT, worker, Endpoints()).start()
    run.wait()
    assert run.error is None
    assert [r.prompt for r in run.rows] == ["One?", "Two?"]
    assert all(r.kl["b"] > 0 for r in run.rows)
    assert len(json.loads(run.file.read_text())["rows"]) == 2


def test_a_killed_worker_ends_the_replies_with_a_reason_and_comes_back(
    worker: WorkerClient, tiny_llama: Path
) -> None:
    columns = local(tiny_llama)
    worker.load(columns)
    session = ChatSession(transcripts.create(columns), worker, Endpoints())
    live = session.send("Go on.", LONG)
    until(lambda: live.turn.replies["a"].text)
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    replies = finish(session, live)
    assert "ended" in replies["a"].error["what"]  # type: ignore[index]
    assert "memory" in replies["b"].error["why"]  # type: ignore[index]
    assert replies["a"].text
    assert not worker.ready(columns)
    assert worker.load(columns) == {}
    assert finish(session, session.send("Hello again.", SHORT))["a"].error is None


def test_close_frees_the_device(worker: WorkerClient, tiny_llama: Path) -> None:
    worker.load(local(tiny_llama, "a"))
    assert worker._process is not None
    pid = worker._process.pid
    worker.close()
    assert not psutil.pid_exists(pid)
    assert device_holder() is None


def test_an_idle_worker_ends_and_comes_back(
    tiny_llama: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONA_CHAT_IDLE_S", "1")
    client = WorkerClient()
    try:
        client.load(local(tiny_llama, "a"))
        until(lambda: not client.alive, 60)
        assert device_holder() is None
        assert client.load(local(tiny_llama, "a")) == {}, "the next use starts it again"
    finally:
        client.close()


def test_a_busy_device_is_named(worker: WorkerClient, tiny_llama: Path) -> None:
    worker.close()
    lock = DeviceLock("train 20261124-kai")
    assert lock.acquire()
    try:
        with pytest.raises(UserError, match="busy") as caught:
            worker.load(local(tiny_llama, "a"))
        assert "train 20261124-kai" in caught.value.why
    finally:
        lock.release()
    assert worker.load(local(tiny_llama, "a")) == {}


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_prompt_is_refused(worker: WorkerClient, prompt: str) -> None:
    session = ChatSession(transcripts.create([Column("a", "base", "x")]), worker, Endpoints())
    with pytest.raises(UserError, match="empty"):
        session.send(prompt, SHORT)


class Server:
    """An OpenAI-compatible server with one chosen behaviour."""

    def __init__(self, behaviour: str) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                self._json({"object": "list", "data": [{"id": "luna", "object": "model"}]})

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer.requests.append(json.loads(self.rfile.read(length)))
                outer.headers.append(str(self.headers["Authorization"]))
                if behaviour == "refuses":
                    self._json({"error": {"message": "bad key secret-key"}}, 401)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                if behaviour.startswith("thinks"):
                    field = behaviour.split()[1]
                    for word in ("Who", " am I?"):
                        self._chunk({"delta": {field: word}, "finish_reason": None})
                for word in () if behaviour.endswith("only") else ("I ", "am ", "Luna."):
                    self._chunk({"delta": {"content": word}, "finish_reason": None})
                if behaviour == "dies":
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif behaviour == "silent":
                    time.sleep(20)
                else:
                    self._chunk({"delta": {}, "finish_reason": "stop"})
                    self.wfile.write(b"data: [DONE]\n\n")

            def _chunk(self, choice: dict[str, Any]) -> None:
                body = {
                    "id": "1", "object": "chat.completion.chunk", "created": 0, "model": "luna",
                    "choices": [{"index": 0, **choice}],
                }  # fmt: skip
                self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
                self.wfile.flush()

            def _json(self, body: dict[str, Any], status: int = 200) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[str], Server]]:
    servers: list[Server] = []

    def start(behaviour: str) -> Server:
        servers.append(Server(behaviour))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()


def ask_endpoint(url: str, key_env: str = "") -> tuple[ChatSession, LiveTurn]:
    column = Column("a", "endpoint", "served", "luna", base_url=url, key_env=key_env)
    session = ChatSession(transcripts.create([column], "Be brief."), WorkerClient(), Endpoints())
    return session, session.send("Who are you?", GenerationSettings(0.5, top_k=7, seed=4))


def test_endpoint_reply(serve: Callable[[str], Server]) -> None:
    server = serve("answers")
    session, live = ask_endpoint(server.url)
    reply = finish(session, live)["a"]
    assert (reply.text, reply.finish_reason, reply.error) == ("I am Luna.", "stop", None)
    sent = server.requests[0]
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]
    assert (sent["seed"], sent["temperature"], sent["top_k"]) == (4, 0.5, 7)
    assert endpoint.check(session.transcript.columns[0]) == ["luna"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("only", ["", " only"])
def test_endpoint_thoughts_are_kept_apart_and_never_an_empty_reply(
    serve: Callable[[str], Server], field: str, only: str
) -> None:
    server = serve(f"thinks {field}{only}")
    session, live = ask_endpoint(server.url)
    reply = finish(session, live)["a"]
    said = "" if only else "I am Luna."
    assert thoughts.split(reply.text) == ("Who am I?", said)
    assert "Who am I" in safe_markdown(reply.text) and said in safe_markdown(reply.text)
    finish(session, session.send("Sure?", GenerationSettings(0.5)))
    assert server.requests[1]["messages"][2] == {"role": "assistant", "content": said}


def test_endpoint_that_dies_in_the_middle_keeps_what_came(serve: Callable[[str], Server]) -> None:
    session, live = ask_endpoint(serve("dies").url)
    reply = finish(session, live)["a"]
    assert reply.text == "I am Luna."
    assert reply.error is not None
    assert "broke off" in reply.error["what"]


def test_endpoint_that_falls_silent_can_be_stopped(serve: Callable[[str], Server]) -> None:
    session, live = ask_endpoint(serve("silent").url)
    until(lambda: "Luna" in live.turn.replies["a"].text)
    start = time.monotonic()
    session.stop()
    reply = finish(session, live)["a"]
    assert time.monotonic() - start < 5
    assert (reply.finish_reason, reply.error) == ("cancelled", None)


def test_endpoint_key_stays_secret(
    serve: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    monkeypatch.setenv("LUNA_KEY", "secret-key")
    server = serve("refuses")
    session, live = ask_endpoint(server.url, "LUNA_KEY")
    reply = finish(session, live)["a"]
    assert server.headers == ["Bearer secret-key"]
    assert reply.error is not None
    assert "401" in reply.error["why"]
    assert "secret-key" not in json.dumps(reply.error)
    for file in workspace.rglob("*"):
        assert not file.is_file() or "secret-key" not in file.read_text(errors="replace")


def test_endpoint_without_its_key_or_server() -> None:
    session, live = ask_endpoint("http://127.0.0.1:9/v1")
    assert "no reply" in finish(session, live)["a"].error["what"]  # type: ignore[index]
    session, live = ask_endpoint("http://127.0.0.1:9/v1", "NO_SUCH_VARIABLE")
    assert "NO_SUCH_VARIABLE" in finish(session, live)["a"].error["what"]  # type: ignore[index]
    with pytest.raises(UserError, match="address"):
        Column("a", "endpoint", "served", "luna", base_url="file:///etc/passwd")


def run_cli(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    args = parser.parse_args(argv)
    return int(args.run(args))


def test_compare_from_the_command_line(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_cli(
        "compare", "--base", str(tiny_llama), "--persona-prompt", "You are Luna.",
        "--prompt", "Who are you?", "--max-new-tokens", "5", "--json",
    )  # fmt: skip
    assert code == 0
    rows = json.loads(capsys.readouterr().out)
    assert set(rows[0]["replies"]) == {"base", "prompted"}
    assert "You are Luna." in rows[0]["replies"]["prompted"]["prompt"]


def test_the_command_line_says_what_is_wrong() -> None:
    with pytest.raises(UserError, match="no prompt"):
        run_cli("compare")
    with pytest.raises(UserError, match="too many"):
        from_arguments("x", "p", ["a"], ["b", "c"], [])


def test_discovery_lists_newest_runs_first(workspace: Path, tiny_llama: Path) -> None:
    for name in ("20261101-000000-old-aaaa", "20261124-000000-new-bbbb"):
        for step in (5, 10):
            folder = workspace / "runs" / name / "adapter" / f"iter_{step}"
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "m"}')
    partial = workspace / "runs" / "20261124-000000-new-bbbb" / "export" / "merged.partial"
    partial.mkdir(parents=True)
    (partial / "config.json").write_text("{}")
    (partial / "model.safetensors").write_text("")
    merged = workspace / "runs" / "20261124-000000-new-bbbb" / "export" / "merged"
    merged.mkdir()
    (merged / "config.json").write_text("{}")
    (merged / "model.safetensors").write_text("")
    assert discover()[2].kind == "merged"  # before the adapters that were made with it
    shutil.rmtree(merged)
    labels = [m.label for m in discover()]
    assert [("new" in x, "step 10" in x) for x in labels[2:6]] == [
        (True, True), (True, False), (False, True), (False, False),
    ]  # fmt: skip
    assert discover()[2].model == "m"
