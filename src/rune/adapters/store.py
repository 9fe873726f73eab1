"""Where the adapters of one run are between being made and being used: PEFT folders, or tensors in the engine.

Folders can be kept, looked at and loaded by vLLM; hundreds of them for one cross-fitted run would be written for
nothing. Either way an adapter's name is the hash of its content, and probes read the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from rune.adapters import convert, peft
from rune.adapters.factors import to_dtype
from rune.adapters.folders import Folders
from rune.types import AdapterRef, ModelRef

if TYPE_CHECKING:
    from rune.adapters.factors import Adapters, LoraTargets

# Shapes: I inputs · R rank · O outputs


class AdapterStore(Protocol):
    """Keeps adapters and gives their tensors back."""

    in_memory: bool  # what it keeps is gone with the process

    def put(self, arm: str, key: str, made: Adapters, layout: LoraTargets) -> AdapterRef:
        """Keep one adapter (N = 1) of an arm; `key` is its task, or "all"."""

    def adapter(self, ref: AdapterRef) -> peft.Adapter:
        """The whole adapter. Raises AdapterError if it is not there."""

    def layer(self, ref: AdapterRef, path: str) -> tuple[Tensor, Tensor]:
        """(down_RI, up_RO) of one linear layer in float32, the scale folded into `up`."""

    def close(self) -> None: ...


class FolderStore:
    """PEFT folders under `root`: <arm>/<key>/."""

    in_memory = False

    def __init__(
        self, root: Path, model: ModelRef, *, dtype: str, device: str = "cpu", folders: Folders | None = None
    ) -> None:
        """`folders`: where engines look, so that they need not search for what is put here."""
        self._root, self._model, self._device = root, model, device
        self._dtype = getattr(torch, dtype)
        self._folders = folders or Folders(root)
        self._opened: dict[str, peft.Opened] = {}

    def put(self, arm: str, key: str, made: Adapters, layout: LoraTargets) -> AdapterRef:
        folder = self._root / arm / key
        ref = convert.write(folder, made, layout, self._model, dtype=self._dtype)
        self._folders.know(ref.adapter_id, folder)
        return ref

    def adapter(self, ref: AdapterRef) -> peft.Adapter:
        return peft.read_peft(self._folders.folder(ref))

    def layer(self, ref: AdapterRef, path: str) -> tuple[Tensor, Tensor]:
        if ref.adapter_id not in self._opened:
            self._opened[ref.adapter_id] = peft.open_peft(self._folders.folder(ref), device=self._device)
        return self._opened[ref.adapter_id].layer(path)

    def close(self) -> None:
        self._opened.clear()


class MemoryStore:
    """Tensors, handed to an engine that takes them (`put_adapter`), dropped at the end."""

    in_memory = True

    def __init__(self, engine: Any, model: ModelRef, *, dtype: str, device: str) -> None:
        self._engine, self._model, self._device = engine, model, device
        self._dtype = getattr(torch, dtype)
        self._kept: dict[str, tuple[AdapterRef, peft.Adapter]] = {}

    def put(self, arm: str, key: str, made: Adapters, layout: LoraTargets) -> AdapterRef:
        # A static part is loaded on the CPU, a generated one is made on the device.
        there: Mapping[str, Any] = {
            m: type(f)(*(t.to(self._device) for t in f)) for m, f in to_dtype(made, self._dtype).items()
        }
        adapter = convert.to_adapter(there, layout, base_model=self._model.digest, dtype=self._dtype)
        name = peft.content_id(adapter)
        if name not in self._kept:
            self._kept[name] = self._engine.put_adapter(name, adapter), adapter
        return self._kept[name][0]

    def adapter(self, ref: AdapterRef) -> peft.Adapter:
        return self._kept[ref.adapter_id][1]

    def layer(self, ref: AdapterRef, path: str) -> tuple[Tensor, Tensor]:
        adapter = self.adapter(ref)
        pair = adapter.pairs[path]
        return pair.a.T.float(), adapter.scale * pair.b.float()

    def close(self) -> None:
        for name in self._kept:
            self._engine.drop_adapter(name)
        self._kept.clear()
