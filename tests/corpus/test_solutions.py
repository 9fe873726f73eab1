"""What becomes the solution, what the task is, and which patch is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rune.corpus import patches, reading, statement
from rune.errors import DataError
from rune.types import Outcome, Trajectory
from tests.corpus.samples import INSTANCE, ISSUE, PATCH, UPLOADED, call, replaced, tool, user

REPLACE = ("str_replace_editor", replaced(), "The file has been edited.")
TRIAL = {"command": "create", "path": "/r/edge_cases.py", "file_text": "import calc\nprint(calc.half(3))"}
Turn = tuple[str, dict[str, Any], str]


def sh(command: str, answer: str = "") -> Turn:
    return "execute_bash", {"command": command}, answer


def create(path: str, text: str = "x = 1") -> Turn:
    return "str_replace_editor", {"command": "create", "path": path, "file_text": text}, "File created"


def session(*turns: Turn, **fields: Any) -> dict[str, Any]:
    messages = [user(UPLOADED)]
    for number, (name, given, answer) in enumerate(turns):
        messages += [call(f"c{number}", name, **given), tool(f"c{number}", answer)]
    return {"instance_id": "demo__calc-1", "messages": messages, **fields}


def read(tmp_path: Path, *records: Any) -> Trajectory:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (found,) = reading.read(path)
    return found


# --------------------------------------------------------------------------- without a patch: what stands at the end

STANDING: dict[str, tuple[list[Turn], list[str], list[str]]] = {
    # name: (turns, what the solution holds, what it does not)
    "one edit": ([REPLACE, sh("python t.py", "ok")], ["x / 2"], []),
    "a scratch file removed later": (
        [REPLACE, ("str_replace_editor", TRIAL, "File created"), sh("python /r/edge_cases.py && rm /r/edge_cases.py")],
        ["x / 2"],
        ["edge_cases"],
    ),
    "a scratch file that was left": (
        [REPLACE, ("str_replace_editor", TRIAL, "File created"), sh("cd /r && python edge_cases.py", "1.5")],
        ["x / 2"],
        ["edge_cases"],
    ),
    "a scratch file made first": ([create("/r/repro.py"), sh("python repro.py"), REPLACE], ["x / 2"], ["repro"]),
    "a scratch file by a here-document": (
        [REPLACE, sh("cat > /tmp/check.py <<'EOF'\nimport calc\nEOF\npython /tmp/check.py")],
        ["x / 2"],
        ["check.py"],
    ),
    "a scratch file removed with its folder": (
        [REPLACE, create("/r/try/a.py"), sh("rm -rf /r/try")],
        ["x / 2"],
        ["a.py"],
    ),
    "scratch files removed by git clean": ([REPLACE, create("/r/a.py"), sh("git clean -fd")], ["x / 2"], ["a.py"]),
    "a test of its own": (
        [REPLACE, create("/r/tests/test_half.py"), sh("pytest tests/test_half.py")],
        ["x / 2"],
        ["test_half"],
    ),
    "two files": (
        [REPLACE, sh("sed -i 's/half/halve/' /r/api.py")],
        ["x / 2", "sed -i 's/half/halve/' /r/api.py"],
        [],
    ),
    "a new module beside an edit": ([create("/r/halves.py", "def half(x): ..."), REPLACE], ["halves.py", "x / 2"], []),
    "a file written anew": (
        [sh("ls", "calc.py t.py"), sh("sed -i s/2/3/ calc.py"), sh("cat > calc.py <<'EOF'\nreturn x / 2\nEOF")],
        ["return x / 2"],
        ["sed"],
    ),
    "an edit that was refused": (
        [
            (
                "str_replace_editor",
                replaced(new="x / 9"),
                "ERROR:\nNo replacement was performed, old_str did not appear",
            ),
            REPLACE,
        ],
        ["x / 2"],
        ["x / 9"],
    ),
    "an edit taken back": (
        [REPLACE, sh("sed -i s/a/b/ /r/other.py"), sh("git checkout -- other.py")],
        ["x / 2"],
        ["other.py"],
    ),
    "an edit undone": (
        [
            REPLACE,
            ("str_replace_editor", replaced("a", "b") | {"path": "/r/b.py"}, "ok"),
            ("str_replace_editor", {"command": "undo_edit", "path": "/r/b.py"}, "ok"),
        ],
        ["x / 2"],
        ["b.py"],
    ),
    "everything reset, then done": ([sh("sed -i s/a/b/ calc.py"), sh("git reset --hard"), REPLACE], ["x / 2"], ["sed"]),
    "a repository in a temporary folder": ([sh("cd /tmp/r && sed -i s/3/2/ /tmp/r/calc.py")], ["sed -i"], []),
    "a program from nothing": (
        [create("/r/fizz.py", "print('fizz')"), sh("python /r/fizz.py", "fizz")],
        ["fizz.py"],
        [],
    ),
    "a draft that became the file": (
        [create("/r/new.py", "return x / 2"), sh("mv /r/new.py /r/calc.py")],
        ["return x / 2"],
        [],
    ),
}


@pytest.mark.parametrize("name", list(STANDING))
def test_without_a_patch_the_solution_is_what_stands_at_the_end(name: str, tmp_path: Path) -> None:
    turns, holds, lacks = STANDING[name]
    found = read(tmp_path, session(*turns, resolved=True))
    assert all(part in found.solution for part in holds), found.solution
    assert not any(part in found.solution for part in lacks), found.solution
    assert found.attempts[-1].code == found.solution
    assert found.attempts[-1].outcome is Outcome.PASSED
    assert all(a.outcome is Outcome.FAILED for a in found.attempts[:-1])


@pytest.mark.parametrize(
    "turns",
    [
        [create("/r/a.py"), sh("python a.py; rm a.py")],
        [REPLACE, sh("git checkout .")],
        [("str_replace_editor", replaced(), "ERROR:\nNo replacement was performed")],
    ],
)
def test_solved_without_anything_that_stands_has_nothing_to_teach(turns: list[Turn], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no patch and no edit of the repository that stands"):
        read(tmp_path, session(*turns, resolved=True))
    assert not read(tmp_path, session(*turns)).solution


def test_sessions_with_nothing_to_learn_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (session(sh("ls")), session(REPLACE), session())))
    found = reading.read_all([path])
    assert len(found.trajectories) == 1
    assert [place.rpartition(":")[2] for place in found.places] == ["2"]
    assert any("left out: 2 sessions" in line and "a.jsonl:1" in line for line in found.words())


# --------------------------------------------------------------------------- patches

WHOLE = [
    PATCH,
    PATCH.rstrip("\n"),
    PATCH.replace("@@ -1,2 +1,2 @@", "@@ -1,2 +1,2 @@ def half(x):"),
    "--- a/calc.py\n+++ b/calc.py\n@@ -1 +1 @@\n-a\n+b",
    "diff --git a/a.py b/b.py\nsimilarity index 100%\nrename from a.py\nrename to b.py",
    "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755",
    "diff --git a/n.py b/n.py\nnew file mode 100644\n--- /dev/null\n+++ b/n.py\n@@ -0,0 +1 @@\n+a\n\\ No newline",
    "diff --git a/e b/e\nnew file mode 100644\nindex 0000000..e69de29",
    "diff --git a/x.png b/x.png\nindex 1..2 100644\nBinary files a/x.png and b/x.png differ",
    # An empty line was stripped from its end.
    "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,3 @@\n-a\n+b\n c\n",
    PATCH + "diff --git a/api.py b/api.py\n--- a/api.py\n+++ b/api.py\n@@ -1,3 +1,2 @@\n a\n\n-b\n",
]
BROKEN = {
    "": "no file is named",
    "diff": "no file is named",
    "I fixed calc.py.": "no file is named",
    "diff --git a/calc.py b/calc.py": "nothing is changed",
    "diff --git a/calc.py b/calc.py\n+    return x / 2": "nothing is changed",
    PATCH.replace("@@ -1,2 +1,2 @@\n", ""): "nothing is changed",
    PATCH[:-20]: "shorter than its head says",
    PATCH.replace("+1,2 @@", "+1,9 @@"): "shorter than its head says",
    PATCH.replace("+    return x / 2\n", ""): "shorter than its head says",
    PATCH.replace("-1,2", "-1,1"): "longer than its head says",
    PATCH.replace("a/calc.py", "a/../calc.py").replace("b/calc.py", "b/../calc.py"): "outside of the repository",
    "--- /etc/passwd\n+++ /etc/passwd\n@@ -1 +1 @@\n-a\n+b": "outside of the repository",
    "diff --git a/a.py b/a.py\nindex 1..2\n" + PATCH: "nothing is changed in 'a.py'",
}


@pytest.mark.parametrize("patch", WHOLE)
def test_a_whole_patch_is_taken(patch: str, tmp_path: Path) -> None:
    assert patches.fault(patches.normal(patch)) == ""
    assert read(tmp_path, INSTANCE | {"patch": patch}).solution == patches.normal(patch)


@pytest.mark.parametrize("patch", [p for p in BROKEN if p])
def test_a_patch_that_is_none_never_becomes_a_solution(patch: str, tmp_path: Path) -> None:
    for record in (INSTANCE | {"patch": patch}, session(REPLACE, patch=patch, resolved=True)):
        with pytest.raises(DataError, match=f"a.jsonl:1: field 'patch' is no complete patch: .*{BROKEN[patch]}"):
            read(tmp_path, record)
    assert read(tmp_path, session(REPLACE, patch=patch)).attempts[-1].error_kind == "Unverified"


def test_every_gold_patch_of_swe_bench_lite_is_whole_and_a_torn_one_is_not(data_dir: Path) -> None:
    lines = (data_dir / "swebench_lite" / "swebench_lite.jsonl").read_text().splitlines()
    for line in lines:
        record = json.loads(line)
        patch = patches.normal(record["patch"])
        assert patches.fault(patch) == "", record["instance_id"]
        assert patches.elsewhere(record["repo"], record["instance_id"]) == ""
        last = patch.rindex("\n@@") + 1
        cut = patch[: patch.index("\n", patch.index("\n", last) + 1)]  # its last hunk has but one line
        assert patches.fault(cut), record["instance_id"]


FOREIGN = PATCH.replace("calc.py", "django/forms/fields.py")


@pytest.mark.parametrize("resolved", [True, False, None])
def test_a_patch_of_another_session_is_refused(resolved: bool | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"field 'patch' does not fit the session: it changes django/forms/fields.py"):
        read(tmp_path, session(REPLACE, patch=FOREIGN, resolved=resolved))


@pytest.mark.parametrize(
    "turns",
    [
        [sh("sed -i s/a/b/ django/forms/fields.py")],
        [sh("cd /testbed/django && sed -i s/a/b/ forms/fields.py"), create("/tmp/x.py")],
        [sh("grep -rl a . | xargs sed -i s/a/b/")],  # which files, only the machine knew
        [create("/r/repro.py"), sh("python repro.py")],
        [REPLACE, sh("git checkout calc.py"), sh("git apply fix.diff")],
        [],
    ],
)
def test_a_patch_that_may_be_the_sessions_is_kept(turns: list[Turn], tmp_path: Path) -> None:
    assert read(tmp_path, session(*turns, patch=FOREIGN, resolved=True)).solution == patches.normal(FOREIGN)


@pytest.mark.parametrize("record", [INSTANCE | {"patch": PATCH}, session(REPLACE, patch=PATCH, resolved=True)])
def test_a_repository_that_is_not_the_instances_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="field 'repo' is 'django/django', but the instance is 'demo__calc-1'"):
        read(tmp_path, record | {"repo": "django/django"})


SHA, OTHER = "a0df2cbb10419037d11d04352b3175405ab52941", "b1df2cbb10419037d11d04352b3175405ab52941"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"repo": "demo/calc", "instance": {"repo": "demo/other"}}, "'repo' is 'demo/calc', but 'instance.repo'"),
        ({"repo": "demo/calc", "instance": {"repo": "else/calc"}}, "'repo' is 'demo/calc', but 'instance.repo'"),
        ({"base_commit": SHA, "instance": {"base_commit": OTHER}}, f"'base_commit' is '{SHA}', but"),
        ({"base_commit": SHA[:9], "info": {"base_commit": OTHER}}, "'info.base_commit' is"),
    ],
)
def test_a_patch_of_another_repository_or_commit_than_its_instance_is_refused(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    record = session(REPLACE, patch=PATCH, resolved=True)
    if "info" in fields:  # then it is mini-swe-agent's
        record["info"] = {}
    with pytest.raises(DataError, match=f"a.jsonl:1: field .*{re.escape(words)}.*one instance only"):
        read(tmp_path, record | fields)
    same = {"repo": "demo/calc", "base_commit": SHA, "instance": {"repo": "Demo__calc", "base_commit": SHA[:12]}}
    assert read(tmp_path, session(REPLACE, patch=PATCH, resolved=True) | same).solution


ORACLE = (
    "You are given code.\n<code>\n[start of calc.py]\n1 def half(x):\n2     return x // 2\n[end of calc.py]\n</code>"
)


def test_a_patch_must_change_lines_that_the_instances_files_have(tmp_path: Path) -> None:
    texts = {
        "numbered": ORACLE,
        "plain": ORACLE.replace("1 def", "def").replace("2     return", "    return"),
        "another file": ORACLE.replace("calc.py", "other.py"),
    }
    for text in texts.values():
        assert read(tmp_path, INSTANCE | {"patch": PATCH, "text": text}).solution == patches.normal(PATCH)
    for text in (
        ORACLE.replace("x // 2", "x >> 1"),
        ORACLE.replace("1 def half(x):\n", "1 def half(x):\n2     x = int(x)\n"),  # both there, not together
    ):
        with pytest.raises(
            DataError, match=r"field 'patch' does not fit its instance: it changes lines that 'calc.py'"
        ):
            read(tmp_path, INSTANCE | {"patch": PATCH, "text": text})


LOOKS: dict[str, Turn] = {
    "cat": sh("cd /r && cat calc.py", "import math\n\n\ndef double(x):\n    return 2 * x\n"),
    "cat -n": sh(
        "cat -n /r/calc.py", "     1\timport math\n     2\t\n     3\tdef double(x):\n     4\t    return 2 * x\n"
    ),
    "view": (
        "str_replace_editor",
        {"command": "view", "path": "/r/calc.py"},
        "Here's the result of running `cat -n` on /r/calc.py:\n     1\timport math\n     2\tdouble = 2\n     3\t\n",
    ),
    "Read": ("Read", {"file_path": "/r/calc.py"}, "     1→import math\n     2→double = 2\n     3→\n"),
}


@pytest.mark.parametrize("look", list(LOOKS))
def test_a_patch_that_shares_no_line_with_what_the_session_read_is_refused(look: str, tmp_path: Path) -> None:
    name, given, answer = LOOKS[look]
    mine = (sh("sed -i s/a/b/ /r/calc.py"),)
    with pytest.raises(DataError, match="'patch' does not fit the session: it shares no line with"):
        read(tmp_path, session((name, given, answer), *mine, patch=PATCH, resolved=True))
    for fits in (
        answer.replace("import math", "    return x // 2"),  # one line is enough: what is shown may be cut
        "cat: calc.py: No such file or directory\n\n\n\n",
    ):
        assert read(tmp_path, session((name, given, fits), *mine, patch=PATCH, resolved=True)).solution
    # Read after it was edited, or in part: nothing is known of how it was.
    assert read(tmp_path, session(*mine, (name, given, answer), patch=PATCH, resolved=True)).solution
    part = ("Read", {"file_path": "/r/calc.py", "offset": 9, "limit": 3}, answer)
    assert read(tmp_path, session(part, *mine, patch=PATCH, resolved=True)).solution


def test_every_gold_patch_fits_the_text_that_it_was_made_against(data_dir: Path) -> None:
    """Files as its old side has them, numbered as in SWE-bench_oracle; with one line other, it is refused."""
    for line in (data_dir / "swebench_lite" / "swebench_lite.jsonl").read_text(encoding="utf-8").splitlines():
        patch = patches.normal(json.loads(line)["patch"])
        by_file: dict[str, list[str]] = {}
        for path, old in patches.old_sides(patch):
            by_file.setdefault(path, []).extend([*old, "..."])
        assert by_file
        for path, old in by_file.items():
            text = "\n".join(f"{n}\t{row}" for n, row in enumerate(old, start=1))
            assert patches.stranger(patch, path, text, whole=True) == ""
            assert patches.stranger(patch, path, text, whole=False) == ""
            dropped = "\n".join(row for row in old[1:] if row.strip() != old[0].strip())
            if old[0].strip():
                assert patches.stranger(patch, path, dropped, whole=True)


def test_the_tests_of_an_instance_are_no_solution(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="field 'patch' is the instance's test_patch"):
        read(tmp_path, INSTANCE | {"patch": PATCH, "test_patch": PATCH})


def test_an_unresolved_record_never_takes_its_patch_for_the_answer(tmp_path: Path) -> None:
    for resolved in (False, 0, None):
        found = read(tmp_path, session(REPLACE, patch=PATCH, resolved=resolved, problem_statement=ISSUE))
        assert (found.solution, found.attempts[-1].error_kind) == ("", "Unverified")


# --------------------------------------------------------------------------- the task

MANUAL = (
    "\n\n## Recommended Workflow\n\n1. Look\n\n### Edit files with sed:\n\n```bash\nsed -i 's/old/new/' f.py\n```\n"
)
PROMPTS = {
    "mini": f"Please solve this issue: {ISSUE}\n\nYou can execute bash commands and edit files.{MANUAL}",
    "mini without its usual sentence": f"Please solve this issue: {ISSUE}{MANUAL}",
    "mini for SWE-bench": f"<pr_description>\nConsider the following PR description:\n{ISSUE}\n</pr_description>\n\n"
    f"<instructions>\n# Task Instructions{MANUAL}</instructions>",
    "SWE-agent 0": "We're currently solving the following issue within our repository. Here's the issue text:\nISSUE:\n"
    f"{ISSUE}\n\nINSTRUCTIONS:\nNow, you're going to solve this issue on your own.\n(Open file: n/a)\nbash-$",
    "SWE-agent 1": UPLOADED,
    "OpenHands": "<uploaded_files>\n/workspace\n</uploaded_files>\n\nConsider the following issue description:\n\n"
    f"<issue_description>\n{ISSUE}\n</issue_description>\n\nFollow these phases to resolve the issue:",
    "Claude Code": f"<system-reminder>\nYou may use sed -i.\n</system-reminder>\n{ISSUE}\n",
    "CRLF": f"Please solve this issue: {ISSUE}\r\n\r\nYou can execute bash commands and edit files.\r\n",
    "GitHub": f"Fix the following GitHub issue:\n\n{ISSUE}\n\n## Instructions\n1. Edit",
    "headings": f"## Problem Statement\n\n{ISSUE}\n\n## Instructions\n\nUse sed -i.",
    "nothing around it": ISSUE,
    "rules after it": f"{ISSUE}\n\n## Important Rules\n\n1. Every response must contain exactly one action",
}


@pytest.mark.parametrize("name", list(PROMPTS))
def test_the_task_is_the_issue_not_the_manual_around_it(name: str) -> None:
    assert statement.find(PROMPTS[name]) == ISSUE


def test_an_issue_keeps_its_own_headings_code_and_tags() -> None:
    issue = (
        "# Half is wrong\n\n## Steps\n\n```python\nhalf(3)\n```\n\n<details>\nSee ISSUE: 12 <task>x</task>\n</details>"
    )
    for before, after in (("<pr_description>\n", "\n</pr_description>"), ("", "")):
        assert statement.find(f"{before}{issue}{after}") == issue


PLAIN = [
    "The calc is off.\nPlease fix the bug in half: it should be 1.5",
    "Half is wrong.\n\nCan you help me implement it for negatives too?\n\n## Instructions\n\nNone.",
    "Consider x.\nYour task is to mend half.\nTools are in ./tools",
    "See <issue>12</issue> in the tracker: <task>half</task> fails.",
    "Solve it. The problem: half(3) gives 1.",
]


@pytest.mark.parametrize("text", PLAIN)
def test_what_a_person_wrote_without_a_manual_stays_whole(text: str) -> None:
    assert statement.find(text) == text


def test_the_template_that_made_the_message_says_exactly_what_the_task_was() -> None:
    template = "RULES: use sed -i.\n\nWORK: {{ task }}\n\nNow begin. {{ system }}"
    issue = "## Instructions\n\nYou can execute bash commands here, says the user."
    text = template.replace("{{ task }}", issue).replace("{{ system }}", "Linux")
    assert statement.find(text, template) == issue
    assert statement.find(text.replace("WORK", "OTHER"), template)  # not its template: still something
