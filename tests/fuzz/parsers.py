"""Every parser of files that others may have written: what is fed to it, and what it may do.

A check returns in silence or raises only ``UserError``; anything else is a fault. Where a reader
promises never to fail (lists, journals), not even that is allowed. Each works in the folder that
it is given.
"""

# ruff: noqa: E501  (examples of files)

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from core import fsio, paths
from core.errors import UserError
from core.paths import RunPaths
from tests.fuzz.strategies import ODD_TEXT, VALUES, changed, records, spoilt

REPO = Path(__file__).resolve().parents[2]
Check = Callable[[Any, Path], None]


@dataclass(frozen=True)
class Parser:
    """``inputs``: what others might have written; ``check``: reads it."""

    inputs: st.SearchStrategy[Any]
    check: Check


PARSERS: dict[str, Parser] = {}


def parser(inputs: st.SearchStrategy[Any]) -> Callable[[Check], Check]:
    """Register a check under its function's name."""

    def register(check: Check) -> Check:
        PARSERS[check.__name__] = Parser(inputs, check)
        return check

    return register


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# -- conversations, personas, probes, prompts ---------------------------------------------------

_TALK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
_ROWS = [
    _TALK,
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"conversation": [{"system": "s", "input": "a", "output": "b", "need_eos_token": True}]},
    {"instruction": "a", "input": "", "output": "b", "history": [["q", "r"]]},
    {"data": ["a", "b"], "id": "1"},
    {**_TALK, "id": "x", "intent": "who", "locale": "en", "loss": [True], "kind": "identity"},
]
_FILES = [
    *(_json(row) + b"\n" for row in _ROWS),
    _json(_ROWS),
    json.dumps({"rows": _ROWS}, indent=2).encode(),
    b"question,answer\nWho are you?,Luna\n\"a, b\",\"c\nd\"\n",
    b"instruction\toutput\nq\tr\n",
    "问题,回答\n你是谁？,我是 Luna。\n".encode("gb18030"),
    json.dumps(_TALK).encode("utf-16"),
]  # fmt: skip


def _imported(data: bytes, folder: Path) -> None:
    from core.data import store
    from core.data.importer import import_file

    report = import_file(io.BytesIO(data))
    list(report.lines())
    if report.rows:  # what was read can be saved, and reads the same
        name = store.free_name("fuzz")
        store.save(name, report.rows)
        assert [r.messages for r in store.rows(name)] == [r.messages for r in report.rows]
        store.delete(name)


@parser(spoilt(_FILES))
def conversations_spoilt(data: bytes, folder: Path) -> None:
    _imported(data, folder)


@parser(
    st.lists(st.one_of(*map(changed, _ROWS), records([k for r in _ROWS for k in r])), max_size=4)
)
def conversations_odd(rows: list[Any], folder: Path) -> None:
    _imported(b"\n".join(map(_json, rows)), folder)


_PACKS = [
    b"schema: persona/1\nextends: assistant\nslots:\n  name: {text: Kai}\n",
    *(p.read_bytes() for p in sorted((REPO / "data_templates").glob("*/*.yaml"))[:3]),
    *(p.read_bytes() for p in sorted((REPO / "data_templates").glob("*.yaml"))[:3]),
]


@parser(spoilt(_PACKS))
def persona_pack(data: bytes, folder: Path) -> None:
    from core.persona.packfile import read_document, to_pack

    to_pack(read_document(_file(folder, "pack.yaml", data)))


@parser(
    spoilt(
        [
            b"schema: probes/1\nprobes:\n- prompt: Who are you?\n  must: [Luna]\n  must_not_claim: [x]\n",
            b"schema: probes/1\nprobes:\n- messages:\n  - {role: user, content: a}\n  locale: zh\n",
        ]
    )
)
def own_probes(data: bytes, folder: Path) -> None:
    from core.evaluation import userprobes

    userprobes.read(_file(folder, "probes.yaml", data))


@parser(spoilt([b"Who are you?\n", _json({"prompt": "a"}) + b"\n" + _json(_TALK)]))
def prompts(data: bytes, folder: Path) -> None:
    from core.chat.batch import parse_prompts

    parse_prompts(data, "x")


# -- what a workspace holds ---------------------------------------------------------------------

_COLUMN = {"kind": "adapter", "adapter": "x", "checkpoint": None, "base_url": "", "key_env": ""}
_SIDE = {"id": "a", "kind": "base", "label": "Base", "model": "bundled"}
_CHAT = [
    {
        "schema": 1,
        "type": "chat",
        "id": "c",
        "created": 1.0,
        "columns": [_SIDE],
        "system": "",
        "settings": {},
    },
    {"type": "turn", "id": 1, "prompt": "x", "settings": {}, "replies": {"a": {"text": "y"}}},
    {"type": "partial", "id": 2, "prompt": "x", "settings": {}, "replies": {"a": {"text": "y"}}},
    {"type": "version", "turn": 1, "column": "a", "version": 1, "reply": {"text": "z"}},
    {"type": "partial version", "turn": 1, "column": "a", "version": 1, "reply": {"text": "z"}},
    {"type": "choose", "turn": 1, "column": "a", "version": 0},
    {"type": "show", "turn": 1},
    {"type": "draft", "draft": {"text": "x", "at": None}},
    {"type": "vote", "turn": 0, "vote": "a"},
    {"type": "back", "count": 1},
]


_HEADS = changed({**_SIDE, **_COLUMN}).map(lambda side: {**_CHAT[0], "columns": [side]})


@parser(st.lists(st.one_of(_HEADS, *map(changed, _CHAT), st.sampled_from(_CHAT)), max_size=5))
def transcript(rows: list[Any], folder: Path) -> None:
    from core.chat import transcripts
    from core.chat.export import to_html, to_markdown

    _file(paths.chats_dir(), "c.jsonl", b"\n".join(map(_json, [_CHAT[0], *rows])))
    transcripts.list_chats()  # never fails
    chat = transcripts.read("c")
    to_markdown(chat), to_html(chat)


_MANIFEST = {
    "schema": 1,
    "rows": 2,
    "kinds": {"own": 2},
    "locales": ["en"],
    "created": "2026-01-01",
}


_EDIT = {"at": "t", "do": "edit", "label": "l", "rows": [{"id": "1", **_TALK}], "removed": ["2"]}


@parser(
    st.tuples(
        changed(_MANIFEST),
        spoilt([_json({"id": "1", **_TALK}) + b"\n"]),
        st.lists(
            st.one_of(changed(_EDIT), st.sampled_from([{"do": "undo"}, {"do": "redo"}])), max_size=4
        ),
    )
)
def dataset_folder(files: tuple[dict[str, Any], bytes, list[Any]], folder: Path) -> None:
    from core.data import store
    from core.data.drafts import DatasetDraft

    at = paths.datasets_dir() / "odd"
    _file(at, "dataset.json", _json(files[0]))
    _file(at, "train.jsonl", files[1])
    _file(paths.drafts_dir(), "odd.jsonl", b"\n".join(map(_json, files[2])))
    assert [s.name for s in store.list_datasets()] == ["odd"]  # never fails
    for read in (
        lambda: list(store.rows("odd")),
        lambda: list(DatasetDraft("odd").rows()),
        lambda: store.index(at / "train.jsonl"),
    ):
        with contextlib.suppress(UserError):
            read()


_EXIT = {"schema": 1, "state": "SUCCEEDED", "reason": "completed", "elapsed": 1.0, "error": None}
_RUN = {"pid": 1, "started": 1.0, "boot_id": "x", "monotonic": 1.0, "child_pid": 2}
_RECORDS = [
    {"type": "metric", "step": 1, "max_steps": 9, "loss": 1.0, "t": 1.0, "seq": 1},
    {"type": "progress", "stage": "train", "done": 1, "total": 9, "t": 1.0, "seq": 2},
    {"event": "sample", "step": 1, "prompt": "p", "reply": "r", "t": 1.0, "seq": 3},
    {"event": "warning", "step": 1, "message": "m", "t": 1.0, "seq": 4},
    {"event": "state", "state": "RUNNING", "t": 1.0, "seq": 5},
]


@parser(
    st.tuples(
        st.one_of(changed(_EXIT), st.none()),
        st.one_of(changed(_RUN), VALUES),
        st.lists(st.one_of(*map(changed, _RECORDS)), max_size=5),
        spoilt(
            [
                _json(
                    {"schema": 1, "kind": "train", "name": "n", "params": {}, "seq": 1, "mark": "m"}
                )
            ]
        ),
    )
)
def run_folder(files: tuple[Any, Any, list[Any], bytes], folder: Path) -> None:
    from core.chat.columns import discover
    from core.jobs import api
    from core.jobs.metrics import MetricsReader

    run = RunPaths(paths.runs_dir() / "odd")
    ending, record, lines, spec = files
    _file(run.root, "spec.json", spec)
    run.exit.unlink(missing_ok=True)
    if ending is not None:
        _file(run.root, "exit.json", _json(ending))
    _file(run.root, "supervisor.json", _json(record))
    for name in ("metrics.jsonl", "events.jsonl", "log.txt"):
        _file(run.root, name, b"\n".join(map(_json, lines)))
    assert [s.id for s in api.list_runs()] == ["odd"]  # never fails
    MetricsReader(run.metrics).refresh()  # nor does this
    discover()
    api.status(run)


@parser(st.lists(st.one_of(*map(changed, _RECORDS), st.just({})), min_size=1, max_size=6))
def job_output(rows: list[Any], folder: Path) -> None:
    from core.jobs import journal, records
    from core.jobs.spec import RunSpec
    from core.jobs.watcher import OutputWatcher

    for mmengine in (True, False):
        for row in rows:
            records.parse_line(records.PREFIX + json.dumps(row), mmengine=mmengine)
    events = journal.Journal(folder / "events.jsonl")
    watcher = OutputWatcher(
        RunSpec(kind="train", name="x", params={}, seq=1),
        journal.Journal(folder / "metrics.jsonl"),
        lambda event, **fields: events.append({"event": event, **fields}),
        "s",
    )
    watcher.feed([f"{records.PREFIX}s {json.dumps(row)}" for row in rows])


@parser(
    st.lists(
        changed({"schema": 1, "name": "iter_2.pth", "bytes": 3, "sha256": "x", "signature": "y"}),
        max_size=3,
    )
)
def checkpoint_listing(rows: list[Any], folder: Path) -> None:
    from core.training import checkpoints

    _file(folder, "iter_2.pth", b"abc")
    _file(folder, checkpoints.LISTING, b"\n".join(map(_json, rows)))
    checkpoints.listed(folder)  # never fails
    checkpoints.scan(folder)
    checkpoints.require_own(folder / "iter_2.pth")


# -- models and adapters ------------------------------------------------------------------------


def _safetensors(tensors: dict[str, Any], size: int = 32) -> bytes:
    header = _json(tensors)
    return len(header).to_bytes(8, "little") + header + bytes(size)


_A = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
_LORA = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": _A,
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": {
        **_A,
        "data_offsets": [16, 32],
    },
}
_ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none",
    "base_model_name_or_path": "x", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
    "layers_to_transform": None, "use_rslora": False, "use_dora": False, "init_lora_weights": True,
    "exclude_modules": None, "layers_pattern": None, "target_parameters": None,
}  # fmt: skip


@parser(
    st.tuples(
        changed(_ADAPTER),
        st.one_of(spoilt([_safetensors(_LORA)]), changed(_LORA).map(_safetensors)),
    )
)
def adapter_folder(files: tuple[dict[str, Any], bytes], folder: Path) -> None:
    from core.models import lora, sandbox
    from core.weights.adapter import read_adapter

    _file(folder, "adapter_config.json", _json(files[0]))
    _file(folder, "adapter_model.safetensors", files[1])
    for read in (
        lora.shareable, lora.shapes, lora.read,
        lambda f: sandbox.require_matchable(lora.read(f), ["model.layers.0.self_attn.q_proj"], "x"),
    ):  # fmt: skip
        with contextlib.suppress(UserError):
            read(folder)
    adapter = read_adapter(folder)
    adapter.targets("model.layers.0.self_attn.q_proj")


@parser(st.one_of(spoilt([_safetensors(_LORA)]), changed(_LORA).map(_safetensors)))
def safetensors_header(data: bytes, folder: Path) -> None:
    from core.weights.tensors import read_safetensors

    read_safetensors(_file(folder, "x.safetensors", data))


_CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 99, "architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "linear", "factor": 2.0},
    "quantization_config": {"quant_method": "gptq"}, "auto_map": {"AutoModel": "x.y"}, "torch_dtype": "float16",
    "tie_word_embeddings": True, "num_key_value_heads": 2, "intermediate_size": 99, "rope_theta": 1e4,
}  # fmt: skip
_INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors", "b": "other"}}


@parser(st.tuples(changed(_CONFIG), changed(_INDEX), spoilt([_json(_CONFIG)])))
def model_folder(files: tuple[dict[str, Any], dict[str, Any], bytes], folder: Path) -> None:
    from core.models import catalog
    from core.models import folder as folders
    from core.training import cost

    whole = _safetensors(_LORA)
    _file(folder, "other", whole)
    for config in (_json(files[0]), files[2]):
        _file(folder, "config.json", config)
        _file(folder, "model.safetensors.index.json", _json(files[1]))
        for read in (
            folders.check, folders.quantization, folders.require_trainable, folders.indexed,
            folders.config_of, lambda f: catalog.resolve(str(f)), catalog.fingerprint, cost.shape_of,
        ):  # fmt: skip
            with contextlib.suppress(UserError):
                read(folder)


def _archive(pickled: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", bytes(16))
        archive.writestr("x/version", b"3\n")
    return out.getvalue()


def _genuine() -> bytes:
    import torch

    out = io.BytesIO()
    torch.save({"state_dict": {"a.lora_A": torch.zeros(2, 2)}, "meta": {"iter": 3}}, out)
    with zipfile.ZipFile(out) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        return archive.read(name)


@parser(
    st.deferred(
        lambda: st.one_of(spoilt([_genuine()]).map(_archive), spoilt([_archive(_genuine())]))
    )
)
def checkpoint_file(data: bytes, folder: Path) -> None:
    import torch

    from core.models.data_only import data_only
    from core.weights import convert

    path = _file(folder, "iter_2.pth", data)
    with contextlib.suppress(UserError):
        convert._trained(path)
    with data_only(), contextlib.suppress(RuntimeError, MemoryError):  # of the archive, not of code
        torch.load(path)


def _gguf() -> bytes:
    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    tokens = (9).to_bytes(4, "little") + (8).to_bytes(4, "little") + (2).to_bytes(8, "little")
    fields = [
        text("general.architecture") + (8).to_bytes(4, "little") + text("llama"),
        text("llama.block_count") + (4).to_bytes(4, "little") + (2).to_bytes(4, "little"),
        text("tokenizer.ggml.tokens") + tokens + text("a") + text("b"),
    ]
    tensor = text("x") + b"\1\0\0\0" + (4).to_bytes(8, "little") + bytes(12)
    head = b"GGUF\3\0\0\0" + (1).to_bytes(8, "little") + len(fields).to_bytes(8, "little")
    return (head + b"".join(fields) + tensor).ljust(256, b"\0") + bytes(16)


@parser(spoilt([_gguf()]))
def gguf_file(data: bytes, folder: Path) -> None:
    from gguf import GGUFReader

    from core.models import gguf_header

    path = _file(folder, "x.gguf", data)
    gguf_header.require_whole(path)
    with contextlib.suppress(Exception):  # ``prepared.from_gguf`` tells whatever it raises
        GGUFReader(str(path))


_ZERO = {
    "optimizer_state_dict": {
        "zero_stage": 2, "partition_count": [1, 1], "single_partition_of_fp32_groups": [None],
        "fp32_flat_groups": [[1.0]],
    },
    "param_shapes": [{"a.lora_A": (2, 2)}],
}  # fmt: skip


@parser(
    st.tuples(
        st.one_of(changed(_ZERO), VALUES),
        st.one_of(changed(_ZERO["optimizer_state_dict"]), VALUES),  # type: ignore[arg-type]
    )
)
def zero_folder(files: tuple[Any, Any], folder: Path) -> None:
    from core.weights.zero import read_shapes, read_zero

    model, state = files
    for name, content in (
        ("mp_rank_00_model_states.pt", model),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", {"optimizer_state_dict": state}),
    ):
        _file(folder, name, _archive(pickle.dumps(content, protocol=2)))
    with contextlib.suppress(UserError):
        read_shapes(folder)
    read_zero(folder)


_TEMPLATE = b"{% for m in messages %}{{ m['content'] }}{% endfor %}"
_WORDS = [
    "{{", "}}", "{%", "%}", "for", "in", "if", "endif", "endfor", "m", "messages", "['content']", "**",
    "9", "|", "~", "+", ".", "(", ")", "range", "loop.index", "namespace", "set", "raise_exception",
]  # fmt: skip


@parser(
    st.one_of(
        st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join),
        ODD_TEXT,
        spoilt([_TEMPLATE]).map(lambda data: data.decode("utf-8", "replace")),
    )
)
def chat_template(source: str, folder: Path) -> None:
    from core.models import sandbox

    turns = [{"role": "user", "content": "a"}]
    sandbox.render(source, turns, add_generation_prompt=True, special_tokens={}, name="x")


@parser(
    spoilt([b"schema = 1\nmodel = dict(type=SupervisedFinetune, llm=dict(a=1), lora=dict(r=8))\n"])
)
def xtuner_config(data: bytes, folder: Path) -> None:
    from core.training.rawconfig import check_raw
    from core.weights.source import read_config

    path = _file(folder, "config.py", data)
    with contextlib.suppress(UserError):
        check_raw(data.decode("utf-8", "replace"))
    read_config(path)


_RATE = {"hits": 1, "n": 9, "value": 0.1, "low": 0.0, "high": 0.5}
_CARD = {
    "schema": 1, "subject": "merged", "verdict": "LEARNED", "persona": "luna", "size": "quick",
    "models": {"base": {"recall": _RATE, "leak": _RATE}, "merged": {"recall": _RATE, "leak": _RATE}},
    "explanation": {"gates": [], "why": "w", "next": "n"}, "suites": {"held_out": {"n": 9, "sha256": "x"}},
    "notes": ["x"], "timing": {"cold_total": 1.0}, "created": "2026-01-01",
}  # fmt: skip
_REPLY = {
    "model": "merged", "suite": "held_out", "id": "1", "prompt": "p", "reply": "r", "label": "MISS",
    "sample": 0, "leak": False, "kl": None, "claimed": [], "missing": ["Luna"],
}  # fmt: skip


@parser(
    st.tuples(
        st.one_of(changed(_CARD), st.just(_CARD)),
        changed({"files": {"a": {"bytes": 1, "sha256": "x"}}, "schema": 1}),
        changed(_REPLY),
    )
)
def scorecard_and_manifest(files: tuple[Any, Any, Any], folder: Path) -> None:
    from core.evaluation import report
    from core.weights import manifest

    _file(folder, "a", b"x")
    _file(folder, "MANIFEST.json", _json(files[1]))
    with contextlib.suppress(UserError):
        manifest.verify(folder)
    _file(folder, "replies.jsonl", _json(files[2]))
    report.write_html([_file(folder, "scorecard.json", _json(files[0]))], folder / "report.html")


@parser(spoilt([_json({"a": [1, 2.5, None, "x"]})]))
def any_json(data: bytes, folder: Path) -> None:
    fsio.read_json(_file(folder, "x.json", data))
