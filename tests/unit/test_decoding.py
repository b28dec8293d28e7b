"""The one decoding loop: whatever shares a batch, a reply is what transformers alone gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.evaluation import shipped
from core.evaluation.pool import Pool, Source
from core.inference import adapters, decoding, lean, resident
from core.inference.backend import rows_that_fit
from core.inference.cuda_graph import GraphBackend, GraphBatch
from core.inference.lean import LeanBackend
from core.inference.llama import KVCache, LeanLlama, Segment
from core.inference.load import load_model, load_tokenizer
from core.inference.padded import PaddedBackend
from core.inference.requests import Request
from core.inference.resident import Resident, Voice, choose
from core.inference.sampling import Sampler
from core.inference.settings import GenerationSettings
from core.weights import kernels
from core.weights.merge import merge
from core.weights.merge_plan import Op
from tests.fakes import tiny_models

CONVERSATIONS = [
    [{"role": "user", "content": f"Tell me about number {i}" + " and more" * (i % 7)}]
    for i in range(23)
]
SHORT = GenerationSettings(max_new_tokens=12)
SAMPLED = GenerationSettings(temperature=1.0, top_p=0.9, max_new_tokens=12, seed=3)


@pytest.fixture(scope="module")
def adapted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the tiny model says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_model(tiny_llama), config).save_pretrained(str(folder))
    return folder


def replies(voice: Voice, settings: GenerationSettings = SHORT, **options: Any) -> list[list[int]]:
    return [r.token_ids for r in decoding.replies(voice, CONVERSATIONS, settings, **options)]


def alone(model: Any, tokenizer: Any) -> list[list[int]]:
    """transformers' own replies, one by one."""
    found = []
    for messages in CONVERSATIONS:
        fed = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        fed.pop("token_type_ids", None)
        out = model.generate(**fed, max_new_tokens=12, do_sample=False)[0]
        new = out[fed["input_ids"].shape[1] :].tolist()
        found.append(new[: new.index(2)] if 2 in new else new)
    return found


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("lean_path", [False, True])
def test_rows_equal_transformers(
    tiny_llama: Path,
    adapted: Path,
    with_adapter: bool,
    lean_path: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not lean_path:
        monkeypatch.setattr(resident, "unsupported", lambda model: "not wanted")
    monkeypatch.setattr(LeanBackend, "best_rows", 5)  # rows are refilled
    plain = tiny_models.load(tiny_llama)
    if with_adapter:
        plain = tiny_models.tuned(tiny_llama, adapted)
    voice = Resident.load(tiny_llama).voice(adapted if with_adapter else None)
    assert isinstance(voice.resident.backend, LeanBackend if lean_path else PaddedBackend)
    seen: list[int] = []
    given = replies(voice, on_progress=lambda stage, done, total: seen.append(done))
    assert given == alone(plain, voice.resident.tokenizer)
    assert seen == sorted(seen) and seen[-1] == len(CONVERSATIONS)
    if with_adapter:
        assert given != replies(Resident.load(tiny_llama).voice())


def test_a_sampled_reply_does_not_depend_on_its_company(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = Resident.load(tiny_llama).voice()
    wanted = replies(voice, SAMPLED)
    assert len(set(map(tuple, wanted))) == len(wanted)
    for rows, threads in ((4, 1), (7, 2)):
        monkeypatch.setattr(LeanBackend, "best_rows", rows)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert replies(voice, SAMPLED) == wanted
    same = decoding.continuations(voice, [[5, 6, 7]] * 4, SAMPLED)
    assert len({tuple(r.token_ids) for r in same}) == 4, "equal prompts draw different replies"


class _Eager:
    """Stands in for a recorded graph where there is no GPU: runs the step at each replay."""

    def __init__(self, batch: GraphBatch, window: int, adapted: list[tuple[slice, str]]) -> None:
        self.batch, self.window, self.adapted = batch, window, adapted

    def replay(self) -> None:
        batch = self.batch
        batch._logits = batch.backend.model.step(
            batch._fed[0], batch._fed[1], batch.cache, self.adapted, self.window
        )


def test_rows_of_a_graph_are_refilled_where_they_stand(
    tiny_llama: Path, adapted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bookkeeping of the GPU's path, with the recording left out."""
    recorded: list[int] = []

    def record(self: GraphBatch, window: int, names: list[tuple[slice, str]]) -> _Eager:
        recorded.append(window)
        return _Eager(self, window, names)

    monkeypatch.setattr(GraphBatch, "_record", record)
    monkeypatch.setattr("core.inference.cuda_graph.SMALLEST_WINDOW", 32)
    monkeypatch.setattr(GraphBackend, "best_rows", 5)
    model = adapters.attach(load_model(tiny_llama), adapted, "x")
    tokenizer = load_tokenizer(tiny_llama)
    settings = GenerationSettings(max_new_tokens=30)
    for name in (None, "x"):
        said = []
        for kind in (GraphBackend, LeanBackend):
            owner = Resident(model, tokenizer)
            owner._backend = kind(LeanLlama(model))
            said.append(replies(Voice(owner, name), settings))
        assert said[0] == said[1]
    assert len(recorded) > 2 and recorded[0] == 32 and max(recorded) == 64

    backend = GraphBackend(LeanLlama(model))
    prompts = [[5, 6, 7], [9, 8], [5, 6, 7], [4, 4, 4, 4]]
    names: list[str | None] = ["x", None, None, "x"]
    together = [
        Request(p, frozenset({2}), 20, name) for p, name in zip(prompts, names, strict=True)
    ]
    together[1].cancelled.set()
    decoding.stream(backend, together, settings, 1)
    assert together[1].finish_reason == "cancelled"
    for request in (together[0], together[2], together[3]):
        single = Request(request.prompt, frozenset({2}), 20, request.adapter)
        decoding.stream(LeanBackend(backend.model), [single], settings, 1)
        assert single.token_ids == request.token_ids and len(single.token_ids) == 20


def test_long_prompts_get_fewer_rows(tiny_llama: Path) -> None:
    backend = choose(load_model(tiny_llama))
    assert rows_that_fit(backend, 100) == 96
    assert rows_that_fit(backend, 10**5) < 96
    assert rows_that_fit(backend, 10**9) == 4  # the columns of a chat


def test_a_swapped_adapter_is_noticed(tiny_llama: Path, adapted: Path) -> None:
    """The pool takes one adapter out and puts another in, on one resident base."""
    ref = tiny_models.ref_of(tiny_llama)
    with Pool({"base": Source(ref), "tuned": Source(ref, adapted)}) as pool:
        said = []
        for side in ("base", "tuned", "base", "tuned"):
            with pool.use(side) as subject:
                assert isinstance(subject.voice.resident.backend, LeanBackend)
                said.append(replies(subject.voice))
                if side == "tuned":
                    assert replies(Voice(subject.voice.resident)) == said[0]
    assert said[0] == said[2] != said[1] == said[3]


def test_a_fused_adapter_answers_alike_and_leaves_no_trace(tiny_llama: Path, adapted: Path) -> None:
    ref = tiny_models.ref_of(tiny_llama)
    sides = {
        "base": Source(ref),
        "beside": Source(ref, adapted),
        "fused": Source(ref, adapted, merged=True),
    }
    ids = torch.tensor([[5, 9, 17, 4, 33]])
    with Pool(sides) as pool:
        logits, said, weights = {}, {}, []
        for side in ("base", "beside", "fused", "base"):
            with pool.use(side) as subject:
                voice = subject.voice
                assert isinstance(voice.resident.backend, LeanBackend)
                said[side] = replies(voice)
                with torch.inference_mode():
                    logits[side] = voice.resident.backend.score(ids.tolist(), [5], voice.adapter)[0]
                model = voice.resident.model
                if side == "base":
                    weights.append({k: v.clone() for k, v in model.state_dict().items()})
                if side == "fused":
                    assert not any("lora" in name for name, _ in model.named_modules())
                    with torch.inference_mode():
                        torch.testing.assert_close(logits[side], model(input_ids=ids).logits[0])
    assert said["fused"] == said["beside"] != said["base"]
    torch.testing.assert_close(logits["fused"], logits["beside"], rtol=0, atol=1e-4)
    assert all(torch.equal(weights[0][name], w) for name, w in weights[1].items())


def test_what_was_kept_of_the_base_is_not_taken_for_the_fused(
    tiny_llama: Path, adapted: Path
) -> None:
    owner = Resident.load(tiny_llama)
    bare = replies(owner.voice())
    backend = owner.backend
    assert isinstance(backend, LeanBackend) and backend.heads
    with shipped.merged(owner, tiny_llama, adapted) as held:
        assert held and owner.backend is backend and not backend.heads
        assert replies(owner.voice()) != bare
    assert not backend.heads
    assert replies(owner.voice()) == bare


def test_weights_come_back_when_fusing_fails(
    tiny_llama: Path, adapted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory after the first layer: the base must not keep half an adapter."""
    ref = tiny_models.ref_of(tiny_llama)
    products = kernels.merged
    calls: list[str] = []

    def second_fails(op: Op, space: kernels.Workspace) -> torch.Tensor:
        calls.append(op.name)
        if len(calls) > 1:
            raise MemoryError
        return products(op, space)

    with Pool({"base": Source(ref), "fused": Source(ref, adapted, merged=True)}) as pool:
        with pool.use("base") as subject:
            model = subject.voice.resident.model
            before = {k: v.clone() for k, v in model.state_dict().items()}
        monkeypatch.setattr(kernels, "merged", second_fails)
        with pytest.raises(MemoryError), pool.use("fused"):
            pass
        with pool.use("base") as subject:
            after = subject.voice.resident.model.state_dict()
    assert len(calls) == 2 and before.keys() == after.keys()
    assert all(torch.equal(before[name], weight) for name, weight in after.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merged_in_memory_are_the_merged_folders_weights_to_the_bit(
    tiny_llama: Path, adapted: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = tmp_path / "base"
    load_model(tiny_llama).to(dtype).save_pretrained(base)
    load_tokenizer(tiny_llama).save_pretrained(base)
    ref = tiny_models.ref_of(base)
    merge(ref, adapted, tmp_path / "merged")
    sides = {
        "base": Source(ref),
        "in memory": Source(ref, adapted, merged=True),
        "folder": Source(tiny_models.ref_of(tmp_path / "merged")),
    }
    digests, said = {}, {}
    with Pool(sides) as pool:
        for side in ("base", "in memory", "folder", "base"):
            with pool.use(side) as subject:
                assert digests.setdefault(side, subject.fingerprint) == subject.fingerprint
                said[side] = replies(subject.voice)
    assert digests["base"] != digests["in memory"] == digests["folder"]
    assert said["base"] != said["in memory"] == said["folder"]


def test_an_adapter_that_does_more_than_add_stays_beside(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    owner = Resident.load(tiny_llama)
    for name, more in {
        "head": {"modules_to_save": ["lm_head"]},
        "bias": {"target_modules": ["q_proj"], "lora_bias": True},
    }.items():
        config = LoraConfig(r=4, **{"target_modules": ["q_proj"], **more})
        get_peft_model(load_model(tiny_llama), config).save_pretrained(tmp_path / name)
        with shipped.merged(owner, tiny_llama, tmp_path / name) as held:
            assert not held
    # Weights in memory that are not the file's: of another model, or changed by the loading.
    config = LoraConfig(r=4, target_modules=["q_proj"])
    get_peft_model(load_model(tiny_llama), config).save_pretrained(tmp_path / "plain")
    with shipped.merged(owner, tiny_llama, tmp_path / "plain") as held:
        assert held
    owner.model.model.layers[0].self_attn.q_proj.weight.data[0, 0] += 1
    with shipped.merged(owner, tiny_llama, tmp_path / "plain") as held:
        assert not held


def test_a_model_that_is_trained_keeps_its_weights(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    model.requires_grad_(True)
    assert isinstance(choose(model), PaddedBackend)


def test_an_interrupt_ends_all_lanes(tiny_llama: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replies(Resident.load(tiny_llama).voice(), on_progress=interrupt)


def test_a_fault_in_a_lane_ends_all_and_is_raised(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Sampler.__call__, []

    def third_fails(self: Sampler, logits: torch.Tensor, requests: list[Request]) -> torch.Tensor:
        calls.append(requests)
        if len(calls) == 3:
            raise RuntimeError("no token")
        return real(self, logits, requests)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(Sampler, "__call__", third_fails)
    with pytest.raises(RuntimeError, match="no token"):
        replies(Resident.load(tiny_llama).voice(), GenerationSettings(max_new_tokens=500))
    assert len(calls) < 20, "the other lane went on"


def test_heads_are_kept_by_their_tokens(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "MAX_HEADS", 2)
    backend = choose(load_model(tiny_llama))
    assert isinstance(backend, LeanBackend)
    with torch.inference_mode():
        first = backend.head(None, [5, 6, 7])
        assert backend.head(None, [5, 6, 7])[0] is first[0]
        backend.head(None, [5, 6])
        backend.head(None, [5])
        assert backend.head(None, [5, 6, 7])[0] is not first[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_attend_together_say_what_each_says_alone(
    tiny_llama: Path, adapted: Path, dtype: torch.dtype
) -> None:
    """As on a GPU: prompts of any length, some of which go on where an earlier block ended."""
    model = tiny_models.tuned(tiny_llama, adapted).to(dtype)
    lean = LeanLlama(model)
    blocks = [[[5, 6, 7, 8], [9], [11, 12, 13, 14, 15, 16]], [[17, 18], [19, 20, 21], [22]]]
    found: list[list[torch.Tensor]] = []
    for together in (False, True):
        lean.attends_together = together
        cache = KVCache(lean, 5, 16)
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
        rows, starts, given = (4, 0, 2), [0, 0, 0], []
        for block in blocks:
            segments = [
                Segment(cache, row, start, ids, adapter)
                for row, start, ids, adapter in zip(
                    rows, starts, block, ("default", None, "default"), strict=True
                )
            ]
            assert lean._may_attend_together(segments) is together
            given.append(lean.forward(segments, [len(ids) for ids in block]))
            starts = [start + len(ids) for start, ids in zip(starts, block, strict=True)]
        found.append(given)
    for alone, shared in zip(*found, strict=True):
        assert shared.isfinite().all()
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(shared, alone, atol=tolerance, rtol=tolerance)


def test_a_long_row_does_not_make_the_others_padding(tiny_llama: Path) -> None:
    lean = LeanLlama(load_model(tiny_llama))
    lean.attends_together = True
    cache = KVCache(lean, 9, 64)
    short = [Segment(cache, row, 0, [5]) for row in range(8)]
    assert lean._may_attend_together(short)
    assert not lean._may_attend_together([*short, Segment(cache, 8, 0, [5] * 60)])
    assert not lean._may_attend_together([short[0], Segment(KVCache(lean, 1, 8), 1, 0, [5])])
