"""trajectories.jsonl → checkpoints/lora, checkpoints/hypernet and checkpoints/metrics.jsonl.

With `use` the hypernetwork is a trained one, and nothing is trained. Otherwise phase A trains the static LoRA; phase B
the hypernetwork on top of a copy of it. A generator of outer products has no static LoRA: its teachers are fine-tuned
into checkpoints/teachers, then it is trained. Killed at any step, the next call goes on from the last checkpoint and
writes the same curve. A corpus that holds a held-out task is refused before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rune import console, plugins
from rune.config import ADDED, derive_seed
from rune.corpus import exclusion, nearest
from rune.errors import ConfigError, DataError
from rune.hypernet.settings import HypernetConfig, LoraConfig, OuterProductsTraining
from rune.runs import store
from rune.stages.context import Context
from rune.types import Problem, Split, Trajectory

if TYPE_CHECKING:
    from rune.adapters.factors import Adapters
    from rune.hypernet.base import Base
    from rune.hypernet.features import Features


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[train]`. Both phases train on the same solutions, but for `spare`."""

    lora: LoraConfig
    hypernet: HypernetConfig
    # What is trained. "outer_products" reads the section of this name, and of the others in [train] only `use`.
    kind: Literal["hypernet", "outer_products"] = field(default="hypernet", metadata=ADDED)
    outer_products: OuterProductsTraining | None = field(default=None, metadata=ADDED)
    retriever: str = "bm25"  # finds the sources of retrieved pairs, with its default settings
    neighbours: int = 8  # nearest trajectories of other tasks kept for each target
    per_task: int = 1  # of one task among them at most, as retrieve.per_task; 0 = no limit
    spare: float = 0.0  # share of the tasks without a domain that phase A never sees: retrieved pairs are about those
    start_from: str = ""  # checkpoints to go on from: a run's checkpoints/, or a hypernetwork's own folder
    # Folder of a trained hypernetwork of any kind, used as it is: nothing is trained. "": train one.
    use: str = field(default="", metadata=ADDED)
    start_static: bool = True  # from its static part as well; if not, phase A begins at zero
    cache_features: bool = False  # keep features on disk: 7 kB a token for four taps of the 0.5B

    def __post_init__(self) -> None:
        if self.per_task < 0:
            raise ValueError(f"per_task must be 0 (no limit) or more, found {self.per_task}")
        if not 0 <= self.spare < 1:
            raise ValueError(f"spare is a share of the tasks, 0 or more and below 1, found {self.spare:g}")
        if self.spare and not self.hypernet.pairs.retrieved:
            raise ValueError(
                "spare keeps tasks for retrieved pairs, and pairs.retrieved is 0; raise that, or spare none"
            )
        if not self.start_static and not self.start_from:
            raise ValueError("start_static = false leaves a part of start_from out, and there is none; set start_from")
        if self.use and self.start_from:
            raise ValueError("use takes a hypernetwork as it is, start_from trains on from one; leave one of them out")
        if self.kind == "outer_products" and self.outer_products is None:
            raise ValueError(
                "kind = 'outer_products' needs the section [train.outer_products]; see docs/hypernetworks.md"
            )
        if self.kind == "outer_products" and self.start_from:
            raise ValueError(
                "start_from goes on from kind 'hypernet' alone; leave it out, or take one as it is with use"
            )
        if self.start_from and self.hypernet.encoder_first is not None:
            raise ValueError("encoder_first is for an encoder that knows nothing; leave it out, or start_from")


def run(folder: store.RunDir, config: Config, context: Context) -> None:
    """Train what is not trained yet: checkpoints/lora (but for a generator of outer products) and checkpoints/hypernet.

    Losses are in checkpoints/metrics.jsonl.
    Raises ContaminationError for a held-out task in the corpus, DataError if there is nothing to train on.
    """
    trajectories = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)
    if not trajectories:
        raise DataError(f"{folder / 'trajectories.jsonl'}: no trajectories; run `rune collect {folder.path}` first")
    problems = store.read_jsonl(folder / "problems.jsonl", Problem)
    held_out = [p for p in problems if p.split is Split.HELD_OUT]
    by = exclusion.kept_apart(problems)
    exclusion.check_corpus(trajectories, held_out, where=str(folder / "trajectories.jsonl"), by=by)
    for start in filter(None, (config.start_from, config.use)):
        check_start(Path(start), held_out, by=by)
    if config.use:
        _take(Path(config.use), folder / "checkpoints" / "hypernet", context)
        return
    fit(trajectories, config, context, folder / "checkpoints")


def check_start(folder: Path, held_out: Sequence[Problem], *, by: str) -> None:
    """A checkpoint carries what it was trained on: a held-out task must not come in by this door either.

    `by` is what the split keeps whole. With "domain" no other task of a held-out domain may have shaped it, and one
    that does not say which domains did starts nothing. Raises ContaminationError, DataError.
    """
    for place in dict.fromkeys(_begin(folder)):
        settings = store.read_json(place / "settings.json")
        known = settings.get("trained_on") if isinstance(settings, dict) else None
        if not known or not _are_names(known):
            raise DataError(
                f"{place}: does not say which tasks it was trained on, and train.start_from and train.use need to know"
            )
        exclusion.check_ids(known, held_out, where=str(place))
        if by == "domain" and any(p.domain for p in held_out):
            domains = settings.get("trained_on_domains")
            if not isinstance(domains, dict) or not all(map(_are_names, domains.values())):
                raise DataError(
                    f"{place}: does not say of which domains it has seen tasks (an earlier version made it), and whole "
                    "domains are held out here; train from scratch, or start from a newer checkpoint"
                )
            exclusion.check_domains(domains, held_out, where=str(place))


def _are_names(found: object) -> bool:
    """A list of strings; a string is none, whose letters are no names of tasks: nothing would be found held out."""
    return isinstance(found, list) and all(isinstance(name, str) for name in found)


class Begin(NamedTuple):
    """Where a training goes on from: a static LoRA's checkpoint and a hypernetwork's (which holds one as well)."""

    lora: Path
    hypernet: Path


def _begin(folder: Path) -> Begin:
    if (folder / "settings.json").is_file():
        return Begin(folder, folder)
    return Begin(folder / "lora", folder / "hypernet")


class TrainingSession:
    """The frozen base model and the features read with it, kept while several corpora are trained on."""

    def __init__(self, context: Context) -> None:
        from rune.hypernet import base as bases

        self.base: Base = bases.load(context.model(), device=context.device, dtype=context.dtype)
        self._cache = context.cache
        self._read: dict[tuple[tuple[int, ...], str], Features] = {}

    def features(self, trajectories: Sequence[Trajectory], taps: tuple[int, ...], *, on_disk: bool) -> list[Features]:
        """In the given order; each trajectory is read once."""
        from rune.hypernet.features import Reader

        missing = [t for t in trajectories if (taps, t.trajectory_id) not in self._read]
        if missing:
            base = self.base
            folder = self._cache if on_disk else None
            reader = Reader(base.model, base.tokenizer, taps=taps, digest=base.ref.digest, folder=folder)
            found = reader.read(missing)
            if cut := sum(f.cut for f in found):
                console.warn(f"features: {cut} tokens of steps too long for the encoder were left out")
            self._read |= {(taps, t.trajectory_id): f for t, f in zip(missing, found, strict=True)}
        return [self._read[taps, t.trajectory_id] for t in trajectories]

    def close(self) -> None:
        self.base.hooks.remove()
        self._read.clear()


def fit(trajectories: Sequence[Trajectory], config: Config, context: Context, folder: Path) -> None:
    """All phases on a corpus that was checked. The context's TrainingSession serves several calls."""
    from rune.hypernet import parallel

    if config.kind == "outer_products" and (count := parallel.join(context.device).count) > 1:
        raise ConfigError(
            f"train.kind = 'outer_products' trains in one process, and {count} were started; start `rune train` "
            "without accelerate or torchrun"
        )
    if parallel.join(context.device).agree(_done(folder / "hypernet")):
        return
    own = context.session() if context.session else TrainingSession(context)
    try:
        if config.kind == "outer_products":
            assert config.outer_products is not None
            _fit_outer_products(trajectories, config.outer_products, context, folder, own.base)
        else:
            _fit(trajectories, config, context, folder, own)
    finally:
        if context.session is None:
            own.close()


def _done(folder: Path) -> bool:
    from rune.hypernet import checkpoint

    return checkpoint.done(folder)


def _take(source: Path, target: Path, context: Context) -> None:
    """A checkpoint that is used as it is, whatever its kind. Raises AdapterError or DataError if it cannot be."""
    from rune.hypernet import checkpoint

    if not checkpoint.done(target):
        checkpoint.load(source, context.model(), device="cpu")
        checkpoint.copy(source, target)


def _fit(
    trajectories: Sequence[Trajectory], config: Config, context: Context, folder: Path, session: TrainingSession
) -> None:
    """Phase A into folder/lora unless it is there, phase B into folder/hypernet; a killed one goes on in either.

    Raises ConfigError or AdapterError for what [train] names and does not fit.
    """
    from rune.hypernet import checkpoint, parallel, trainer
    from rune.hypernet.data import Corpus
    from rune.hypernet.features import FeatureTable

    metrics, lora_folder, hypernet_folder = folder / "metrics.jsonl", folder / "lora", folder / "hypernet"
    processes = parallel.join(context.device)
    model, base = context.model(), session.base
    layout = base.layout(config.lora.modules)
    first = _begin(Path(config.start_from)) if config.start_from else None
    tasks, domains = _tasks(trajectories, first), _domains(trajectories, first)
    kept_back = spared(trajectories, config.spare, seed=context.seed)
    if not processes.agree(checkpoint.done(lora_folder)):
        learned = [t for t in trajectories if t.task_id not in kept_back]
        corpus = Corpus(base, learned, max_tokens=config.lora.max_tokens)
        _report_left_out(corpus, config.lora.max_tokens)
        lora = trainer.train_lora(
            base,
            corpus,
            config.lora,
            seed=context.seed,
            folder=lora_folder,
            metrics=metrics,
            initial=checkpoint.load(first.lora, model, device=context.device).static
            if first and config.start_static
            else None,
        )
        if processes.main:
            checkpoint.save_lora(lora_folder, lora, layout, config.lora, model, trained_on=tasks, domains=domains)
        processes.wait()
    static = checkpoint.load(lora_folder, model, device=context.device).static.train()
    wanted = config.hypernet.pairs.retrieved or config.hypernet.weights.kl_static
    near = neighbours(trajectories, config) if wanted else {}
    corpus = Corpus(
        base,
        trajectories,
        max_tokens=config.hypernet.max_tokens,
        retrieved=near,
        spared=kept_back,
        read=config.hypernet.pairs.read,
    )
    _report_left_out(corpus, config.hypernet.max_tokens)
    read = [corpus.trajectories[i] for i in corpus.readable]
    table = FeatureTable(session.features(read, config.hypernet.taps, on_disk=config.cache_features), corpus.readable)
    both = trainer.train_hypernet(
        base,
        corpus,
        table,
        static,
        config.hypernet,
        seed=context.seed,
        folder=hypernet_folder,
        metrics=metrics,
        reconstruct=_fine_tuned(corpus, config, base),
        initial=checkpoint.load(first.hypernet, model, device=context.device).both if first else None,
    )
    if processes.main:
        checkpoint.save_hypernet(
            hypernet_folder, both, layout, config.lora, config.hypernet, model, trained_on=tasks, domains=domains
        )
    processes.wait()


def _fit_outer_products(
    trajectories: Sequence[Trajectory], config: OuterProductsTraining, context: Context, folder: Path, base: Base
) -> None:
    """Teachers into folder/teachers, the generator into folder/hypernet; a killed one goes on in either."""
    from rune.hypernet import checkpoint, outer_products, outer_products_training

    module = outer_products_training.train(
        base,
        trajectories,
        config,
        seed=context.seed,
        folder=folder / "hypernet",
        teachers=folder / "teachers",
        metrics=folder / "metrics.jsonl",
    )
    checkpoint.save_outer_products(
        folder / "hypernet",
        module,
        base.layout(outer_products.MODULES),
        config.generator,
        context.model(),
        trained_on=_tasks(trajectories, None),
        domains=_domains(trajectories, None),
    )


def spared(trajectories: Sequence[Trajectory], share: float, *, seed: int) -> set[str]:
    """The tasks without a domain that phase A leaves out: each by its own number, whatever else is in the corpus."""
    plain = {t.task_id for t in trajectories if not t.domain}
    return {task for task in plain if derive_seed(seed, "spare", task) < share * 2**31}


def _tasks(trajectories: Sequence[Trajectory], first: Begin | None) -> list[str]:
    """Every task that shaped the weights, those of the checkpoints it began with included."""
    before = [t for place in dict.fromkeys(first or ()) for t in store.read_json(place / "settings.json")["trained_on"]]
    return sorted({*before, *(t.task_id for t in trajectories)})


def _domains(trajectories: Sequence[Trajectory], first: Begin | None) -> dict[str, list[str]] | None:
    """Benchmark → every domain that shaped the weights; None if a checkpoint it began with does not say."""
    every = [exclusion.domains_of(trajectories)]
    for place in dict.fromkeys(first or ()):
        before = store.read_json(place / "settings.json").get("trained_on_domains")
        if before is None:
            return None
        every.append(before)
    return {name: sorted({d for one in every for d in one.get(name, ())}) for name in sorted(set().union(*every))}


def _report_left_out(corpus: Any, limit: int) -> None:
    if corpus.too_long:
        console.warn(f"{corpus.too_long} solutions of more than {limit} tokens (prompt included) are not trained on")


def neighbours(trajectories: Sequence[Trajectory], config: Config) -> dict[str, list[str]]:
    """Each trajectory's nearest ones of *other* tasks: a target's own solution is never in its sources.

    Tasks of a domain take no part: their sources are their siblings.
    """
    module = plugins.load("retrievers", config.retriever)
    plain = [t for t in trajectories if not t.domain]
    indexed = [t for t in plain if t.solved]
    if not indexed:
        return {}
    retriever = module.build(module.Config(), indexed)
    near: dict[str, list[str]] = {}
    for trajectory in plain:
        hits = nearest.nearest(
            retriever,
            trajectory.prompt,
            ranked=len(indexed),
            count=config.neighbours,
            per_task=config.per_task,
            without=trajectory.task_id,
        )
        near[trajectory.trajectory_id] = [hit.trajectory.trajectory_id for hit in hits]
    return near


def _fine_tuned(corpus: Any, config: Config, base: Base) -> Mapping[int, Adapters]:
    """Adapters by trajectory number, for the reconstruction term."""
    if not config.hypernet.weights.reconstruction:
        return {}
    from rune.adapters.convert import read

    root = Path(config.hypernet.reconstruct_from)
    layout = base.layout(config.lora.modules)
    found = {
        number: read(root / trajectory.trajectory_id, layout, device=str(base.device))
        for number, trajectory in enumerate(corpus.trajectories)
        if (root / trajectory.trajectory_id).is_dir()
    }
    if not found:
        raise ConfigError(
            f"train.hypernet.reconstruct_from: no adapter in {root} is named by a trajectory_id of the corpus"
        )
    return found
