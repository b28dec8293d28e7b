"""The sides of an evaluation ("base", "merged", "step 40"), one model in memory at a time.

Sides with the same model folder share one copy of it: adapters are swapped on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core import fsio
from core.errors import UserError
from core.models import lora
from core.models.catalog import ModelRef

if TYPE_CHECKING:
    from core.inference.resident import Resident, Voice


@dataclass(frozen=True)
class Source:
    """What a side is made of: a model, and an adapter.

    ``merged``: the side is the merged model, as far as it can be made in memory
    (``core.evaluation.shipped``); else the adapter is computed beside the weights.
    """

    model: ModelRef
    adapter: Path | None = None
    merged: bool = False


@dataclass(frozen=True)
class Subject:
    """A side that is ready to answer. ``fingerprint``: of the weights, by their content."""

    side: str
    fingerprint: str
    voice: Voice


class Pool:
    """The models of one evaluation. Use as a context manager; memory is freed at the end."""

    def __init__(self, sides: Mapping[str, Source]) -> None:
        from core.inference.resident import Residents  # imports torch, which pages do without

        self.sides: dict[str, Source] = {}
        self._residents = Residents()
        for side, source in sides.items():
            self.add(side, source)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._residents.keep(())

    def add(self, side: str, source: Source) -> None:
        """One more side. Raises UserError: its adapter's folder is none."""
        if source.adapter:
            lora.read(source.adapter)
        self.sides[side] = source

    @contextmanager
    def use(self, side: str) -> Iterator[Subject]:
        """The side's model; valid inside the ``with`` block only."""
        source = self.sides[side]
        path, adapter = source.model.path, source.adapter
        alone = adapter is not None and not lora.shareable(adapter)
        self._residents.keep([self._residents.key(path, adapter)])
        resident = self._residents.get(path, adapter)
        try:
            with _held(resident, source, alone) as held:
                fingerprint = resident.digest()
                if adapter is not None and not held:
                    fingerprint += _adapter_digest(adapter)
                yield Subject(side, fingerprint, resident.voice(None if held else adapter))
            resident.detach()
        except UserError:
            alone = True  # PEFT may have stopped half-way
            raise
        finally:
            if alone:  # it may have replaced weights of the base, which detaching leaves in
                self._residents.keep(())


def _held(resident: Resident, source: Source, alone: bool) -> AbstractContextManager[bool]:
    """Whether the weights themselves are the side's within the block, with no adapter beside."""
    from core.evaluation import shipped

    if source.adapter is None or not source.merged or alone:
        return nullcontext(False)
    return shipped.merged(resident, source.model.path, source.adapter)


def _adapter_digest(adapter: Path) -> str:
    config = fsio.read_bytes(adapter / lora.CONFIG)
    return fsio.sha256_file(lora.weights_file(adapter)) + hashlib.sha256(config).hexdigest()
