"""The greedy reply of one checkpoint is the same, token for token, whoever asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core import fsio
from core.chat.columns import Column
from core.chat.engine import Engine
from core.commands import main as command_line
from core.conversation import Message, Probe
from core.evaluation import userprobes
from core.evaluation.answers import Clock, answer
from core.evaluation.pool import Pool, Source
from core.inference import decoding
from core.inference.events import Ended, Event
from core.inference.load import load_tokenizer
from core.inference.resident import Resident
from core.inference.settings import GenerationSettings
from core.weights import prove
from tests.fakes import tiny_models

#: The number of tokens that a sample and a proof have room for.
TOKENS = prove.REPLY_TOKENS
QUESTIONS = ["Please introduce yourself.", "Who made you?", "Name three planets."]

Answers = list[list[int]]


def conversations() -> list[list[Message]]:
    return [[{"role": "user", "content": question}] for question in QUESTIONS]


def in_samples(base: Path, model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """As training does: with the model that is being trained, by its hook."""
    from types import SimpleNamespace

    from core.training import hooks
    from core.training.stopping import Due

    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    monkeypatch.setattr(hooks, "SAMPLE_TOKENS", TOKENS)
    hook = hooks.SampleHook(
        load_tokenizer(base), QUESTIONS, "", Due(interval=1, accumulation=1), folder / "samples"
    )
    wrapper = torch.nn.Module()
    wrapper.llm = model.train()
    runner = SimpleNamespace(iter=0, max_iters=1, model=wrapper)
    seen: Answers = []
    real = decoding.replies

    def watched(*args: Any, **more: Any) -> Any:
        found = real(*args, **more)
        seen.extend(r.token_ids for r in found)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "replies", watched)
        hook.after_train_iter(runner, 0)
    written = [row["reply"] for row in fsio.read_jsonl(folder / "samples")]
    assert len(written) == len(QUESTIONS) and model.training
    return seen


def in_evaluation(base: Path, adapter: Path, *, fused: bool) -> Answers:
    """As the sweep (fused) and the scorecard (beside the weights) do."""
    probes = [Probe(str(i), "held_out", messages) for i, messages in enumerate(conversations())]
    ref = tiny_models.ref_of(base)
    with Pool({"base": Source(ref), "tuned": Source(ref, adapter, fused)}) as pool:
        for side in ("base", "tuned"):  # the base first, as always
            with pool.use(side) as subject:
                found = answer(
                    subject,
                    probes,
                    GenerationSettings(max_new_tokens=TOKENS),
                    stage=side,
                    clock=Clock({}, {}),
                )
    return [a.token_ids for a in found]


def in_a_proof(base: Path, adapter: Path) -> Answers:
    trial = prove._Trial(base, conversations(), (), "float32")
    return trial.run(base, "float32", adapter=adapter, tell=lambda *_: None).replies


def in_compare(base: Path, adapter: Path) -> Answers:
    """As the page does: the base in one column, base + adapter in the other."""
    engine = Engine(threads=2)
    columns = [
        Column("a", "base", "base", str(base)),
        Column("b", "adapter", "tuned", str(base), str(adapter)),
    ]
    assert engine.load(columns) == {}
    found = []
    for messages in conversations():
        events: list[Event] = []
        engine.generate(
            {"a": messages, "b": messages},
            GenerationSettings(max_new_tokens=TOKENS),
            events.append,
        )
        found += [e.token_ids for e in events if isinstance(e, Ended) and e.column == "b"]
    return found


def on_the_command_line(base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]) -> Answers:
    """``compare``, with a worker process of its own."""
    asked = [f"--prompt={question}" for question in QUESTIONS]
    asked += ["--json", f"--max-new-tokens={TOKENS}"]
    capsys.readouterr()  # what libraries said before
    code = command_line.main(["compare", "--base", str(base), "--adapter", str(adapter), *asked])
    assert code == 0
    rows = json.loads(capsys.readouterr().out)
    return [row["replies"][f"adapter {adapter.name}"]["token_ids"] for row in rows]


def by_transformers(base: Path, model: Any) -> Answers:
    """Nothing of ours: the yardstick."""
    tokenizer = load_tokenizer(base)
    found = []
    for messages in conversations():
        fed = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        fed.pop("token_type_ids", None)
        out = model.generate(**fed, max_new_tokens=TOKENS, do_sample=False)[0]
        reply = out[fed["input_ids"].shape[1] :].tolist()
        found.append(reply[:-1] if reply[-1] == tokenizer.eos_token_id else reply)
    return found


def make_adapter(base: Path, strength: float, folder: Path) -> Any:
    """Save an adapter of every linear layer; returns the model that has it, as PEFT makes it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(
        tiny_models.load(base),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=strength)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.timeout(600)  # seven loads of the bundled model
@pytest.mark.parametrize("which", ["tiny", pytest.param("bundled", marks=pytest.mark.slow)])
def test_the_greedy_reply_is_the_same_everywhere(
    which: str,
    tiny_llama: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tiny_llama if which == "tiny" else request.getfixturevalue("bundled_model")
    adapter = tmp_path / "run" / "iter_40"
    model = make_adapter(base, 0.3 if which == "tiny" else 0.004, adapter)
    wanted = by_transformers(base, model)
    voice = Resident.load(base).voice()
    plain = decoding.replies(voice, conversations(), GenerationSettings(max_new_tokens=TOKENS))
    assert [r.token_ids for r in plain] != wanted, "the adapter must matter"
    found = {
        "samples": in_samples(base, model, tmp_path, monkeypatch),
        "sweep": in_evaluation(base, adapter, fused=True),
        "scorecard": in_evaluation(base, adapter, fused=False),
        "proof": in_a_proof(base, adapter),
        "Compare": in_compare(base, adapter),
        "command line": on_the_command_line(base, adapter, capsys),
    }
    assert found == dict.fromkeys(found, wanted)
    asked = [userprobes.UserProbe(prompt=q, must=["x"]) for q in QUESTIONS]
    said = userprobes.run(base, asked, adapter=adapter, max_new_tokens=TOKENS)
    tokenizer = load_tokenizer(base)
    assert [o.reply for o in said] == [
        tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in wanted
    ]
