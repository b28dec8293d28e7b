"""The sides of an evaluation ("base", "merged", "step 40"), one model in memory at a time.

Sides with the same model folder share one copy of it: adapters are swapped on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core import fsio
from core.errors import UserError
from core.models import lora
from core.models.catalog import ModelRef

if TYPE_CHECKING:
    from core.inference.resident import Voice


@dataclass(frozen=True)
class Source:
    """What a side is made of: a model, and an adapter.

    ``fused``: the adapter is added to the weights while the side is used (``Resident.fused``),
    where that is the same function; else it is computed beside them.
    """

    model: ModelRef
    adapter: Path | None = None
    fused: bool = False

    def fingerprint(self) -> str:
        """Names the weights in caches: of the model, and the full hash of the adapter.

        Raises:
            UserError: the folder is no adapter.
        """
        if self.adapter is None:
            return self.model.fingerprint()
        lora.read(self.adapter)
        digest = hashlib.sha256(self.model.fingerprint().encode())
        digest.update(fsio.sha256_file(lora.weights_file(self.adapter)).encode())
        digest.update(fsio.read_bytes(self.adapter / lora.CONFIG))
        if self.fused:
            digest.update(b"fused")
        return digest.hexdigest()


@dataclass(frozen=True)
class Subject:
    """A side that is ready to answer."""

    side: str
    fingerprint: str
    voice: Voice


class Pool:
    """The models of one evaluation. Use as a context manager; memory is freed at the end."""

    def __init__(self, sides: Mapping[str, Source]) -> None:
        from core.inference.resident import Residents  # imports torch, which pages do without

        self.sides: dict[str, Source] = {}
        self._fingerprints: dict[str, str] = {}
        self._residents = Residents()
        for side, source in sides.items():
            self.add(side, source)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._residents.keep(())

    def add(self, side: str, source: Source) -> None:
        """One more side."""
        self._fingerprints[side] = source.fingerprint()
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
            if source.fused and adapter is not None and not alone:
                with resident.fused(adapter) as voice:
                    yield Subject(side, self._fingerprints[side], voice)
            else:
                yield Subject(side, self._fingerprints[side], resident.voice(adapter))
            resident.detach()
        except UserError:
            alone = True  # PEFT may have stopped half-way
            raise
        finally:
            if alone:  # it may have replaced weights of the base, which detaching leaves in
                self._residents.keep(())
