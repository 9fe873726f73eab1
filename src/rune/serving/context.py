"""What the routes of one server share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rune.serving.drawing import Post
from rune.serving.memory import AdapterMemory
from rune.serving.metrics import Metrics
from rune.serving.settings import Serve
from rune.types import Engine, ModelRef


class ServerContext(NamedTuple):
    """Everything that the routes use."""

    settings: Serve
    model: ModelRef
    base_name: str  # what clients call the base model
    engine: Engine
    memory: AdapterMemory
    count: Callable[[str], int]  # how many tokens a text has
    window: int  # tokens of prompt and answer
    metrics: Metrics
    ready: Callable[[], bool]
    post: Post  # from the engine's thread to the event loop
