"""The report says what the run found, and nothing else: complete, bare, tampered and demo runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rune.analysis import evidence, gate
from rune.benchmarks.scorers import execution_with_and_without
from rune.cli.main import main
from rune.errors import DataError
from rune.reporting import data as _report_data
from rune.reporting import figures, page, tables
from rune.runs import store
from rune.runs.store import RunDir
from rune.stages import report
from rune.types import Decision, Outcome, Sample, Scorer, Verdict
from tests.report import runs

BEGIN, END = "<!-- rune:result:begin -->", "<!-- rune:result:end -->"

SETTINGS = gate.Config(resamples=500, simulations=100)
VOID = {"meta", "link", "br", "path", "use", "image", "circle", "rect", "line"}


class Balance(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def made(tmp_path: Path, **changes: object) -> RunDir:
    folder = runs.build(tmp_path, **changes)  # type: ignore[arg-type]
    runs.decide(folder, SETTINGS)
    report.run(folder, report.Config())
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return made(tmp_path_factory.mktemp("full"))


def test_the_page_is_whole_and_needs_no_network(full: RunDir) -> None:
    page = (full / "report.html").read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(http" not in page


def test_the_answer_and_the_named_tables_carry_the_decisions_numbers(full: RunDir) -> None:
    decision = store.read_json(full / "decision.json")
    for name in ("report.html", "report.md"):
        text = (full / name).read_text()
        assert decision["answer"] in text
        assert "Table 1. pass@1 of the four conditions" in text
        assert "Table 2. Adapter diagnostics" in text
        for arm in decision["arms"]:
            assert f"{100 * arm['pass_at_1']:.1f} %" in text
            assert f"{arm['num_passed']} / {arm['num_samples']}" in text


def test_markdown_and_html_say_the_same_of_table_1(full: RunDir) -> None:
    cells = re.findall(r"^\| (vanilla|rag|lora|hypernet) \|(.+)\|$", (full / "report.md").read_text(), re.MULTILINE)
    assert len(cells) >= 4
    page = Balance()
    page.feed((full / "report.html").read_text())
    text = " ".join(page.text)
    for _, row in cells[:4]:
        for cell in row.split("|"):
            assert cell.strip() in text


def test_what_models_wrote_is_escaped(full: RunDir) -> None:
    page = (full / "report.html").read_text()
    assert "&lt;b&gt;expected&lt;/b&gt;" in page
    assert "<b>expected</b>" not in page


def test_every_task_shows_its_programs_with_verdicts(full: RunDir) -> None:
    page = (full / "report.html").read_text()
    for task in store.read_json(full / "decision.json")["details"]["tasks"]:
        assert f"<b>{task}</b>" in page
    assert "undefined_thing" in page
    assert "no answer after 3 s of CPU time" in page


def test_a_run_without_diagnostics_says_not_measured(tmp_path: Path) -> None:
    folder = made(tmp_path, extras=False, arms=("vanilla", "hypernet"))
    page = (folder / "report.html").read_text()
    for words in (
        "‖ΔW‖ per module: not measured",
        "Cosine between adapters: not measured",
        "Training curves: not measured",
    ):
        assert words in page
    assert "no wrong-trajectory control" in page


def test_one_draw_a_task_has_no_pass_at_k_curve(tmp_path: Path) -> None:
    folder = runs.build(tmp_path, n=1, arms=("vanilla", "hypernet"), extras=False)
    runs.decide(folder, gate.Config(n=1, resamples=500, simulations=100))
    report.run(folder, report.Config())
    assert "pass@k beyond k = 1 is not measured" in (folder / "report.html").read_text()


def test_a_demo_claims_nothing(tmp_path: Path, full: RunDir) -> None:
    assert "too small to claim anything" not in (full / "report.html").read_text()
    small = made(tmp_path, held_out=10, arms=("vanilla", "hypernet"), extras=False)
    for name in ("report.html", "report.md", "assessment.md"):
        assert "Demo: too small to claim anything" in (small / name).read_text()


def test_a_run_of_full_size_may_be_told_to_claim_nothing(full: RunDir, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    report.write_readme(full, report.Config(claim=False), readme)
    assert "> Demo: too small to claim anything" in readme.read_text()


def test_a_tampered_run_warns_on_its_own_page(tmp_path: Path) -> None:
    folder = made(tmp_path, extras=False, arms=("vanilla", "hypernet"))
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    report.run(folder, report.Config())
    assert "samples.jsonl: lines reordered, from line 1" in (folder / "report.html").read_text()


def test_the_same_run_gives_the_same_bytes(full: RunDir) -> None:
    before = (full / "report.html").read_bytes()
    report.run(full, report.Config())
    assert (full / "report.html").read_bytes() == before


def test_a_report_without_a_decision_says_what_to_type(tmp_path: Path) -> None:
    folder = runs.build(tmp_path, extras=False)
    with pytest.raises(DataError, match=r"no decision.json; run `rune gate"):
        report.run(folder, report.Config())


def test_the_readme_gets_its_table_between_the_markers_and_nowhere_else(full: RunDir, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Rune\n\n{BEGIN}\nold\n{END}\n\nrest\n")
    for _ in range(2):
        report.write_readme(full, report.Config(), readme)
    text = readme.read_text()
    assert text.startswith(f"# Rune\n\n{BEGIN}\n**Gate ")
    assert text.endswith(f"{END}\n\nrest\n")
    assert "old" not in text
    assert "| hypernet |" in text
    assert "`invented-model`" in text
    linked = re.findall(r"\]\((.+?)\)", text)
    assert [(tmp_path / target).name for target in linked] == ["report.html", "assessment.md"]
    assert all((tmp_path / target).resolve().exists() for target in linked)
    readme.write_text("# Rune\n")
    with pytest.raises(DataError, match="needs the lines"):
        report.write_readme(full, report.Config(), readme)


def test_the_assessment_marks_what_a_person_must_complete(full: RunDir) -> None:
    text = (full / "assessment.md").read_text()
    assert text.count("**TO COMPLETE**") >= 5
    assert "hypernet − vanilla" in text


def test_the_assessment_says_what_an_arm_is_and_of_an_unknown_one_only_its_name(tmp_path: Path) -> None:
    arms = ("vanilla", "hypernet", "hypernet_mean", "my_own")
    text = (made(tmp_path, arms=arms) / "assessment.md").read_text()
    assert "- hypernet_mean (the mean of all generated LoRAs, the same for every task) against vanilla: " in text
    assert "- my_own against vanilla: " in text


def test_figures_use_the_pages_colours_and_few_elements() -> None:
    n, tasks = 20, [f"T/{i}" for i in range(164)]
    svg = figures.strip(tasks, {a: [i % (n + 1) for i in range(164)] for a in figures.ARMS}, n)
    assert "#0a0b" not in svg
    assert "var(--ink)" in svg or "var(--muted)" in svg
    assert svg.count("<") < 400
    matrix = [[float(i == j) for j in range(164)] for i in range(164)]
    assert figures.cosines(matrix, matrix).count("<") < 400


def test_curves_are_thinned_by_means() -> None:
    x, y = figures.thin(list(range(1000)), [float(i) for i in range(1000)], most=100)
    assert len(x) == len(y) == 100
    assert y[0] == pytest.approx(4.5)


def test_a_loss_term_that_was_not_computed_or_is_no_loss_is_not_drawn() -> None:
    steps = [float(i) for i in range(50)]
    loss = [1.0 / (1 + i) for i in range(50)]
    terms = {"loss": loss, "cross_entropy": list(loss), "kl_base": [0.3 * (i % 8 == 0) for i in range(50)]}
    svg = figures.losses("x", steps, {**terms, "contrast_lead": [5.0] * 50, "empty": [0.0] * 50})
    assert ">kl base<" in svg
    for absent in ("cross entropy", "contrast lead", "empty", "1e-"):
        assert f">{absent}" not in svg


def test_a_difference_is_called_above_or_below_zero_only_with_its_correction(full: RunDir) -> None:
    decision = store.decode(Decision, store.read_json(full / "decision.json"), where="decision.json")
    wrong = next(c for c in decision.contrasts if c.role == "secondary")
    lower = replace(wrong, interval=replace(wrong.interval, low=-9.0, high=-1.0), p_adjusted=0.263)
    assert evidence.told(lower) == "below zero by its interval, p = 0.263 after Holm"
    over = replace(wrong, interval=replace(wrong.interval, low=-1.0, high=1.0))
    assert evidence.told(over) == "not told apart from zero"


def test_the_page_says_who_decided_and_when_even_if_it_was_decided_twice(tmp_path: Path) -> None:
    folder = runs.build(tmp_path, extras=False, arms=("vanilla", "hypernet"))
    for _ in range(2):
        assert main(["gate", str(folder.path)]) in (0, 10)
    assert main(["report", str(folder.path)]) == 0
    entry = folder.manifest()["stages"]["gate"]
    page = (folder / "report.html").read_text()
    assert f"{entry['ended']} by rune {entry['by']['rune']}" in page
    assert f"source {entry['by']['source']}" in page
    assert f"before that {entry['earlier'][0]['ended']}" in page


@pytest.mark.parametrize("verb", ["gate", "report", "leakage", "compare"])
def test_a_finished_run_needs_no_torch(full: RunDir, verb: str, tmp_path: Path) -> None:
    # In a place of its own, for these verbs write into the run folder.
    path = tmp_path / full.path.name
    shutil.copytree(full.path, path)
    runs_named = [str(path)]
    if verb == "compare":
        runs_named.append(str(shutil.copytree(full.path, tmp_path / "other")))
    code = (
        f"import sys; from rune.cli.main import main; code = main({[verb, *runs_named]!r});"
        "heavy = {'torch', 'transformers', 'mlflow', 'peft'} & set(sys.modules); assert not heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = {"gate": (0, 10), "leakage": (0, 1)}.get(verb, (0,))
    assert done.returncode in expected, done.stderr
    assert "Traceback" not in done.stderr


def test_gate_exits_0_passed_10_failed_2_undecidable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passed = runs.build(tmp_path, name="good", lift={"hypernet": 0.4}, extras=False)
    assert main(["gate", str(passed.path)]) == 0
    assert capsys.readouterr().out == "Gate PASSED\n"
    failed = runs.build(tmp_path, name="bad", lift={"hypernet": -0.3}, extras=False)
    assert main(["gate", str(failed.path)]) == 10
    assert capsys.readouterr().out == "Gate FAILED — reassessing\n"
    (failed / "verdicts.jsonl").unlink()
    assert main(["gate", str(failed.path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "verdicts.jsonl is gone" in captured.err


def test_comparing_runs_shows_effects_and_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name, n in (("one", 5), ("two", 6)):
        folder = runs.build(tmp_path, name=name, n=n, extras=False)
        runs.decide(folder, SETTINGS)
        paths.append(str(folder.path))
    assert main(["compare", *paths, "-o", str(tmp_path / "out")]) == 0
    assert "all on the same tasks" in capsys.readouterr().out
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| sample.n | 5 | 6 |" in text
    assert "| gate.n | 5 | 6 |" in text
    assert "sample.temperature" not in text
    assert main(["compare", paths[0]]) == 2


@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs chromium and chromium-driver")
def test_the_page_holds_in_a_real_browser(full: RunDir) -> None:
    pytest.importorskip("selenium")
    from tests.report.browser import check

    out = Path(__file__).parents[2] / "artifacts"
    assert check(full / "report.html", out) == []


def test_the_pages_figures_are_drawn_from_the_runs_own_records(full: RunDir) -> None:
    """Cosines of the gated arm, raw and centred apart; passes as judged, curves as decided, losses as trained."""
    content = _report_data.gather(full, programs_per_arm=1, most_programs=100)
    found = page.figures(content)
    measured = store.read_json(full / "diagnostics.json")["arms"]["hypernet"]
    raw, centred = (measured[key]["matrix"] for key in ("cosine_raw", "cosine_centred"))
    assert raw != centred
    assert found["cosines"] == figures.cosines(raw, centred)
    verdicts = [v for _, v in store.read_lines(full / "verdicts.jsonl")]
    tasks = [task.task_id for task in content.tasks]

    def passed(arm: str, task: str) -> int:
        return sum(v["outcome"] == "passed" for v in verdicts if v["condition"] == arm and v["task_id"] == task)

    changes = [passed("hypernet", task) - passed("vanilla", task) for task in tasks]
    assert changes == sorted(changes, reverse=True) and len(set(changes)) > 1
    arms = [arm.condition for arm in content.decision.arms]
    by_task = {arm: [passed(arm, task) for task in tasks] for arm in content.decision.details["passes"]}
    assert set(by_task) == set(arms)
    assert found["strip"] == figures.strip(tasks, by_task, 5)
    assert found["curves"] == figures.curves({arm.condition: arm.pass_curve for arm in content.decision.arms})
    written = [line for _, line in store.read_lines(full / "checkpoints" / "metrics.jsonl")]
    for name, svg in found["losses"]:
        own = [line for line in written if line["phase"] == name]
        terms = [k for k in own[0] if k == "loss" or k in ("cross_entropy", "target_contrast", "kl_base")]
        columns = {k: [float(line[k]) for line in own] for k in terms}
        assert svg == figures.losses(name, [float(line["step"]) for line in own], columns)
    assert [name for name, _ in found["losses"]] == ["lora", "hypernet"]
    norms = {a: d["frobenius"] for a, d in store.read_json(full / "diagnostics.json")["arms"].items()}
    assert found["profile"] == figures.profile(norms)


def test_a_run_counted_by_upass_tells_what_is_due_to_programs_that_name_the_function(tmp_path: Path) -> None:
    """Expected: counted here by words of the records' programs; HumanEval's references stand in, some call `len`."""
    scorer = Scorer.EXECUTION_WITH_AND_WITHOUT
    prelude = execution_with_and_without.prelude("pass\n", before="UPDATED = ('builtins', 'len')\n")
    folder = made(
        tmp_path,
        edit_problems=lambda some: [replace(p, scorer=scorer, prelude=prelude, domain=p.task_id) for p in some],
        edit_verdicts=lambda some: [replace(v, scorer=scorer) for v in some],
    )
    passed = {
        (v.condition, v.task_id, v.draw)
        for v in store.read_jsonl(folder / "verdicts.jsonl", Verdict)
        if v.outcome is Outcome.PASSED
    }
    wanted: dict[str, list[int]] = {}
    for s in store.read_jsonl(folder / "samples.jsonl", Sample):
        counts = wanted.setdefault(s.condition, [0, 0, 0])
        code = re.sub(r'"""(?s:.*?)"""|#.*', "", s.program)
        hit = (s.condition, s.task_id, s.draw) in passed
        counts[0] += 1
        counts[1] += hit
        counts[2] += hit and re.search(r"\blen\(", code) is not None
    table = tables.named(_report_data.gather(folder, programs_per_arm=1, most_programs=10))
    assert table is not None and table.header[1] == "UPass@1"
    found = {row[0]: row[1:] for row in table.rows}
    assert len({c[2] for c in wanted.values()}) > 1 and all(0 < c[2] < c[1] for c in wanted.values())
    for arm, (draws, counted, named) in wanted.items():
        assert found[arm] == (
            f"{100 * counted / draws:.1f} %",
            f"{100 * named / draws:.1f} %",
            f"{counted - named} of {counted}",
        )
    for page_of_it in ("report.html", "report.md"):
        assert table.title in (folder / page_of_it).read_text(encoding="utf-8")


def test_no_other_run_has_the_table_of_named_functions(full: RunDir) -> None:
    assert tables.named(_report_data.gather(full, programs_per_arm=1, most_programs=10)) is None
    assert "Programs that name" not in (full / "report.html").read_text(encoding="utf-8")
