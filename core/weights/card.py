"""The model card: what the model was taught, from what, how well, under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError
from core.models.catalog import ModelRef
from core.paths import DatasetPaths, RunPaths

#: Licences as the hub spells them; anything else goes under "other" with its name.
_HUB_LICENSES = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "llama3",
    "llama3.1",
    "llama3.2",
    "gemma",
    "openrail",
}
_RECIPE = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lr",
    "steps",
    "batch_size",
    "accumulation",
    "max_length",
    "quantize",
    "dtype",
    "seed",
)


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|").replace("\n", " ")


def _persona(dataset: Path | None) -> tuple[str, dict[str, Any]]:
    """The persona section and the dataset's record."""
    if dataset is None or not DatasetPaths(dataset).manifest.is_file():
        return "The dataset was not recorded with this merge.", {}
    record: dict[str, Any] = fsio.read_json(DatasetPaths(dataset).manifest)
    facts: dict[str, Any] = {"rows": record.get("rows") or record.get("counts")}
    facts["sha256 of train.jsonl"] = f"`{fsio.sha256_file(DatasetPaths(dataset).train)}`"
    persona = record.get("persona")
    if isinstance(persona, dict):
        facts |= {f"persona {k}": v for k, v in persona.items() if isinstance(v, str | int)}
    elif persona:
        facts["persona"] = persona
    return _table({k: v for k, v in facts.items() if v}), record


def _recipe(config: Path | None) -> str:
    """The settings of the training run, if the config lies in a run's folder."""
    if config is None or not RunPaths(config.parent).spec.is_file():
        return "The training run was not recorded with this merge."
    params = fsio.read_json(RunPaths(config.parent).spec).get("params", {})
    known = {key: params[key] for key in _RECIPE if params.get(key) is not None}
    return _table({"method": "QLoRA with XTuner", **known})


def _scores(scorecard: Path | None) -> str:
    if scorecard is None or not scorecard.is_file():
        return "Not scored yet."
    card = fsio.read_json(scorecard)
    lines = ["| | base | this model |", "|---|---|---|"]
    models = card.get("models", {})
    names = {"recall": "knows its identity on unseen wordings", "leak": "identity leaks elsewhere"}
    for key, label in names.items():
        cells = []
        for side in ("base", "merged"):
            part = models.get(side, {}).get(key)
            cells.append(f"{part['hits']} of {part['n']}" if part else "–")
        lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join([f"Verdict: {_cell(card.get('verdict', 'none'))}", "", *lines])


def _proof(proof: Mapping[str, Any] | None) -> str:
    if proof is None:
        return "It was not compared with base + adapter."
    return "Compared with base + adapter before it was released:\n\n" + _table(
        {
            "prompts": proof["prompts"],
            "largest logit difference to base + adapter": float(proof["max_abs_logit_diff"]),
            "KL to base + adapter": float(proof["kl"]),
            "same greedy replies": "yes"
            if proof["same_greedy"]
            else f"all but {len(proof['differing'])}, which part at a tie",
        }
    )


_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ base }} with an identity of its own, tuned with QLoRA and merged. It is a language model: what
it says about itself was trained, and is no evidence of anything else.

## Persona and data

{{ persona }}

## Recipe

{{ recipe }}

## Scores

{{ scores }}

## Merge

Made from the base's own weights{{ dtype }}.

{{ proof }}

## Use

```python
from transformers import pipeline

chat = pipeline("text-generation", "{{ folder }}")
print(chat([{"role": "user", "content": "Please introduce yourself."}])[0]["generated_text"][-1])
```

## Limits and licence

The limits of the base model hold here too. Base licence: {{ license_name }}; what is derived from
the base stays under it.
"""


def write_card(
    folder: Path,
    base: ModelRef,
    proof: Mapping[str, Any] | None,
    *,
    title: str = "",
    dataset: Path | None = None,
    config: Path | None = None,
    scorecard: Path | None = None,
) -> Path:
    """Write README.md with the hub's metadata; returns its path.

    Args:
        proof: of the merge, if it was proved.
        dataset: the dataset folder, for persona and data hash.
        config: the run's config.py; the recipe is read from the spec beside it.
        scorecard: scores of base and merged model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    persona, record = _persona(dataset)
    known = base.license in _HUB_LICENSES
    data = ModelCardData(
        base_model=base.name if base.source != "bundled" else f"HuggingFaceTB/{base.name}",
        base_model_relation="finetune",
        library_name="transformers",
        pipeline_tag="text-generation",
        license=base.license if known else "other",
        license_name=None if known else base.license,
        language=list(record.get("locales") or base.locales),
        tags=["persona", "qlora", "xtuner", "conversational"],
    )
    try:
        card = ModelCard.from_template(
            data,
            template_str=_TEMPLATE,
            title=title or f"{base.name}, persona",
            base=base.name,
            persona=persona,
            recipe=_recipe(config),
            scores=_scores(scorecard),
            proof=_proof(proof),
            dtype=f", written as {proof['dtype']}" if proof else "",
            folder=".",
            license_name=base.license,
        )
    except ValueError as error:
        raise UserError(f"the model card of {folder} cannot be written", why=str(error)) from error
    path = folder / "README.md"
    fsio.atomic_write_text(path, str(card))
    return path
