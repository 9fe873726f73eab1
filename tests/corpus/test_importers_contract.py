"""One contract for every file of corpus/importers: what it claims, what it reads, and that it never breaks.

A format that is added is a file there and samples in `samples.py`; nothing here changes.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rune import plugins
from rune.corpus import reading
from rune.corpus.session import Session
from rune.errors import DataError
from rune.types import Outcome, Trajectory
from tests.corpus.samples import SAMPLES, Sample

FORMATS = reading.importers()
EVERY = [(name, number) for name, samples in SAMPLES.items() for number in range(len(samples))]
FILE = "some-file"


def save(path: Path, sample: Sample) -> Path:
    values = sample.record if sample.lines else [sample.record]
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def one(path: Path) -> Trajectory:
    (trajectory,) = reading.read(path)
    return trajectory


def same(a: Trajectory, b: Trajectory) -> bool:
    """Equal but for the file's name."""
    fields = ("task_id", "prompt", "attempts", "solution", "benchmark")
    return all(getattr(a, field) == getattr(b, field) for field in fields)


def test_every_file_of_the_folder_has_samples_and_a_name_of_its_own() -> None:
    assert set(plugins.available("corpus.importers")) == set(SAMPLES)
    assert all(len(samples) >= 3 for samples in SAMPLES.values())
    names = [module.NAME for module in FORMATS.values()]
    assert len(set(names)) == len(names) and all(names)


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_a_sample_is_claimed_by_its_format_alone(name: str, number: int) -> None:
    record = SAMPLES[name][number].record
    assert [other for other, module in FORMATS.items() if module.claims(record)] == [name]


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_attempts_outcomes_task_and_prompt_are_what_a_reader_finds(name: str, number: int, tmp_path: Path) -> None:
    sample = SAMPLES[name][number]
    found = one(save(tmp_path / f"{FILE}.jsonl", sample))
    assert tuple(a.error_kind for a in found.attempts) == sample.kinds
    assert [a.outcome is Outcome.PASSED for a in found.attempts] == [not kind for kind in sample.kinds]
    assert (sample.solution in found.solution) if sample.solution else found.solution == ""
    assert found.task_id == (FILE if sample.task == "FILE" else sample.task)
    assert found.prompt == sample.prompt
    assert all(a.error for a in found.attempts if a.outcome is not Outcome.PASSED)


@pytest.mark.parametrize(("name", "number"), EVERY)
def test_how_a_file_is_stored_changes_nothing(name: str, number: int, tmp_path: Path) -> None:
    sample = SAMPLES[name][number]
    plain = one(save(tmp_path / f"{FILE}.jsonl", sample))
    text = (tmp_path / f"{FILE}.jsonl").read_text()
    stored = {
        "crlf": text.replace("\n", "\r\n").encode(),
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "utf16": text.encode("utf-16"),
        "no end of line": text.rstrip("\n").encode(),
        "empty lines": b"\n\n" + text.replace("\n", "\n\n").encode(),
        "list": json.dumps(sample.record if sample.lines else [sample.record], indent=1).encode(),
        "gzip": gzip.compress(text.encode()),
        "gzip without its name": gzip.compress(text.encode()),
    }
    if not sample.lines:
        stored["indented"] = json.dumps(sample.record, indent=2).encode()
    for how, data in stored.items():
        folder = tmp_path / how / FILE  # a folder of requests is one session, named by it
        folder.mkdir(parents=True)
        path = folder / (f"{FILE}.json.gz" if how == "gzip" else f"{FILE}.json")
        path.write_bytes(data)
        assert same(one(path), plain), how
        assert same(one(folder), plain), f"{how}, as a folder"


def text_variants(record: Any) -> Iterator[Any]:
    """The record with each of its lists stored as JSON text."""
    for field in ("messages", "trajectory", "history"):
        if isinstance(record, dict) and isinstance(record.get(field), list):
            yield {**record, field: json.dumps(record[field])}


def test_lists_stored_as_json_text_are_read_alike(tmp_path: Path) -> None:
    compared = 0
    for name in ("mini_swe_agent", "swe_smith", "swe_gym", "openhands_completions", "nebius", "chat"):
        for sample in SAMPLES[name]:
            for changed in text_variants(sample.record):
                plain = one(save(tmp_path / f"{FILE}.jsonl", sample))
                assert same(one(save(tmp_path / f"{FILE}.jsonl", sample._replace(record=changed))), plain)
                compared += 1
    assert compared >= 15


VERDICTS = {
    "swe_bench": ("resolved",),
    "swe_agent": ("resolved", "info.resolved"),
    "mini_swe_agent": ("resolved", "info.resolved"),
    "swe_smith": ("resolved",),
    "swe_gym": ("resolved", "test_result.report.resolved"),
    "openhands": ("resolved", "test_result.report.resolved", "report.resolved"),
    "openhands_completions": ("resolved",),
    "nebius": ("target", "resolved"),
    "chat": ("resolved",),
}
ODD = [-1, 2, 1.0, 0.5, "True", "true", "False", "1", "yes", "", [], [True], {}, {"resolved": True}]


def with_verdict(name: str, field: str, value: Any) -> dict[str, Any]:
    """The format's first sample that is an object, with this verdict and no other."""
    record = copy.deepcopy(next(s.record for s in SAMPLES[name] if isinstance(s.record, dict)))
    for key in ("resolved", "target"):
        record.pop(key, None)
    *path, last = field.split(".")
    place = record
    for part in path:
        place = place.setdefault(part, {})
    if isinstance(record.get("test_result"), dict) and not field.startswith("test_result"):
        record["test_result"].pop("report", None)
    place[last] = value
    return record


@pytest.mark.parametrize(("name", "field"), [(n, f) for n, fields in VERDICTS.items() for f in fields])
def test_only_true_and_1_prove_that_a_task_was_solved(name: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / f"{FILE}.jsonl"
    for value in (True, 1):
        assert one(save(path, Sample(with_verdict(name, field, value), ()))).solution, value
    for value in (False, 0):
        assert not one(save(path, Sample(with_verdict(name, field, value), ()))).solution, value
    for value in ODD:
        with pytest.raises(DataError, match=rf"{FILE}\.jsonl:1: field '{field}'"):
            one(save(path, Sample(with_verdict(name, field, value), ())))


def test_two_verdicts_that_disagree_are_refused(tmp_path: Path) -> None:
    record = with_verdict("swe_agent", "resolved", True)
    record["info"]["resolved"] = False
    with pytest.raises(DataError, match=r"'resolved' and 'info\.resolved' disagree"):
        one(save(tmp_path / "x.traj", Sample(record, ())))


@pytest.mark.parametrize("name", list(SAMPLES))
def test_a_format_can_be_told_on_any_value_without_an_exception(name: str) -> None:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    fields = sorted(
        {key for samples in SAMPLES.values() for s in samples if isinstance(s.record, dict) for key in s.record}
    )
    keys = st.sampled_from([*fields, "role", "type", "content", "kind", "action", "sessionId"]) | st.text()
    values = st.recursive(
        leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(keys, v, max_size=5), max_leaves=15
    )

    @given(values)
    @settings(max_examples=100, deadline=None, derandomize=True)
    def check(value: Any) -> None:
        module = FORMATS[name]
        claimed = module.claims(value)
        assert isinstance(claimed, bool)
        if claimed:
            try:
                found = module.read(value, "f.json:1", "f")
            except DataError as error:
                assert str(error).startswith("f.json:1"), error
                assert "\n" not in str(error)
            else:
                assert all(isinstance(session, (Session, Trajectory)) for session in found)

    check()


def test_an_unknown_format_is_one_line_that_names_those_that_are_known(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in ('{"a": 1}', "{}", "[]", "[[1]]", '"text"', "3", "null", '{"task_id": "t/0", "completion": "x"}'):
        path.write_text(content)
        with pytest.raises(DataError) as error:
            reading.read(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
        assert all(module.NAME in str(error.value) for module in FORMATS.values())
