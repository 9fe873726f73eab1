"""Settings of training, without torch: a stage's config can be read and checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rune.adapters.modules import MODULES as MODULES
from rune.config import ADDED

Precision = Literal["float32", "float16", "int8"]  # how a checkpoint stores its weights: `hypernet/precision.py`


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """AdamW with linear warm-up and a cosine to a tenth."""

    steps: int
    learning_rate: float
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    checkpoint_every: int = 200  # steps; a killed run repeats at most so many

    def __post_init__(self) -> None:
        if self.steps < 1 or self.checkpoint_every < 1 or self.learning_rate <= 0 or not 0 <= self.warmup < 1:
            raise ValueError("needs steps >= 1, checkpoint_every >= 1, learning_rate > 0 and 0 <= warmup < 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What each loss term counts; 0 leaves it out and costs nothing. Formulas: `hypernet/losses.py`."""

    cross_entropy: float = 1.0  # verified solutions, response tokens, nats a token
    target_contrast: float = 0.0  # same prompt and adapter: the right lesson's solution over another lesson's
    source_contrast: float = 0.0  # same prompt and solution: the right adapter over another's
    kl_base: float = 0.0  # to the bare model on unrelated prompts
    kl_static: float = 0.0  # to the static part alone, on tasks that no trajectory solved: a neighbour must do no harm
    kl_teacher: float = 0.0  # to the bare model that has the trajectories in context
    norm: float = 0.0  # squared ‖ΔW‖ over ‖W‖
    variance: float = 0.0  # hinge on the spread of the latents over a batch
    lesson: float = 0.0  # guessing the target solution's words from the latents: teaches the encoder fast
    reconstruction: float = 0.0  # of LoRAs fine-tuned on single trajectories (needs their folder)

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ValueError(f"loss weight {name} must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The static LoRA: one adapter for all tasks. The hypernetwork starts from it."""

    schedule: Schedule
    rank: int
    alpha: float  # ΔW = alpha / rank · B A
    rows: int  # solutions a step
    modules: tuple[str, ...] = MODULES
    max_tokens: int = 512  # of prompt and solution; longer ones are left out and counted
    shares: Mapping[str, float] = field(default_factory=dict)  # benchmark → share of the solutions; empty: as they are

    def __post_init__(self) -> None:
        _check_modules(self.modules)
        _check_shares(self.shares)
        if self.rank < 1 or self.alpha <= 0 or self.rows < 1:
            raise ValueError("needs rank >= 1, alpha > 0 and rows >= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMix:
    """How often a training pair is of each kind. `source` is what the adapter is made from."""

    recall: float = 0.0  # the target's own trajectory
    family: float = 0.0  # trajectories of other tasks of the target's family
    retrieved: float = 0.0  # the nearest trajectories of other tasks, as at evaluation
    max_sources: int = 3  # trajectories in a set; 1 … this many are drawn
    exact_sources: bool = False  # always draw `max_sources` (as far as there are so many)
    shares: Mapping[str, float] = field(default_factory=dict)  # benchmark → share of the groups; empty: as they are
    # Benchmarks whose trajectories an adapter is made from, the others being targets alone; empty: all.
    read: tuple[str, ...] = field(default=(), metadata=ADDED)

    def __post_init__(self) -> None:
        _check_shares(self.shares)
        if min(self.recall, self.family, self.retrieved) < 0 or self.recall + self.family + self.retrieved <= 0:
            raise ValueError("pair mix: recall, family and retrieved must not be negative, and one above 0")
        if self.max_sources < 1:
            raise ValueError("pair mix: max_sources must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A phase before B: the encoder alone learns the lesson term. A step costs no pass of the base model."""

    schedule: Schedule
    groups: int  # trajectory sets a step

    def __post_init__(self) -> None:
        if self.groups < 2:
            raise ValueError(f"groups must be at least 2 (latents are standardised over them), found {self.groups}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HypernetConfig:
    """The hypernetwork and its training: stage A is the static LoRA, stage B the trajectory part on top."""

    schedule: Schedule
    rank: int  # of the trajectory part; exported rank is this plus the static LoRA's
    alpha: float
    groups: int  # trajectory sets a step: each gives one adapter
    targets: int  # solutions a set is trained on
    pairs: PairMix
    weights: Weights
    encoder: str = "perceiver"
    encoder_settings: Mapping[str, Any] = field(default_factory=dict)
    taps: tuple[int, ...] = (0, 2, 4, 6)  # hidden states read, 0 = embeddings; deeper costs CPU time at inference
    inputs: Literal["shared", "generated"] = "shared"  # A learned once for all, or made from the trajectory like B
    base_rate: float = 0.1  # learning rate of the static part as a share of the schedule's; 0 freezes it
    encoder_rate: float = 1.0  # the same for the encoder
    margin: float = 3.0  # nats by which the contrasts want the right one ahead
    unrelated_every: int = 8  # steps between batches of kl_base and kl_static (scaled up to keep the weights' meaning)
    teacher_top_k: int = 16
    drop_tokens: float = 0.1  # share of feature tokens hidden at random in training
    max_tokens: int = 512  # of prompt and solution; longer ones are left out and counted
    max_source_tokens: int = 4096  # of a set, in training; whole steps are dropped beyond it
    reconstruct_from: str = ""  # folder of PEFT adapters named by trajectory_id
    encoder_first: EncoderConfig | None = None  # not for a hypernetwork that starts from another

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or self.groups < 2 or self.targets < 1:
            raise ValueError("needs rank >= 1, alpha > 0, groups >= 2 (contrasts need another one) and targets >= 1")
        if not self.taps or list(self.taps) != sorted(set(self.taps)) or self.taps[0] < 0:
            raise ValueError(f"taps must be rising layer numbers from 0, found {list(self.taps)}")
        if self.weights.reconstruction and not self.reconstruct_from:
            raise ValueError("weights.reconstruction needs reconstruct_from, a folder of adapters by trajectory_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterProductsConfig:
    """What a generator of outer products is and how it reads: `hypernet/outer_products.py`."""

    passes: int = 4
    tokens: int = 64  # that a pass keeps of a set, each one of rank 1
    correction: int = 32  # rank of what turns the direction of a step; 0 leaves it
    gradient: bool = False  # true gradients instead of synthetic ones: a backward pass each
    max_tokens: int = 2048  # of prompt and solution; a longer solution is not read
    rank: int = 64  # of the adapter that is handed out, the nearest of that rank; 0: passes x tokens, as written

    def __post_init__(self) -> None:
        if min(self.passes, self.tokens, self.max_tokens) < 1 or min(self.correction, self.rank) < 0:
            raise ValueError("needs passes, tokens and max_tokens >= 1, and correction and rank >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """A LoRA for each task, fine-tuned on its siblings' solutions: what a generator of outer products is to imitate."""

    steps: int = 4
    learning_rate: float = 1.25e-3  # studies kept steps x rate at 5e-3
    rank: int = 8
    alpha: float = 16.0
    rows: int = 2  # solutions a step
    modules: tuple[str, ...] = MODULES
    together: int = 8  # LoRAs fine-tuned in one batch; what memory allows

    def __post_init__(self) -> None:
        _check_modules(self.modules)
        if min(self.steps, self.rank, self.rows, self.together) < 1 or min(self.learning_rate, self.alpha) <= 0:
            raise ValueError("needs steps, rank, rows and together >= 1, learning_rate > 0 and alpha > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterProductsTraining:
    """How a generator of outer products is trained: `hypernet/outer_products_training.py`."""

    schedule: Schedule
    groups: int  # sets of solutions a step: each gives one adapter
    generator: OuterProductsConfig = field(default_factory=OuterProductsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    recall: float = 0.25  # share of the sets that hold their target; the others hold its siblings alone
    max_sources: int = 3  # solutions in a set; 1 ... this many are drawn
    stranger: float = 1.0  # weight of the KL to the bare model on another domain's target; 0 leaves it out
    max_tokens: int = 448  # of a target, prompt and solution; a longer one is read and not trained on
    shares: Mapping[str, float] = field(default_factory=dict)  # benchmark → share of the sets; empty: as they are
    withheld: float = 0.1  # share of the domains that only the held-out loss is measured on; 0: none, and no such loss

    def __post_init__(self) -> None:
        _check_shares(self.shares)
        if min(self.groups, self.max_sources, self.max_tokens) < 1:
            raise ValueError("needs groups, max_sources and max_tokens >= 1")
        if self.stranger < 0 or (self.stranger and self.groups < 2):
            raise ValueError("stranger must not be negative, and needs groups >= 2 (the other domain is another set's)")
        if not 0 <= self.recall <= 1 or not 0 <= self.withheld < 1:
            raise ValueError("recall is a share from 0 to 1, withheld one of 0 or more and below 1")


def _check_modules(modules: tuple[str, ...]) -> None:
    unknown = [m for m in modules if m not in MODULES]
    if unknown or not modules:
        raise ValueError(f"modules: {unknown[0] if unknown else 'none'} is not one of {', '.join(MODULES)}")


def _check_shares(shares: Mapping[str, float]) -> None:
    if any(share < 0 for share in shares.values()) or (shares and sum(shares.values()) <= 0):
        raise ValueError(f"shares must not be negative, and one above 0, found {dict(shares)}")
