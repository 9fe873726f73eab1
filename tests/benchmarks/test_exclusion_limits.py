"""Where the exclusion list begins to refuse and where the leakage check begins to suspect: both sides of each limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rune.analysis import leakage
from rune.corpus import exclusion, overlap, splits
from rune.errors import ContaminationError
from rune.runs import store
from rune.stages import collect
from rune.stages.context import Context
from rune.types import Attempt, ModelRef, Outcome, Problem, Split, Trajectory


def problem(task_id: str = "T/1", **changes: str) -> Problem:
    record = Problem(
        task_id=task_id, benchmark="t", prompt=words("ask", 30), entry_point="f", test="", reference=chain("x", 12),
        split=Split.HELD_OUT,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def trajectory(task_id: str = "other/1", **changes: object) -> Trajectory:
    record = Trajectory(
        trajectory_id="t", task_id=task_id, benchmark="t", prompt="Something else.",
        attempts=(Attempt(code="y = 2\n", outcome=Outcome.PASSED),), solution="y = 2\n",
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def words(stem: str, count: int, start: int = 0) -> str:
    return " ".join(f"{stem}{i}" for i in range(start, start + count))


def chain(name: str, steps: int) -> str:
    """A program whose lines differ."""
    return f"def f({name}):\n" + "".join(f"    {name} = {name} * {i} + {i + 1}\n" for i in range(steps))


def why(candidate: Trajectory, *held_out: Problem, near: dict[str, list[str]] | None = None) -> str:
    return exclusion.Exclusion(held_out, near).why(candidate)


@pytest.mark.parametrize(
    ("number", "refused"), [(1, False), (10, False), (11, True), (510, True), (511, False), (974, False)]
)
@pytest.mark.parametrize("name", ["Mbpp/{}", "mbpp/{}", "MBPP+/{}", "mbpp_plus/{}"])
def test_mbpp_is_for_evaluation_from_11_to_510_under_any_name(name: str, number: int, refused: bool) -> None:
    assert bool(why(trajectory(name.format(number)))) is refused


@pytest.mark.parametrize(
    ("held_out", "found"),
    [
        ("HumanEval/7", "HumanEvalFix/7"),
        ("HumanEvalFix/7", "HumanEval/7"),
        ("HumanEval/7", "humaneval_plus/7"),
        ("HumanEval/7", "Python/7"),
        ("Mbpp/600", "MbppPlus/600"),
    ],
)
def test_a_task_is_held_out_under_all_its_names(held_out: str, found: str) -> None:
    assert "is held out" in why(trajectory(found), problem(held_out))
    other = found.replace("7", "8").replace("600", "601")
    assert "is held out" not in why(trajectory(other), problem(held_out))
    with pytest.raises(ContaminationError, match=f"here: was trained on {found}, which is held out"):
        exclusion.check_ids([other, found], [problem(held_out)], where="here")
    exclusion.check_ids([other], [problem(held_out)], where="here")


def test_a_listed_near_duplicate_is_refused_only_where_its_evaluation_task_is_held_out() -> None:
    near = {"Mbpp/28": ["Mbpp/926"]}
    assert "too like Mbpp/28" in why(trajectory("MBPP+/926"), problem("MbppPlus/28"), near=near)
    assert why(trajectory("Mbpp/926"), problem("Mbpp/29"), near=near) == ""


def test_half_of_a_prompts_shingles_refuse_and_less_than_half_do_not() -> None:
    prompt = words("ask", 31)  # 22 shingles of 10 tokens
    for kept, refused in ((20, True), (19, False)):  # 11 and 10 of them
        copied = trajectory(prompt=f"{words('ask', kept)} {words('own', 30)}")
        assert why(copied, problem(prompt=prompt)).startswith("shared prompt: 50%") is refused


def test_half_of_a_references_shingles_in_any_attempt_refuse_and_less_than_half_do_not() -> None:
    reference = chain("x", 12)
    for lines, refused in ((7, True), (3, False)):
        code = chain("x", lines) + "    z = [x, 'other', x]\n    return z[0] - z[2]\n"
        part, whole = exclusion.code_shingles(reference), exclusion.code_shingles(code)
        assert (overlap.containment(part, whole) >= 0.5) is refused
        hidden = trajectory(attempts=(Attempt(code=code, outcome=Outcome.FAILED), *trajectory().attempts))
        for found in (hidden, trajectory(solution=code)):
            assert why(found, problem(reference=reference)).startswith("shared code") is refused


def test_comments_docstrings_and_layout_hide_no_program() -> None:
    lines = chain("x", 12).splitlines()
    spread = "\n".join([lines[0], '    """Mine."""', *(f"{line}   # line {i}\n" for i, line in enumerate(lines[1:]))])
    assert why(trajectory(solution=spread), problem()).startswith("same program")
    longer = f"import math\n{spread}\nprint(math.pi)\n"
    assert why(trajectory(solution=longer), problem()) != ""


@pytest.mark.parametrize("size", [23, 24, 25])
def test_small_trees_coincide_by_chance_and_from_24_nodes_on_they_do_not(size: int) -> None:
    def program(name: str, lines: int) -> str:  # one node a line
        return f"def {name}(a_{name}):\n" + "    pass\n" * lines + f"    return ----a_{name}\n"

    sizes = {lines: shape.size for lines in range(30) if (shape := overlap.shape(program("f", lines)))}
    lines = next(lines for lines, found in sizes.items() if found == size)
    renamed = trajectory(solution=program("g", lines))
    assert why(renamed, problem(reference=program("f", lines))).startswith("same program") is (size >= 24)


def test_a_familys_text_is_its_own_and_its_name_is_what_may_not_cross() -> None:
    inside = problem("fam/1", domain="house")
    copy = {"prompt": inside.prompt, "solution": inside.reference}
    assert why(trajectory(**copy), inside) == ""  # the text of a family task is plain code on purpose
    assert why(trajectory("fam/2", domain="house"), inside) == "held-out domain: house"
    assert why(trajectory("fam/2", domain="other", **copy), inside) == ""
    assert why(trajectory("fam/2", domain="other", **copy), problem()) != ""  # but not that of other tasks


def test_a_check_names_file_line_and_reason_of_the_first_that_must_not_train() -> None:
    good, bad = trajectory(), trajectory("T/1", trajectory_id="bad")
    exclusion.check_corpus([good, good], [problem()], where="file")
    with pytest.raises(ContaminationError, match=r"file:2: field 'task_id' 'T/1', trajectory bad: .* is held out"):
        exclusion.check_corpus([good, bad, bad], [problem()], where="file")


def test_decontamination_keeps_order_and_drops_only_what_stands_twice_or_may_not_train() -> None:
    first = trajectory(solution=chain("x", 12), attempts=(Attempt(code=chain("x", 12), outcome=Outcome.PASSED),))
    renamed = trajectory("other/2", prompt="B", solution=chain("y", 12))
    same_prompt = trajectory("other/3", prompt=first.prompt, solution="z = 3\n", attempts=())
    second_try = replace(first, attempts=trajectory().attempts)
    honest = trajectory("other/4", prompt="C")
    kept, report = exclusion.decontaminate(
        [honest, first, renamed, same_prompt, second_try, first, trajectory("T/1")], [problem(reference="")]
    )
    assert kept == [honest, first, second_try]
    assert report.dropped == {"duplicate": 3, "evaluation task": 1} and (report.examined, report.kept) == (7, 3)
    assert [item.split(":")[0] for item in report.items] == ["other/2", "other/3", "other/1", "T/1"]


def test_relatives_stand_together_through_a_third_and_strangers_apart() -> None:
    plain = [problem(f"T/{i}", prompt=words(f"p{i}x", 30), reference=chain(f"v{i}", 3 + 2 * i)) for i in range(4)]
    shape = replace(plain[0], task_id="S/1", prompt=words("s", 30), reference=chain("other", 3))
    prompt = replace(shape, task_id="S/2", reference="")
    groups = exclusion.relatives([*plain[:1], *plain[2:], shape, prompt])
    assert sorted(map(sorted, groups)) == [[0, 3, 4], [1], [2]]
    families = [problem(f"f/{i}", domain=str(i % 2)) for i in range(4)]
    assert sorted(map(sorted, exclusion.relatives(families))) == [[0, 2], [1, 3]]
    named = [problem("HumanEval/1", reference="", prompt="a"), problem("Python/1", reference="", prompt="b")]
    assert exclusion.relatives(named) == [[0, 1]]


def test_small_things_that_coincide_make_neither_duplicates_nor_relatives() -> None:
    honest = [trajectory(f"other/{i}", prompt=f"Task {i}.") for i in range(3)]  # all solved by `y = 2`
    assert exclusion.decontaminate(honest, [problem()])[0] == honest
    for tokens, groups in ((10, [[0], [1]]), (11, [[0, 1]])):  # one shingle of a prompt, and two
        pair = [problem(f"T/{i}", prompt=words("ask", tokens), reference="") for i in range(2)]
        assert sorted(exclusion.relatives(pair)) == groups
    for sign, shingles, related in (("", 15, False), ("-", 16, True)):
        codes = [chain("x", 2) + f"    return {sign}x + {end}\n" for end in ("1", "x")]  # two trees, one beginning
        assert [len(exclusion.code_shingles(c)) for c in codes] == [shingles] * 2
        pair = [problem(f"T/{i}", prompt="", reference=codes[i]) for i in range(2)]
        assert (len(exclusion.relatives(pair)) == 1) is related
    for kept, related in ((20, True), (19, False)):  # 11 and 10 of 22 shingles
        texts = [words("ask", 31), f"{words('ask', kept)} {words('own', 60)}"]
        pair = [problem(f"T/{i}", prompt=texts[i], reference="") for i in range(2)]
        assert (len(exclusion.relatives(pair)) == 1) is related


def test_folds_hold_every_task_once_and_no_relatives_apart() -> None:
    tasks = [problem(f"f/{i}", domain=str(i // 2)) for i in range(12)]
    parts = splits.deal(tasks, k=3, seed=1, by="domain")
    assert sorted(t for part in parts for t in part) == sorted(p.task_id for p in tasks)
    assert [len(part) for part in parts] == [4, 4, 4]
    family = {p.task_id: p.domain for p in tasks}
    assert sum(len({family[t] for t in part}) for part in parts) == 6
    assert parts != splits.deal(tasks, k=3, seed=2, by="domain")
    assert parts == splits.deal(tasks, k=3, seed=1, by="domain")


# --------------------------------------------------------------------------- enforced where a corpus is written


def test_an_import_of_a_held_out_task_is_refused_with_its_file_before_a_corpus_is_written(tmp_path: Path) -> None:
    folder = store.RunDir(tmp_path / "run")
    store.write_jsonl(folder / "problems.jsonl", [problem()])
    good, bad = trajectory(), trajectory("T/1", trajectory_id="bad")
    files = [str(tmp_path / name) for name in ("good.jsonl", "bad.jsonl")]
    store.write_jsonl(Path(files[0]), [good])
    store.write_jsonl(Path(files[1]), [replace(good, trajectory_id="other"), bad])

    def none() -> object:
        raise AssertionError("there is no task to work on")

    context = Context(
        seed=0, model=lambda: ModelRef(name="m", path="", digest="", source="local"), device="cpu", dtype="float32",
        engine=none, sandbox=none, cache=tmp_path,  # type: ignore[arg-type]
    )  # fmt: skip
    settings = collect.Config(
        tasks=0, chains=1, max_attempts=1, temperature=0.0, max_new_tokens=1, imports=tuple(files)
    )
    with pytest.raises(ContaminationError, match=r"bad\.jsonl:2: field 'task_id' 'T/1'"):
        collect.run(folder, settings, context)
    assert not (folder / "trajectories.jsonl").exists()
    assert collect.run(folder, replace(settings, imports=tuple(files[:1])), context) == [good]


# --------------------------------------------------------------------------- where the leakage check suspects


@pytest.mark.parametrize(
    ("prompt", "solution", "suspicious"),
    [(0.5, 0.0, True), (0.499, 0.0, False), (0.0, 0.6, True), (0.0, 0.599, False), (0.499, 0.599, False)],
)
def test_shares_suspect_from_half_a_prompt_and_three_fifths_of_a_solution_on(
    prompt: float, solution: float, suspicious: bool
) -> None:
    assert bool(leakage._why(False, False, prompt, solution, shown=False, same_domain=False)) is suspicious
    assert (leakage.GRAM, leakage.TREE_SIZE, leakage._COMMON) == (8, 24, 0.05)


def rows(*suspicious: bool, similarity: tuple[float, ...] = ()) -> list[leakage.Row]:
    (row,) = leakage.examine([problem()], [], {})
    near = similarity or (0.0,) * len(suspicious)
    return [replace(row, task_id=f"T/{i}", suspicious=s, similarity=near[i]) for i, s in enumerate(suspicious)]


def test_the_effect_without_is_that_of_the_tasks_that_are_left() -> None:
    found = leakage.assess(rows(True, False, False, True), 7, treated=[5, 2, 1, 4], base=[0, 1, 1, 0], n=5)
    assert (found["effect"], found["effect_without"]) == (50.0, 10.0)
    assert (found["tasks"], found["tasks_without"], found["items"]) == (4, 2, 7)
    assert (found["status"], found["suspicious"]) == ("suspicious", ["T/0", "T/3"])
    clean = leakage.assess(rows(False, False), 7, treated=[5, 2], base=[0, 1], n=5)
    assert (clean["status"], clean["effect_without"]) == ("clean", clean["effect"])
    nothing = leakage.assess(rows(True, True), 7, treated=[5, 2], base=[0, 1], n=5)
    assert leakage.finding(nothing) == leakage.Finding("suspicious", None)


def test_similarity_is_held_against_gain_and_not_against_the_base() -> None:
    similarity = tuple(i / 10 for i in range(10))
    base = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    same = leakage.assess(rows(*[False] * 10, similarity=similarity), 1, treated=base[::-1], base=base, n=5)
    assert same["similarity_gain"]["rho"] < -0.9 and same["similarity_gain"]["p"] > 0.9
    up = leakage.assess(rows(*[False] * 10, similarity=similarity), 1, treated=base, base=base[::-1], n=5)
    assert up["similarity_gain"]["rho"] > 0.9 and up["similarity_gain"]["p"] < 0.01
