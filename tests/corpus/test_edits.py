"""Edits are found by what they do; commands that only read, check or mention an edit are none."""

from __future__ import annotations

from typing import Any

import pytest

from rune.corpus import shell
from rune.corpus.edits import Call, Effect, effect


def bash(command: str) -> Effect:
    return effect(Call("bash", {"command": command}))


SED = [
    "sed -i 's/a/b/' x.py",
    "sed -Ei 's/a+/b/' x.py",
    "sed -iE 's/a/b/' x.py",
    "sed -ri.bak s/a/b/ x.py",
    "sed -ni 1p x.py",
    "sed -n -i 1p x.py",
    "sed --in-place 's/a/b/' x.py",
    "sed --in-place=.bak s/a/b/ x.py",
    "sed --in-pl s/a/b/ x.py",
    "sed -e s/a/b/ -i x.py",
    "sed 's/a/b/' x.py -i",
    "sed -s -u -i -e 's/a/b/' -e 's/c/d/' x.py",
    "gsed -i '' 's/a/b/' x.py",
    "/usr/bin/sed -i '5d' x.py",
    "sed -i '/^def/a\\    pass' x.py",
    "cd /r && sed -i 's/a/b/' x.py && python t.py",
    "sudo sed -i s/a/b/ x.py",
    "LC_ALL=C sed -i s/a/b/ x.py",
    "env FOO=1 sed -i s/a/b/ x.py",
    "if grep -q a x.py; then sed -i s/a/b/ x.py; fi",
    'for f in *.py; do sed -i s/a/b/ "$f"; done',
    "(cd r; sed -i s/a/b/ x.py)",
    "grep -rl foo | xargs sed -i 's/a/b/g'",
    "grep -rlZ foo | xargs -0 -n 1 sed -i s/a/b/",
    "find . -name '*.py' -exec sed -i 's/a/b/' {} +",
    'bash -c "sed -i s/a/b/ x.py"',
    "bash -lc 'cd r && sed -i s/a/b/ x.py'",
    "docker exec c bash -c 'sed -i s/a/b/ x.py'",
    "eval 'sed -i s/a/b/ x.py'",
    "bash <<'EOF'\nsed -i s/a/b/ x.py\nEOF",
    "sed \\\n  -i \\\n  's/a/b/' x.py",
    "sed 's/a/b/' x.py > y.py",
    "sed 's/a/b/' x.py > tmp && mv tmp x.py",
    "busybox sed -i s/a/b/ x.py",
    "ls *.py | parallel sed -i s/a/b/ {}",
]
OTHERS = [
    "awk '{ sub(/a/, \"b\"); print }' x.py > tmp && cp tmp x.py",
    "perl -pi -e 's/a/b/' x.py",
    "perl -i -pe 's/a/b/' x.py",
    "perl -0pi -e 's/a/b/s' x.py",
    "perl -0777 -i.orig -pe 's/a/b/' x.py",
    'perl -e \'open(F, ">", "x.py"); print F 1\'',
    "ruby -pi -e 'gsub(/a/, \"b\")' x.py",
    "gawk -i inplace '{ print }' x.py",
    "ed -s x.py <<EOF\n1d\nw\nq\nEOF",
    "ex -sc '%s/a/b/|x' x.py",
    "vim -c '%s/a/b/g' -c 'wq' x.py",
    "cat > x.py <<EOF\na\nEOF",
    "cat <<'EOF' > x.py\na\nEOF",
    'cat << "EOF" >> x.py\na\nEOF',
    "cat <<-EOF > x.py\n\ta\n\tEOF",
    "tee x.py <<EOF\na\nEOF",
    "tee -a x.py > /dev/null <<'EOF'\na\nEOF",
    "echo 'x = 1' > x.py",
    "echo 'x = 1' >> requirements.txt",
    "printf 'x = %s\\n' 1 >| x.py",
    "sed s/a/b/ x.py | sponge x.py",
    "echo 'x = 1' | tee x.py",
    "echo 'x = 1' |\n  sudo tee -a x.py",
    "git show HEAD:x.py | sed 's/a/b/' > x.py",
    "patch -p1 < fix.diff",
    "patch x.py fix.diff",
    "cat <<'EOF' | patch -p1\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\nEOF",
    "git apply fix.diff",
    "git -C /r apply <<'EOF'\n--- a/x.py\n+++ b/x.py\nEOF",
    "apply_patch <<'EOF'\n*** Begin Patch\n*** Update File: x.py\n*** End Patch\nEOF",
    "apply_patch '*** Begin Patch\n*** Update File: x.py\n*** End Patch'",
    "python -c \"open('x.py', 'w').write('a')\"",
    "timeout 10 python3 -c \"open('x.py', mode='a').write('1')\"",
    "python - <<'EOF'\nfrom pathlib import Path\np = Path('x.py')\np.write_text(p.read_text().replace('a', 'b'))\nEOF",
    "python3 <<EOF\ns = open('x.py').read()\nwith open('x.py', 'w') as f:\n    f.write(s)\nEOF",
    "cat <<'EOF' | python\nimport fileinput\nfor line in fileinput.input('x.py', inplace=True):\n    print(line)\nEOF",
    "python -c \"import subprocess; subprocess.run(['sed', '-i', 's/a/b/', 'x.py'])\"",
    "python -c \"import os; os.system('sed -i s/a/b/ x.py')\"",
    "python - <<'EOF'\nthis is no python but open('x.py', 'w')\nEOF",
    "node -e \"require('fs').writeFileSync('x.js', 'a')\"",
    "edit 1:3\nx = 1\nend_of_edit",
    "edit\nx = 1\nend_of_edit",
    "edit 'old' 'new' False",
    "insert 'x = 1'",
    "str_replace_editor create /r/x.py --file_text 'a'",
    "str_replace_editor insert /r/x.py --insert_line 3 --new_str 'a'",
]
READ = [
    "grep -rn 'sed -i' .",
    'grep -rn "cat > x.py" .',
    "rg 'patch -p1' | head",
    "grep 'a > b.py' x.py",
    "history | grep 'tee x.py'",
    "echo 'sed -i s/a/b/ x.py'",
    'echo "cat > x.py"',
    "# sed -i s/a/b/ x.py",
    "ls # && sed -i s/a/b/ x.py",
    "cat x.py",
    "cat x.py y.py | head -5",
    "cat <<EOF\nsed -i s/a/b/ x.py\nEOF",
    "sed -n '1,10p' x.py",
    "sed -e 's/i/j/' x.py",
    "sed -ei x.py",
    "sed -f in.sed x.py",
    "sed --quiet 1p x.py",
    "sed s/-i/-j/ x.py",
    "sed -- -i x.py",
    "perl -ne 'print if /i/' x.py",
    "perl -Mintegration -e 'print 1'",
    'perl -e \'open(F, "<", "x.py"); print <F>\'',
    "awk '{ print $1 }' x.py",
    "awk -i library '{ print }' x.py",
    "git diff > fix.patch",
    "git diff HEAD --stat",
    "git apply --check fix.diff",
    "git apply --stat fix.diff",
    "patch --dry-run -p1 < fix.diff",
    "man patch",
    "which patch apply_patch sed",
    "git log -p | head",
    "git stash list",
    "git commit -m \"$(cat <<'EOF'\nsed -i\nEOF\n)\"",
    "python -c \"print(open('x.py').read())\"",
    "python3 -c 'x = \"open(1, w)\"'",
    "python - <<EOF\nimport calc\nprint(calc.half(3) > 1)\nEOF",
    "python t.py > out.log 2>&1",
    "pytest 2>/dev/null",
    "pytest > results.txt",
    "python t.py | tee out.log",
    "python t.py 2>&1 | tee /dev/null",
    "ls > /dev/null",
    "ls -la >&2",
    "find . -name '*.py' -exec grep -l x {} \\;",
    "[ 1 -gt 0 ] && echo yes",
    "((a > b)) || true",
    "diff x.py y.py",
    "cp x.py x.py.bak",
    "ls > tmp && mv other x.py",
    "open x.py 12",
    "create x.py",
    "str_replace_editor view /r/x.py",
    "editor --version",
    "vim x.py",
    "ed --help",
    "tail -f x.log",
    "node t.js",
    "",
    "   ",
]


@pytest.mark.parametrize("command", [*SED, *OTHERS])
def test_an_edit_is_found(command: str) -> None:
    assert bash(command).edits


@pytest.mark.parametrize("command", READ)
def test_a_reading_command_is_no_edit(command: str) -> None:
    assert not bash(command).edits


TOOLS: list[tuple[str, dict[str, Any]]] = [
    ("str_replace_editor", {"command": "str_replace", "path": "x.py", "old_str": "a", "new_str": "b"}),
    ("str_replace_editor", {"command": "create", "path": "x.py", "file_text": "a"}),
    ("str_replace_based_edit_tool", {"command": "insert", "path": "x.py", "insert_line": 1, "insert_text": "a"}),
    ("Edit", {"file_path": "x.py", "old_string": "a", "new_string": ""}),
    ("MultiEdit", {"file_path": "x.py", "edits": [{"old_string": "a", "new_string": "b"}]}),
    ("Write", {"file_path": "x.py", "content": "a"}),
    ("NotebookEdit", {"notebook_path": "x.ipynb", "new_source": "a"}),
    ("write_file", {"path": "x.py", "content": "a"}),
    ("replace", {"file_path": "x.py", "old_string": "a", "new_string": "b"}),
    ("edit_file", {"target_file": "x.py", "code_edit": "a"}),
    ("search_replace", {"file_path": "x.py", "old_string": "a", "new_string": "b"}),
    ("apply_patch", {"input": "*** Begin Patch\n*** Update File: x.py\n*** End Patch"}),
    ("apply_diff", {"path": "x.py", "diff": "@@ -1 +1 @@\n-a\n+b"}),
    ("shell", {"command": ["bash", "-lc", "sed -i s/a/b/ x.py"]}),
    ("shell", {"command": ["apply_patch", "*** Begin Patch\n*** Add File: x.py\n*** End Patch"]}),
    ("execute_bash", {"command": "echo a > x.py", "is_input": "false"}),
    ("terminal", {"command": "perl -pi -e s/a/b/ x.py"}),
    ("execute_ipython_cell", {"code": "edit_file_by_replace('x.py', to_replace='a', new_content='b')"}),
    ("python", {"code": "open('x.py', 'w').write('a')"}),
    ("ipython", {"code": "%%writefile x.py\na"}),
    ("ipython", {"code": "!sed -i s/a/b/ x.py\nprint(1)"}),
]
READING_TOOLS: list[tuple[str, dict[str, Any]]] = [
    ("str_replace_editor", {"command": "view", "path": "x.py", "view_range": [1, 2]}),
    ("Read", {"file_path": "x.py"}),
    ("Grep", {"pattern": "a", "path": "x.py", "content": True}),
    ("search_files", {"path": "x.py", "text": "a"}),
    ("read_file", {"path": "x.py", "content": ""}),
    ("think", {"thought": "sed -i s/a/b/ x.py"}),
    ("finish", {"message": "edited", "path": "x.py", "content": "done"}),
    ("TodoWrite", {"todos": [{"content": "edit x.py"}]}),
    ("Bash", {"command": "cat x.py", "description": "sed -i"}),
    ("browse", {"url": "http://localhost", "text": "a"}),
    ("python", {"code": "print(open('x.py').read())"}),
    ("submit", {}),
    ("tool", {"path": None, "content": None, "command": None}),
]


@pytest.mark.parametrize(("name", "arguments"), TOOLS)
def test_a_tool_that_changes_text_is_an_edit(name: str, arguments: dict[str, Any]) -> None:
    assert effect(Call(name, arguments)).edits


@pytest.mark.parametrize(("name", "arguments"), READING_TOOLS)
def test_a_tool_that_reads_is_none(name: str, arguments: dict[str, Any]) -> None:
    assert not effect(Call(name, arguments)).edits


@pytest.mark.parametrize(
    ("command", "written", "whole"),
    [
        ("sed -i 's/a/b/' x.py lib/y.py", ["x.py", "lib/y.py"], []),
        ("sed -i -e 's/a/b/' -e 's/c/d/' x.py", ["x.py"], []),
        ("cat > x.py <<EOF\na\nEOF", ["x.py"], ["x.py"]),
        ("echo a >> x.py", ["x.py"], []),
        ("git apply <<'EOF'\n--- a/x.py\n+++ b/x.py\nEOF", ["x.py"], []),
        ("python -c \"open('x.py', 'w')\"", ["x.py"], ["x.py"]),
        ("python -c \"open('x.py', 'a')\"", ["x.py"], []),
        ("echo a > 'my file.py'", ["my file.py"], ["my file.py"]),
    ],
)
def test_the_files_that_an_edit_names_are_known(command: str, written: list[str], whole: list[str]) -> None:
    found = bash(command)
    assert (found.written, found.whole) == (written, whole)


def test_what_is_removed_reverted_moved_and_run_is_known() -> None:
    assert bash("rm -rf a.py b/").removed == ["a.py", "b/"]
    assert bash("git checkout -- a.py").reverted == ["a.py"]
    assert bash("git checkout main").reverted == []
    assert bash("git reset --hard && git clean -fd").reverted == ["."]
    assert bash("mv a.py b.py").moved == [("a.py", "b.py")]
    assert bash("cd r && python a.py --flag; pytest t.py::test_x").ran == ["a.py", "t.py"]
    assert effect(Call("str_replace_editor", {"command": "undo_edit", "path": "x.py"})).undone


DELETES = "*** Begin Patch\n*** Delete File: a.py\n*** End Patch"


@pytest.mark.parametrize(
    ("command", "edits", "written", "whole", "removed"),
    [
        (f"apply_patch <<'E'\n{DELETES}\nE", False, [], [], ["a.py"]),
        ("git apply <<'E'\n--- a/a.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\nE", False, [], [], ["a.py"]),
        ("git apply <<'E'\n--- /dev/null\n+++ b/n.py\n@@ -0,0 +1 @@\n+x\nE", True, ["n.py"], ["n.py"], []),
        ("apply_patch <<'E'\n*** Begin Patch\n*** Add File: n.py\n+x\n*** End Patch\nE", True, ["n.py"], ["n.py"], []),
        ("rm a.py && git apply fix.patch", True, [], [], ["a.py"]),
        ("rm a.py; patch -p1 < fix.diff", True, [], [], ["a.py"]),
        ("patch x.py fix.diff", True, ["x.py"], [], []),
    ],
)
def test_a_patch_that_only_deletes_is_no_edit_and_one_that_adds_gives_the_whole_file(
    command: str, edits: bool, written: list[str], whole: list[str], removed: list[str]
) -> None:
    found = bash(command)
    assert (found.edits, found.written, found.whole, found.removed) == (edits, written, whole, removed)
    if edits is False:
        assert effect(Call("apply_patch", {"input": DELETES})).removed == ["a.py"]


def test_a_patch_that_renames_moves_the_file() -> None:
    text = "*** Begin Patch\n*** Update File: a.py\n*** Move to: b.py\n@@\n-x\n+y\n*** End Patch"
    found = effect(Call("apply_patch", {"input": text}))
    assert (found.edits, found.written, found.moved) == (True, ["a.py"], [("a.py", "b.py")])


def test_quotes_pipes_and_documents_are_read_as_a_shell_does() -> None:
    found = shell.parse('a \'b c\' "d $(e f) \\"g\\"" h\\ i 2>err <in | j <<X && k # l\nbody\nX\nm;n')
    assert [c.words for c in found] == [["a", "b c", 'd $(e f) "g"', "h i"], ["j"], ["k"], ["m"], ["n"], ["e", "f"]]
    assert found[0].redirects == [("2>", "err"), ("<", "in")]
    assert (found[1].stdin, found[1].source) == ("body\n", found[0])


@pytest.mark.parametrize(
    "broken", ["'", '"', "$(", "`", "cat <<EOF", "<<", ">", "a |", "((", "$((", "\\", "a <<'", "<(x", ")"]
)
def test_a_broken_command_line_is_read_as_far_as_it_goes(broken: str) -> None:
    assert not bash(broken).edits
    assert bash(f"sed -i s/a/b/ x.py\n{broken}").edits
