"""The server's configuration: `[model]`, `[engine]`, `[serve]`. Reading it loads neither torch nor FastAPI."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rune import config
from rune.adapters.registry.registry import default_folder
from rune.errors import ConfigError
from rune.hypernet import choice
from rune.models import resolve
from rune.types import ModelRef

SHIPPED = "shipped"
NO_HYPERNET = "pass --checkpoint DIR for a hypernetwork of this model, or --checkpoint '' to learn nothing"


@dataclass(frozen=True, kw_only=True)
class Model:
    """`[model]`: the frozen base model."""

    name: str = "qwen2.5-coder-0.5b-instruct"  # see `rune models list`; or a folder, a GGUF file, a hub id
    served_name: str = ""  # what clients call it; "": its name
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on cuda, float32 on cpu
    sources: tuple[str, ...] = resolve.SOURCES  # tried in this order


@dataclass(frozen=True, kw_only=True)
class Engine:
    """`[engine]`: who generates."""

    name: str = "torch"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Serve:
    """`[serve]`: who may ask for what, and how much of it."""

    host: str = "127.0.0.1"  # any other than a loopback address needs API keys
    port: int = 8000  # 0: one that is free
    registry: str = ""  # folder of the adapters; "": $RUNE_REGISTRY, or ~/.local/share/rune/adapters
    keys: str = ""  # file of API keys, written by `rune keys`; "": keys.json in the registry's folder
    checkpoint: str = SHIPPED  # folder of the hypernetwork, or the base's own; "": trajectories are refused
    strength: float = 1.0  # λ on the trajectory part
    trajectories: str = ""  # folder where redacted trajectories are kept; "": they are not
    folders: tuple[str, ...] = ()  # `/v1/load_lora_adapter` reads PEFT folders below these only
    pins: tuple[str, ...] = ()  # adapters that stay resident, by id or alias
    max_draws: int = 256  # under way or waiting, of all clients together; beyond it 429
    max_draws_per_key: int = 0  # the same, of one API key; 0: no limit of its own
    max_n: int = 16  # draws of one request
    max_prompts: int = 32  # prompts of one completion request
    max_tokens: int = 512  # of an answer, where the client does not say
    window: int = 4096  # tokens of prompt and answer, for engines that have no such limit themselves
    max_learning: int = 4  # trajectories being learned from or waiting for it; beyond it 429
    request_bytes: int = 2 << 20
    trajectory_bytes: int = 16 << 20  # also of what a gzip file unpacks to
    upload_seconds: float = 30.0  # until a request's body must be there
    request_seconds: float = 300.0  # until an answer must be finished
    # For so long an idle connection is kept: longer than clients and proxies keep theirs (httpx 5 s, nginx 60 s, Go
    # 90 s), so that it is they who close it. A request that meets a connection being closed here would be lost.
    keep_alive_seconds: float = 120.0
    drain_seconds: float = 30.0  # that requests under way have to finish after SIGTERM

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be in 0 … 65535, found {self.port}")
        counts = ("max_draws", "max_n", "max_prompts", "max_tokens", "window", "max_learning")
        for name in (*counts, "request_bytes", "trajectory_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.max_draws_per_key < 0:
            raise ValueError(f"max_draws_per_key must be 0 or more, found {self.max_draws_per_key}")
        for name in ("upload_seconds", "request_seconds", "keep_alive_seconds", "drain_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole file; every section may be left out."""

    model: Model = field(default_factory=Model)
    engine: Engine = field(default_factory=Engine)
    serve: Serve = field(default_factory=Serve)

    @property
    def registry(self) -> Path:
        return Path(self.serve.registry).expanduser() if self.serve.registry else default_folder()

    @property
    def keys(self) -> Path:
        return Path(self.serve.keys).expanduser() if self.serve.keys else self.registry / "keys.json"

    @property
    def kept(self) -> Path | None:
        """Where redacted trajectories go; None: nowhere."""
        return Path(self.serve.trajectories).expanduser() if self.serve.trajectories else None

    def dtype(self, device: str) -> str:
        """Of the model's weights on a device."""
        wanted = self.model.dtype
        return wanted if wanted != "auto" else "bfloat16" if device == "cuda" else "float32"

    def checkpoint(self, model: ModelRef) -> Path | None:
        """The hypernetwork's folder; None: nothing is learned. Raises ConfigError if none ships for this base."""
        if not self.serve.checkpoint:
            return None
        try:
            named = self.serve.checkpoint
            return choice.for_base(model) if named == SHIPPED else Path(named).expanduser()
        except ConfigError as error:
            raise ConfigError(f"{error}; {NO_HYPERNET}") from None


def device_of(config: Config) -> str:
    """ "cpu" or "cuda". Raises ConfigError if a GPU is wanted and there is none."""
    if config.model.device == "cpu":
        return "cpu"
    import torch

    present = torch.cuda.is_available()
    if config.model.device == "cuda" and not present:
        raise ConfigError("[model] device = 'cuda', but torch sees no GPU; use --set model.device=cpu")
    return "cuda" if present else "cpu"


def load(path: Path | None, changes: Sequence[str] = ()) -> Config:
    """A config file, or none, with `--set` applied. Raises ConfigError."""
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = config.parse(path.read_text(encoding="utf-8"), where=str(path))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot read the config: {error.strerror}; give a TOML file with [model], [engine] and "
                "[serve], or none"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: not a text file, expected TOML; see docs/serving.md") from None
    return config.build(Config, config.override(raw, changes))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
