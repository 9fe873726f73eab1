"""What one process draws, judges and trains with: model, engine, sandbox and training base, each made when needed."""

from __future__ import annotations

import contextlib
import functools
import os

from rune import config as configs
from rune import plugins
from rune.adapters.folders import AdapterSource
from rune.models import identity, resolve
from rune.stages import score, train
from rune.stages.context import Context
from rune.study import checks
from rune.study.config import Machinery
from rune.types import Engine, ModelRef, Sandbox


class Machines:
    """Model, engine, sandbox and training base of one configuration; made on first use, closed together."""

    def __init__(self, settings: Machinery, name: str, *, together: int, adapters: AdapterSource) -> None:
        self.name, self._adapters = name, adapters
        self._settings, self._together = settings, together
        self._exit = contextlib.ExitStack()
        self._session: train.TrainingSession | None = None
        self._engines: dict[str, Engine] = {}  # quantisation → engine: [sample] may want another than [model]

    @functools.cached_property
    def device(self) -> str:
        return checks.device(self._settings)

    @property
    def dtype(self) -> str:
        wanted = self._settings.model.dtype
        return wanted if wanted != "auto" else "bfloat16" if self.device == "cuda" else "float32"

    @functools.cached_property
    def _files(self) -> ModelRef:
        section = self._settings.model
        return resolve.resolve(section.name, sources=section.sources, cache=resolve.default_cache())

    @functools.cached_property
    def _model(self) -> ModelRef:
        return identity.quantised(self._files, self._settings.model.quantize)

    def model(self, quantize: str) -> ModelRef:
        """The base loaded as [sample] wants it, which takes adapters that were made for the one of [model]."""
        return identity.carrying(identity.quantised(self._files, quantize), self._model)

    def engine(self, quantize: str) -> Engine:
        """An engine over that base, kept until `close`."""
        if quantize not in self._engines:
            self._engines[quantize] = self._new_engine(self.model(quantize))
        return self._engines[quantize]

    def _new_engine(self, model: ModelRef) -> Engine:
        part = self._settings.engine
        module = plugins.load("engines", part.name)
        raw = dict(part.settings)
        if part.name == "torch" and self._together > 1:
            # Of what the others on the device have left, who have taken theirs already: an even share is too small.
            raw.setdefault("memory_fraction", round(min(0.6, 1.5 / self._together), 3))
        settings = configs.build(module.Config, raw, where="engine.settings")
        engine: Engine = module.build(
            settings, model=model, device=self.device, dtype=self.dtype, adapters=self._adapters
        )
        self._exit.callback(engine.close)
        return engine

    @functools.cached_property
    def _sandbox(self) -> Sandbox:
        sandbox = score.build_sandbox(self._settings.score, cache=resolve.default_cache())
        self._exit.callback(sandbox.close)
        return sandbox

    def context(self, seed: int) -> Context:
        return Context(
            seed=seed,
            model=lambda: self._model,
            device=self.device,
            dtype=self.dtype,
            engine=lambda: self.engine(self._settings.model.quantize),
            sandbox=lambda: self._sandbox,
            cache=resolve.default_cache(),
            session=self._get_session,
        )

    def _get_session(self) -> train.TrainingSession:
        if self._session is None:
            self._session = train.TrainingSession(self.context(0))
        return self._session

    def close_session(self) -> None:
        if self._session:
            self._session.close()
            self._session = None

    def make_room(self) -> None:
        """Training follows: a small GPU needs the memory of the engines' caches."""
        if self.device == "cuda" and self._engines:
            import torch

            free, total = torch.cuda.mem_get_info()
            if free < total / 2:
                self.release()

    def release(self) -> None:
        """Engines that can (torch) give their caches' memory back. All of them stay: the next cell draws with them."""
        for engine in self._engines.values():
            if hasattr(engine, "release"):
                engine.release()

    def close(self) -> None:
        self.close_session()
        self._exit.close()


def described(model: ModelRef) -> dict[str, str]:
    """A base model for the manifest: `sha256` of its weights files, or what stands for it once they are quantised."""
    told = {"name": model.name, "sha256": model.digest, "source": model.source, "weights": model.weights}
    return told if model.quantize == "none" else {**told, "quantize": model.quantize, "files_sha256": model.unquantised}


def device_name(device: str) -> str:
    """The GPU's own name, or "cpu" with its core count."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"cpu ({os.cpu_count()} cores)"
