"""From a local repository to an adapter in an engine: the loop, its trajectory, `rune adapt`, the LoRA loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rune.adapters.folders import Folders
from rune.adapters.layout import WEIGHTS_FILE
from rune.cli.main import main
from rune.engines import scripted, torch
from rune.runs import store
from rune.runs.store import RunDir
from rune.stages.context import Context
from rune.types import AdapterRef, Answer, Outcome, Request, Sampling, Trajectory
from tests.benchmarks.repositories import ISSUE, RIGHT, SHOP, UNITTEST, WRONG, make
from tests.pipeline.experiment import settings, write


def collected(root: Path, model: Any, answers: dict[str, list[str]], **collect: Any) -> list[Trajectory]:
    shop = make(root / "shop", SHOP)
    raw = settings(
        root,
        model,
        benchmark={"name": "repositories", "settings": {"path": "shop", "test_command": UNITTEST, "issue": ISSUE}},
        design={"held_out": 0, "scored": 0},
        collect={"tasks": 0, "max_attempts": 3, "reflect": False, **collect},
        engine={"name": "scripted", "settings": {"answers": answers}},
    )
    assert main(["collect", str(write(root, raw))]) == 0
    (folder,) = (root / "runs").iterdir()
    assert (shop / "shop" / "prices.py").read_text(encoding="utf-8") == SHOP["shop/prices.py"]  # never touched
    return store.read_jsonl(folder / "trajectories.jsonl", Trajectory)


def test_a_repository_mended_at_the_second_attempt_becomes_an_adapter_that_engines_load(
    trained: tuple[RunDir, Context], tmp_path: Path
) -> None:
    folder, context = trained
    model = context.model()
    answers = {"it is not mended": [f"{RIGHT}\n```\n"], ISSUE: [f"{WRONG}\n```\n"]}
    (found,) = collected(tmp_path, model, answers)
    assert found.domain == "shop" and found.benchmark == "repositories" and found.answer is Answer.EDITS
    assert [a.outcome for a in found.attempts] == [Outcome.FAILED, Outcome.PASSED]
    assert found.attempts[0].code == WRONG and "200 != 220" in found.attempts[0].error
    assert found.solution == RIGHT and found.prompt.startswith(ISSUE)
    corpus = next((tmp_path / "runs").iterdir()) / "trajectories.jsonl"
    made = tmp_path / "adapter"
    checkpoint = str(folder / "checkpoints" / "hypernet")
    assert (
        main(["adapt", "--trajectory", str(corpus), "-o", str(made), "--checkpoint", checkpoint, "--model", model.path])
        == 0
    )
    named = store.sha256_file(made / WEIGHTS_FILE)
    ref = AdapterRef(adapter_id=named, base_model=model.digest, rank=4, delta_w_norm=1.0)
    sampling = Sampling(temperature=0.0, max_new_tokens=4)
    asked = [Request(key="a", prompt=ISSUE, sampling=sampling, seed=0, adapter=ref)]
    config = scripted.Config(answers={ISSUE: ("yes",)}, read_adapters=True)
    machine: Any = {"model": model, "device": "cpu", "dtype": "float32", "adapters": Folders(made)}
    assert [c.text for c in scripted.build(config, **machine).complete(asked)] == ["yes"]
    engine = torch.build(torch.Config(), **machine)
    assert len(list(engine.complete(asked))) == 1
    engine.close()


@pytest.mark.check
def test_a_repository_that_is_not_mended_leaves_an_exhausted_trajectory(
    trained: tuple[RunDir, Context], tmp_path: Path
) -> None:
    _, context = trained
    answers = {ISSUE: ["I do not know.\n```\n"]}
    (found,) = collected(tmp_path, context.model(), answers, max_attempts=2)
    assert not found.solved and [a.error_kind for a in found.attempts] == ["BadEdit", "BadEdit"]
    assert "there is no complete block" in found.attempts[0].error
