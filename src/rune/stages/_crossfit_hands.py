"""Adapters of a fold go from the hypernetwork to the engine as tensors, where the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rune.stages._context import Context
from rune.types import AdapterRef

if TYPE_CHECKING:
    from rune.engines._lora import Adapter
    from rune.hypernet.lora import Adapters, Factors, Layout


class Hands:
    """Adapters on their way to the engine, kept for the probes until the fold is sampled."""

    def __init__(self, context: Context, where: Path) -> None:
        self._context, self._where = context, where
        self._engine = context.engine()
        self._takes_tensors = hasattr(self._engine, "put_adapter")
        self._adapters: dict[str, Adapter] = {}
        self._factors: dict[str, list[Mapping[str, Factors]]] = {}
        self.layout: Layout

    def keep(self, arm: str, key: str, made: Adapters, layout: Layout) -> AdapterRef:
        """The conditions' `Workshop.keep`."""
        import torch

        from rune.engines import _lora
        from rune.hypernet import export
        from rune.hypernet.base import to_dtype

        self.layout = layout
        model, dtype = self._context.model(), getattr(torch, self._context.dtype)
        # A static part is loaded on the CPU, a generated one is made on the device.
        made = {m: type(f)(*(t.to(self._context.device) for t in f)) for m, f in to_dtype(made, dtype).items()}
        adapter = export.to_adapter(made, layout, base_model=model.digest, dtype=dtype)
        if self._takes_tensors:
            name = f"{self._where.parent.name}/{self._where.name}/{arm}/{key}"
            ref: AdapterRef = self._engine.put_adapter(name, adapter)  # type: ignore[attr-defined]
        else:
            ref = _lora.write_peft(self._where / "adapters" / arm / key, adapter, base_model_name=model.name)
        self._adapters[ref.adapter_id] = adapter
        self._factors.setdefault(arm, []).append(made)
        return ref

    def adapter(self, ref: AdapterRef) -> Adapter:
        return self._adapters[ref.adapter_id]

    def describe(self, arm: str, task_ids: Sequence[str], norms: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """As `adapt.describe`, from tensors."""
        import torch

        from rune.hypernet import diagnostics

        some = self._factors[arm]

        def layer(module: str, y: int) -> tuple[torch.Tensor, torch.Tensor]:
            return (
                torch.stack([f[module].down_YNRI[y, 0].float() for f in some]),
                torch.stack([f[module].up_YNRO[y, 0].float() for f in some]),
            )

        return diagnostics.describe(task_ids[: len(some)], diagnostics.profile(layer, self.layout.layers, norms))

    def drop(self) -> None:
        if self._takes_tensors:
            for adapter_id in self._adapters:
                self._engine.drop_adapter(adapter_id)  # type: ignore[attr-defined]
        self._adapters, self._factors = {}, {}
