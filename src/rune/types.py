"""The nouns of the house: frozen records that cross stages, and the protocols that parts implement.

Read this first. Standard library only, so a notebook can read a `Verdict` without a model.
One stage turns one JSONL file of these records into the next (see ARCHITECTURE.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable


class Outcome(StrEnum):
    """What became of a program. The machine's own failures are exceptions, never outcomes."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


class FailureKind(StrEnum):
    """Why a program did not pass, in the scorer's words. A program's own words are never among them (see `raised`)."""

    NONE = ""  # it passed
    WRONG_ANSWER = "WrongAnswer"  # the test failed on what the program returned
    RAISED = "Raised"  # the program raised an exception
    MISSING_ENTRY_POINT = "MissingEntryPoint"  # it loads, and does not define what the test calls
    TIMEOUT = "Timeout"
    MEMORY_LIMIT = "MemoryLimit"
    CRASH = "Crash"  # its process ended
    BAD_VALUE = "BadValue"  # it returned what is no plain data, or too much of it
    PROTOCOL = "Protocol"  # it spoke to the scorer in a way that no answer has
    BAD_EDIT = "BadEdit"  # its edits cannot be applied
    NOT_NEEDED = "NotNeeded"  # it passes, and passes as well without the change that its task is about


class Split(StrEnum):
    """Which side of the experiment a task is on. Only TRAIN tasks may give trajectories that something trains on."""

    TRAIN = "train"
    HELD_OUT = "held_out"


class Answer(StrEnum):
    """What a task asks for: `prompts` has the words and takes it from what a model says."""

    PROGRAM = "program"
    VALUE = "value"  # a Python literal, such as "[1, 2]"
    EDITS = "edits"  # search/replace blocks for the files of a repository, see `editing`


class Scorer(StrEnum):
    """Who judges the answers to a task, and so what a success is: a file of that name in benchmarks/scorers/."""

    EXECUTION = "execution"  # the program passes its test
    EXECUTION_WITH_AND_WITHOUT = "execution_with_and_without"  # it passes with a change installed and not without it
    EXACT_VALUE = "exact_value"  # the value is the expected one; nothing is executed
    REPOSITORY = "repository"  # with the edits, the repository's tests pass that failed, and those that passed still do

    @property
    def answer(self) -> Answer:
        return {Scorer.EXACT_VALUE: Answer.VALUE, Scorer.REPOSITORY: Answer.EDITS}.get(self, Answer.PROGRAM)

    def measure(self, k: int = 1) -> str:
        """What the share of successes is called: "pass@1", or "UPass@1" (Liu et al. 2024, arXiv 2407.06249)."""
        return f"{'UPass' if self is Scorer.EXECUTION_WITH_AND_WITHOUT else 'pass'}@{k}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One task and what judges an answer to it."""

    task_id: str  # "HumanEval/17", unique over all benchmarks
    benchmark: str  # name of the file in benchmarks/ that made it
    prompt: str  # what the model is shown
    entry_point: str  # the function the test calls; "" where a value is asked for
    test: str  # source that defines check(candidate), or the expected value; the model never sees it
    reference: str = ""  # a complete answer that passes
    category: str = ""  # string manipulation, arithmetic, data structures, algorithms; or a benchmark's own
    split: Split = Split.TRAIN
    prelude: str = ""  # trusted source that exists before the candidate's code (an invented helper library)
    domain: str = ""  # what tasks share that no other tasks do: a library, an API update, a private convention
    scorer: Scorer = Scorer.EXECUTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One program tried for a task, and what the sandbox said of it."""

    code: str  # the program, or the value as it was written
    outcome: Outcome
    error_kind: str = ""  # "" if passed, else `Execution.label`: SyntaxError, NameError, WrongAnswer, Timeout
    error: str = ""  # the text the model was shown, truncated from the middle
    reflection: str = ""  # what the model said of its mistake before the next attempt, if it was asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """How a task was worked on: every attempt in order, and the passing code if there is one."""

    trajectory_id: str  # content hash
    task_id: str
    benchmark: str
    prompt: str
    attempts: tuple[Attempt, ...]
    solution: str = ""  # the final passing program; "" means exhausted
    category: str = ""
    domain: str = ""
    source: str = ""  # who wrote it: model id, "mutate-and-repair", "imported:<file>"
    answer: Answer = Answer.PROGRAM  # what the task asks for

    @property
    def solved(self) -> bool:
        return bool(self.solution)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """A LoRA by its content. An `adapters.folders.AdapterSource` knows where it lies."""

    adapter_id: str  # sha256 of its weights file, the same in every run and registry; 32 digits in earlier records
    base_model: str  # `ModelRef.digest` of the model it was made for
    rank: int
    delta_w_norm: float  # ‖ΔW‖_F over all modules; > 0 or the arm is not live


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """All that distinguishes one arm from another for one task: extra context and/or an adapter."""

    task_id: str
    condition: str  # the arm
    context: str = ""  # text put before the task; "" for none
    adapter: AdapterRef | None = None
    trajectory_ids: tuple[str, ...] = ()  # what it was made from; the task's own one only if the run asks for recall


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion drawn for one task under one condition."""

    task_id: str
    condition: str
    draw: int  # 0 <= draw < n
    seed: int  # the same for every arm at one (task, draw)
    completion: str  # the model's text, untouched
    program: str  # the program or value taken from it: what is scored
    num_tokens: int
    finish_reason: str  # "stop" or "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the scorer found about one sample."""

    task_id: str
    condition: str
    draw: int
    outcome: Outcome
    error_kind: str = ""  # a FailureKind; in records of before `raised`, the name of an exception too
    raised: str = ""  # the name the program gave to the exception it raised; nothing is decided by it
    error: str = ""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    machine: str = ""
    scorer: Scorer = Scorer.EXECUTION  # who judged, so what `passed` counts

    @property
    def label(self) -> str:
        """One word for a reader: NameError, WrongAnswer, Timeout; "" if passed."""
        return _label(self.error_kind, self.raised)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A base model on this disk, ready for `from_pretrained`."""

    name: str  # registry name, hub id or path as the user wrote it
    path: str  # folder: config.json, model.safetensors, tokenizer.json, …
    digest: str  # sha256 of the weights file(s); of a quantised base another one (`models/identity.py`)
    source: str  # cache, hub, pypi, local
    weights: str = ""  # what the file(s) hold, in words: "4-bit weights (GGUF, Q4_K_M), dequantised"
    quantize: str = "none"  # how they are loaded: "none" or "nf4"
    unquantised: str = ""  # of a quantised base: the digest that it has without
    carries: str = ""  # digest of another base whose adapters this one takes too; "" for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw. No field has a default that hides a scientific choice."""

    temperature: float  # 0 means greedy
    max_new_tokens: int
    top_p: float = 1.0
    top_k: int = 0  # 0 means no limit
    stop: tuple[str, ...] = ()  # generation ends before the first of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`n` draws of one prompt under one adapter. Draw i uses seed `seed + i`, whatever the batch."""

    key: str
    prompt: str  # rendered text, chat template and prefill included
    sampling: Sampling
    seed: int
    n: int = 1
    adapter: AdapterRef | None = None
    logprobs: int | None = None  # how many of the likeliest tokens to report beside each drawn one; None: no report
    salt: str = ""  # changes no answer: what an engine remembers of a prompt is not used for one of another salt


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One drawn token and how likely the model found it: natural logarithm, before temperature and filters."""

    token: bytes  # may be a part of a character
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()  # the likeliest tokens at this place, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One draw of a request."""

    key: str
    draw: int
    seed: int
    text: str  # without the stop string
    num_tokens: int
    finish_reason: str  # "stop" or "length"
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens that `text` shows, if the request asks for them


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one draw of a submitted request has gained. All texts of a draw, joined, are `Completion.text`."""

    draw: int
    seed: int
    text: str  # never a part of a character, nor what may turn out to begin a stop string
    num_tokens: int  # of the draw so far, those whose text is held back too
    finish_reason: str = ""  # "" while it goes on; "stop" or "length" in the last one
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens that `text` shows, if the request asks for them


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One piece of untrusted code and the test that judges it."""

    key: str
    code: str
    test: str  # defines check(candidate)
    entry_point: str
    prelude: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What happened to a program. CPU and wall time apart: a loaded machine changes only the second.

    `outcome`, `error_kind` and `settled` are the scorer's; `raised` and `error` may hold what the program says.
    """

    key: str
    outcome: Outcome
    error_kind: FailureKind = FailureKind.NONE
    raised: str = ""  # the name of the exception's class, if it is a short plain identifier; nothing is decided by it
    error: str = ""  # text for a reader
    settled: bool = True  # False: a timeout by a clock that the machine moves too; such a verdict is not kept
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def label(self) -> str:
        """One word for a reader: NameError, WrongAnswer, Timeout; "" if passed."""
        return _label(self.error_kind, self.raised)


def _label(error_kind: str, raised: str) -> str:
    """The program's word for its exception, unless a reader would take it for one of the scorer's."""
    return raised if raised and raised not in _WORDS else error_kind


_WORDS = frozenset(kind.value for kind in FailureKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval: percentage points of a Contrast, percent of an ArmScore or a Loss, 0..1 of a fitness."""

    low: float
    high: float
    level: float  # 0.95
    over: str = "tasks"  # what else could have been drawn: tasks or domains, and trainings, or one training alone


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmScore:
    """pass@1 (or what else the decision's scorer counts) of one arm: the mean over tasks of c/n."""

    condition: str
    num_tasks: int
    num_samples: int
    num_passed: int
    pass_at_1: float  # in 0..1
    interval: Interval
    pass_curve: tuple[float, ...] = ()  # pass@1 … pass@n, in 0..1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A paired difference of two arms over the same tasks."""

    name: str  # "hypernet − vanilla"
    treatment: str
    baseline: str
    points: float  # percentage points
    interval: Interval
    p_value: float  # exact two-sided sign-flip test over tasks
    p_greater: float = 1.0  # the same, one-sided: treatment better
    p_adjusted: float | None = None  # Holm over the secondary contrasts; None outside that family
    role: str = "descriptive"  # "primary", "secondary" or "descriptive"
    wins: int = 0  # tasks where the treatment passed more draws
    losses: int = 0
    ties: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The gate's answer and what stands beside it."""

    passed: bool
    answer: str  # "Gate PASSED" or "Gate FAILED — reassessing"
    effect_points: float
    threshold_points: float
    relative_change: float | None  # effect / baseline, for information; None: the baseline passed nothing
    leakage_check: str  # "not required", "required", "clean", "suspicious"
    arms: tuple[ArmScore, ...]
    contrasts: tuple[Contrast, ...]
    reasons: tuple[str, ...]
    grade: str = ""  # one word of `analysis/evidence.py`, e.g. "attributed", "unattributed", "luck"
    evidence: str = ""  # the grade as a sentence, from interval, power and controls
    hypotheses: tuple[str, ...] = ()  # H0 and H1 in words, with the numbers in
    details: Mapping[str, Any] = field(default_factory=dict)
    scorer: Scorer = Scorer.EXECUTION  # what every `passed` above counts


Listener = Callable[[Delta | Exception], None]


class Engine(Protocol):
    """Turns requests into completions. An unknown adapter is an error, never the base model."""

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield every draw of every request as it finishes, in any order."""

    def submit(self, request: Request, listen: Listener) -> Ticket:
        """Draw a request beside those under way. `listen` hears of each draw until its last delta, in another thread.

        What is wrong with the request itself is raised here; what goes wrong later is heard, once, in place of deltas.
        """

    def close(self) -> None: ...


class Ticket(Protocol):
    """A submitted request."""

    def cancel(self) -> None:
        """Nobody waits for it any more: its draws end as soon as they can, and nothing more is heard of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command to be run over files, and what it may use."""

    key: str
    argv: tuple[str, ...]  # the first is a program's name or path
    archive: str  # a tar file: what the folder holds that it runs in
    files: Mapping[str, str]  # path → text of what stands there otherwise
    python: str = ""  # an interpreter whose packages it may use; "" = this one
    seconds: float = 120.0  # wall time
    memory_mb: int = 4096  # of each of its processes
    folder_mb: int = 512  # files and whatever it writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended."""

    key: str
    code: int  # its exit status; negative: the signal that ended it
    output: str  # both streams as they came, the end of them if they are long
    timed_out: bool
    wall_seconds: float


class Sandbox(Protocol):
    """Runs untrusted programs. Raises SandboxError for its own failures, never for a program's."""

    def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
        """Yield one execution per program, in any order."""

    def run(self, commands: Iterable[Command]) -> Iterator[Finished]:
        """Run commands over files of their own, without network; yield how each ended, in any order."""

    def close(self) -> None: ...


class Benchmark(Protocol):
    """A file in benchmarks/: `build(config)` gives one of these."""

    def problems(self) -> list[Problem]: ...


@runtime_checkable
class Asking(Benchmark, Protocol):
    """A benchmark whose tasks ask for values of calls: no trajectory that trains or is shown may hold one of these."""

    def asked(self) -> Mapping[str, Sequence[str]]:
        """Task id → the calls as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A trajectory that a retriever found, and the part of it that matched."""

    trajectory: Trajectory
    snippet: str
    score: float  # only comparable within one query


class Retriever(Protocol):
    """Finds the trajectories that resemble a task; ties are broken by trajectory id."""

    def retrieve(self, query: str, *, top_k: int) -> list[Hit]: ...


class Condition(Protocol):
    """A file in conditions/: what one arm adds to a task."""

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        """Call `on_done` with one treatment per problem, in order."""
