"""What an agent's action does to files: found by what it does, whatever the tool is called.

Edits: tools that replace, insert or write text; here-documents and `echo` into files; `sed -i` in every spelling;
`perl -i`, `ruby -i`, `awk -i inplace`, `ed`, `ex`; `patch`, `git apply`, `apply_patch`; programs given on the command
line (python, perl, node, ruby) that write files. Commands that only read are none, also where they mention an edit
(`grep 'sed -i'`), and neither is what only checks (`git apply --check`, `patch --dry-run`).
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from rune.corpus import shell

DEPTH = 4  # scripts within scripts (`bash -c "bash -c …"`) that are looked into


class Call(NamedTuple):
    """One tool call. A bare shell command is the tool "bash" with the argument "command"."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The call as one would type it: the command itself, or `tool command path --argument value …`."""
        given = {k: _as_text(v) for k, v in self.arguments.items() if v is not None}
        if command := shell_text(self):
            return command.strip()
        first = given.pop("command", "").strip()
        place = next((given.pop(k) for k in _PATHS if k in given), "")
        rest = " ".join(f"--{k} {v.strip()}" for k, v in given.items())
        return " ".join(part for part in (self.name, first, place.strip(), rest) if part)


@dataclass(slots=True)
class Effect:
    """What one action does to files. Paths are as the agent wrote them."""

    edits: bool = False
    written: list[str] = field(default_factory=list)  # changed files, as far as the action names them
    whole: list[str] = field(default_factory=list)  # of these, files whose whole content is given
    removed: list[str] = field(default_factory=list)
    reverted: list[str] = field(default_factory=list)  # set back to the repository's state; "." is everything
    moved: list[tuple[str, str]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)  # scripts run directly
    outputs: list[str] = field(default_factory=list)  # files that some program's output went to
    opened: str = ""  # SWE-agent's `edit` writes the file that is open
    undone: bool = False  # the tool's own undo

    def write(self, path: str, *, whole: bool = False) -> None:
        self.edits = True
        if path:
            self.written.append(path)
            if whole:
                self.whole.append(path)


_COMMANDS = (
    "command",
    "cmd",
    "script",
    "shell_command",
    "bash_command",
    "command_line",
    "commandline",
    "CommandLine",
    "keystrokes",
    "code",
)


def shell_text(call: Call) -> str:
    """The shell command of a call, or "" if the tool is no shell."""
    for key in _COMMANDS:
        given = call.arguments.get(key)
        if key == "code" and not _is(call.name, _SHELLS):
            continue
        if isinstance(given, list) and given and all(isinstance(w, str) for w in given):
            # An argument vector: ["bash", "-lc", "…"]
            inner = PurePosixPath(given[0]).name in _SHELL_PROGRAMS and len(given) > 2 and "c" in given[1]
            return str(given[2]) if inner and given[1].startswith("-") else shlex.join(given)
        if isinstance(given, str) and not (key == "command" and _is_editor(call)):
            return given
    return ""


def effect(call: Call) -> Effect:
    """What a call does to files."""
    found = Effect()
    if command := shell_text(call):
        _script(command, found, 0)
    else:
        _tool(call, found)
    return found


# --------------------------------------------------------------------------- tools with arguments

_SHELLS = ("bash", "shell", "terminal", "sh", "zsh", "execute_command", "run_command", "run_in_terminal", "cmd")
_PATHS = (
    "path",
    "file_path",
    "filePath",
    "filename",
    "file_name",
    "file",
    "target_file",
    "notebook_path",
    "relative_path",
    "absolute_path",
    "relative_workspace_path",
    "TargetFile",
    "targetFile",
)
_NEW = (
    "new_str",
    "new_string",
    "newString",
    "new_text",
    "newText",
    "new_content",
    "new_source",
    "file_text",
    "content",
    "contents",
    "text",
    "replacement",
    "replace",
    "code_edit",
    "code",
    "updated_content",
    "data",
    "replacement_text",
    "insert_text",
    "new_code",
    "to",
    "edits",
    "source",
    "body",
)
_OLD = ("old_str", "old_string", "oldString", "old_text", "oldText", "search", "to_replace", "old_content", "find")
_PATCH = ("patch", "diff", "patchText", "patch_text", "input", "unified_diff")
_READS = re.compile(
    r"(?:^|_)(?:view|read|open|list|ls|grep|glob|find|search|fetch|browse|think|todo|task|finish|submit|goto|scroll|"
    r"message|ask|get|show|cat|lookup|web|memory|plan)(?:$|_)",
    re.IGNORECASE,
)
_PYTHONS = ("ipython", "execute_ipython_cell", "run_ipython", "python", "jupyter", "execute_python", "run_python")
_EDITOR_COMMANDS = {"view", "create", "str_replace", "insert", "undo_edit", "edit", "write", "delete", "append"}


def _is(name: str, names: Sequence[str]) -> bool:
    return name.lower().rpartition(".")[2] in names


def _is_editor(call: Call) -> bool:
    """`command` is a word of an editor tool, not a shell command."""
    if _is(call.name, _SHELLS):
        return False
    command = call.arguments.get("command")
    return isinstance(command, str) and command.strip() in _EDITOR_COMMANDS and any(k in call.arguments for k in _PATHS)


def _tool(call: Call, found: Effect) -> None:
    given = call.arguments
    path = next((given[k] for k in _PATHS if isinstance(given.get(k), str)), "")
    if _is(call.name, _PYTHONS) or ("code" in given and not path):
        _notebook_cell(str(given.get("code") or given.get("content") or ""), found)
        return
    command = given.get("command")
    if isinstance(command, str) and command.strip() in _EDITOR_COMMANDS:
        verb = command.strip()
        if verb == "undo_edit":
            found.undone = True
        elif verb == "delete":
            found.removed.append(path)
        elif verb != "view":
            found.write(path, whole=verb in ("create", "write"))
        else:
            found.opened = path
        return
    for key in _PATCH:
        if isinstance(given.get(key), str) and is_patch(given[key]):
            _patched(given[key], found)
            return
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", call.name).lower()
    has_old = any(k in given for k in _OLD)
    has_new = any(k in given for k in _NEW)
    if re.search(r"delete|remove", words) and path and not has_new:
        found.removed.append(path)
    elif path and has_new and (has_old or not _READS.search(words)):
        found.write(path, whole=not has_old and not re.search(r"insert|append|edit|patch|replace", words))


def _notebook_cell(code: str, found: Effect) -> None:
    """Python, with IPython's magics: `!command`, `%%bash`, `%%writefile`."""
    head, _, body = code.lstrip().partition("\n")
    if match := re.match(r"%%writefile\s+(?:-a\s+)?(\S+)", head):
        found.write(match[1], whole=True)
    elif re.match(r"%%(?:bash|sh|script)\b", head):
        _script(body, found, 0)
    else:
        for line in re.findall(r"^\s*[!%](?:sx\s+)?(.*)$", code, re.MULTILINE):
            _script(line, found, 0)
        _python(re.sub(r"^(\s*)[!%].*$", r"\1pass", code, flags=re.MULTILINE), found)


# --------------------------------------------------------------------------- shell commands

_KEYWORDS = {"if", "then", "elif", "else", "while", "until", "do", "!", "{", "time", "exec", "command", "builtin"}
_WRAPPERS = {"sudo", "env", "nohup", "nice", "timeout", "stdbuf", "xargs", "uv", "poetry", "pipenv", "conda", "docker"}
_WRAPPERS |= {"ssh", "unbuffer", "script", "chroot", "podman", "micromamba", "mamba", "pdm", "hatch", "rye"}
_WRAPPERS |= {"parallel", "busybox", "runuser", "setsid", "ionice", "kubectl", "flock"}
_SHELL_PROGRAMS = {"bash", "sh", "zsh", "dash", "ksh"}
_WRITERS = {"echo", "printf", "cat", "base64", "envsubst"}
_SINK = re.compile(r"^(?:/dev/|/proc/|/sys/|&)|\.(?:log|out|err|pid|patch|diff|bak|orig|lock)$|^-$|^$|^\d$")
_CODE = re.compile(
    r"\.(?:py|pyi|pyx|pxd|js|jsx|ts|tsx|mjs|cjs|vue|svelte|c|cc|cpp|cxx|h|hh|hpp|cs|java|kt|scala|go|rs|rb|php|pl|pm|"
    r"lua|swift|r|jl|sh|bash|sql|html|css|scss|toml|cfg|ini|yaml|yml|rst|tex|cmake|mk|gradle|proto|ipynb)$"
    r"|(?:^|/)(?:Makefile|Dockerfile|CMakeLists\.txt)$",
    re.IGNORECASE,
)
_SWE_AGENT = re.compile(r"\s*(edit|insert)\b(?!\s*=)")


def _script(text: str, found: Effect, depth: int) -> None:
    if depth > DEPTH:
        return
    if match := _SWE_AGENT.match(text):  # SWE-agent's own commands; what follows is text, not shell
        found.edits = True
        if match[1] == "edit" and (named := re.match(r"\s*edit\s+(\S+\.\w+)\s+\d+:\d+", text)):
            found.written.append(named[1])
        return
    for command in shell.parse(text):
        _command(command, found, depth)


def _command(command: shell.Command, found: Effect, depth: int) -> None:
    words = _unwrapped(command.words)
    if not words:
        return
    name, rest = PurePosixPath(words[0]).name, words[1:]
    stdin = command.stdin or _piped_text(command)
    _redirections(command, name, rest, found)
    if name in _SHELL_PROGRAMS or name in ("su",):
        _shell_program(rest, stdin, found, depth)
    elif name == "eval":
        _script(" ".join(rest), found, depth + 1)
    elif name == "find":
        _find(rest, found, depth)
    elif name in ("sed", "gsed"):
        if _sed_in_place(rest):
            for path in _operands(rest)[0 if _sed_has_script(rest) else 1 :]:
                found.write(path)
            found.edits = True
    elif re.fullmatch(r"perl[\d.]*|ruby[\d.]*", name):
        _perl(rest, stdin, found)
    elif name in ("awk", "gawk", "mawk"):
        if any(rest[i : i + 2] in (["-i", "inplace"], ["--include", "inplace"]) for i in range(len(rest))):
            found.write(rest[-1])
    elif name in ("ed", "ex", "vi", "vim", "nvim", "red"):
        _line_editor(name, rest, stdin, found)
    elif name in ("patch", "gpatch"):
        _patch(rest, stdin, found)
    elif name in ("apply_patch", "applypatch", "apply-patch"):
        _patched(stdin or "\n".join(rest), found)
    elif name == "git":
        _git(rest, stdin, found)
    elif re.fullmatch(r"(?:i?python|pypy)[\d.]*", name):
        _python_program(rest, stdin, found)
    elif name in ("node", "deno", "bun", "php"):
        _other_program(rest, stdin, found)
    elif name == "tee":
        paths = [w for w in rest if not w.startswith("-")]
        if command.source is None or _is_writer(command.source) or command.stdin:
            paths = [p for p in paths if not _SINK.search(p)]
        else:
            paths = [p for p in paths if _CODE.search(p)]
        for path in paths:
            found.write(path, whole="-a" not in rest and "--append" not in rest)
    elif name == "sponge":
        for path in (w for w in rest if not w.startswith("-")):
            found.write(path, whole="-a" not in rest)
    elif name in ("rm", "unlink"):
        found.removed += [w for w in rest if not w.startswith("-")]
    elif name in ("mv", "cp"):
        paths = [w for w in rest if not w.startswith("-")]
        if len(paths) == 2 and paths[0] in found.outputs:  # `sed … x.py > tmp && mv tmp x.py`
            found.write(paths[1])
        elif len(paths) == 2 and name == "mv":
            found.moved.append((paths[0], paths[1]))
    elif name in ("str_replace_editor", "str_replace_based_edit_tool", "edit_anthropic", "file_editor"):
        _editor_command(rest, found)
    elif name in ("open", "create", "goto") and rest:  # SWE-agent
        if name != "goto":
            found.opened = rest[0]
    elif name in ("pytest", "py.test"):
        found.ran += [w.partition("::")[0] for w in rest if ".py" in w]
    elif words[0].startswith(("./", "/")) and _CODE.search(words[0]):
        found.ran.append(words[0])


def _unwrapped(words: list[str]) -> list[str]:
    """The command without assignments, keywords and programs that run another one."""
    at = 0
    while at < len(words):
        word = PurePosixPath(words[at]).name if "/" in words[at] else words[at]
        if word in _KEYWORDS or re.match(r"\w+\+?=", words[at]):
            at += 1
        elif word in _WRAPPERS:
            inner = next((i for i in range(at + 1, len(words)) if _runs(words[i])), None)
            if inner is None:
                return words[at:]
            at = inner
        else:
            return words[at:]
    return []


def _runs(word: str) -> bool:
    """Whether a wrapper's argument is the program that it runs, as far as programs here matter."""
    name = PurePosixPath(word).name
    known = {"sed", "gsed", "awk", "gawk", "ed", "ex", "patch", "git", "tee", "rm", "mv", "node", "apply_patch"}
    return (
        name in known
        or name in _SHELL_PROGRAMS
        or re.fullmatch(r"(?:i?python|pypy|perl|ruby)[\d.]*|pytest", name) is not None
    )


def _is_writer(command: shell.Command) -> bool:
    words = _unwrapped(command.words)
    if not words:
        return False
    name = PurePosixPath(words[0]).name
    return name in ("echo", "printf") or (name == "cat" and bool(command.stdin))


def _piped_text(command: shell.Command) -> str:
    """What `echo`, `printf` or `cat <<EOF` before the pipe hands over."""
    source = command.source
    if source is None or not _is_writer(source):
        return ""
    return source.stdin or " ".join(w for w in _unwrapped(source.words)[1:] if w not in ("-e", "-n", "-en", "-ne"))


def _redirections(command: shell.Command, name: str, rest: list[str], found: Effect) -> None:
    for operator, path in command.redirects:
        if operator not in (">", ">>", ">|", "&>", "&>>") or _SINK.search(path):
            continue
        found.outputs.append(path)
        writes = name in ("echo", "printf", "base64", "envsubst") or (
            name == "cat" and (command.stdin or (command.source is not None and not _operands(rest)))
        )
        if writes or (_CODE.search(path) and name not in (":", "true", "diff", "ls", "pytest")):
            found.write(path, whole=">>" not in operator)


def _operands(words: Sequence[str]) -> list[str]:
    """Arguments that are no options, as GNU reads them: options may stand anywhere, `--` ends them."""
    found, literal = [], False
    skip = False
    for word in words:
        if skip:
            skip = False
        elif literal or not word.startswith("-") or word == "-":
            found.append(word)
        elif word == "--":
            literal = True
        elif word in ("-e", "-f", "-l", "--expression", "--file"):
            skip = True
    return [w for w in found if w]


def _sed_in_place(words: Sequence[str]) -> bool:
    """Whether sed's options say -i: alone, with a suffix, within a cluster (-Ei, -ni.bak), or --in-place[=SUFFIX]."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == "--":
            return False
        elif word.startswith("--"):
            # GNU takes any prefix that is not ambiguous.
            name = word[2:].partition("=")[0]
            if len(name) >= 2 and "in-place".startswith(name):
                return True
            skip = word in ("--expression", "--file", "--line-length")
        elif word.startswith("-") and len(word) > 1:
            for number, char in enumerate(word[1:], start=1):
                if char == "i":
                    return True
                if char in "efl":  # the rest of the word, or the next one, is its argument
                    skip = number == len(word) - 1
                    break
    return False


def _sed_has_script(words: Sequence[str]) -> bool:
    return any(re.match(r"-[nErsuzi]*[ef]|--expression|--file", w) for w in words)


def _perl(words: Sequence[str], stdin: str, found: Effect) -> None:
    """perl and ruby: -i in a cluster (-pi, -0pi.bak), or a program that opens a file for writing."""
    in_place, program, operands = False, stdin, []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("-") or word == "-":
            operands.append(word)
            continue
        for number, char in enumerate(word[1:], start=1):
            if char == "i":
                in_place = True
                break
            if char in "eE":
                program = word[number + 1 :] or (words[at] if at < len(words) else "")
                at += not word[number + 1 :]
                break
            if char in "MmIFxCdDr":
                break
    if in_place:
        found.edits = True
        found.written += operands
    elif re.search(r"\bopen\b[^;]*['\"](?:\+?>>?|\+<)|\bsyswrite\b|File\.(?:write|open\([^)]*['\"][wa])", program):
        found.write("")


def _line_editor(name: str, words: Sequence[str], stdin: str, found: Effect) -> None:
    given = "\n".join([stdin, *(w for w in words)])
    scripted = stdin or any(w in ("-c", "-s", "-es", "-sc", "-S") or w.startswith("+") for w in words)
    if scripted and re.search(r"(?m)(?:^|[|+\s])(?:w|wq|x|wq!|w!|x!|update)\s*(?:$|[|\s])", given):
        paths = [w for w in words if not w.startswith(("-", "+")) and _CODE.search(w)]
        found.edits = True
        found.written += paths
    elif name == "ed" and stdin and re.search(r"(?m)^w", stdin):
        found.edits = True


def _patch(words: Sequence[str], stdin: str, found: Effect) -> None:
    if any(w in ("--dry-run", "-C", "--check", "--help", "--version", "-v") for w in words):
        return
    _patched(stdin, found)
    if not stdin:
        found.written += _operands([w for w in words if not w.endswith((".patch", ".diff"))])[:1]


def _git(words: Sequence[str], stdin: str, found: Effect) -> None:
    rest = list(words)
    while rest and rest[0].startswith("-"):
        rest = rest[2:] if rest[0] in ("-C", "-c") else rest[1:]
    verb, rest = (rest[0] if rest else ""), rest[1:]
    paths = [w for w in rest if not w.startswith("-")]
    if verb in ("apply", "am"):
        if not any(
            w in ("--check", "--stat", "--numstat", "--summary", "--abort", "--show-current-patch") for w in rest
        ):
            _patched(stdin, found)
    elif verb == "checkout" and ("--" in rest or "." in rest or any(_CODE.search(p) for p in paths)):
        found.reverted += [p for p in paths if p == "." or "/" in p or "." in p]
    elif verb == "restore" and "--staged" not in rest:
        found.reverted += paths
    elif (verb == "reset" and "--hard" in rest) or (verb == "stash" and (not paths or paths[0] in ("push", "save"))):
        found.reverted.append(".")
    elif verb == "clean":
        found.removed.append(".")
    elif verb == "rm":
        found.removed += paths
    elif verb == "mv" and len(paths) == 2:
        found.moved.append((paths[0], paths[1]))


def _shell_program(words: Sequence[str], stdin: str, found: Effect, depth: int) -> None:
    for number, word in enumerate(words):
        if re.fullmatch(r"-[a-z]*c", word) and number + 1 < len(words):
            _script(words[number + 1], found, depth + 1)
            return
    scripts = [w for w in words if not w.startswith("-")]
    if scripts:
        found.ran.append(scripts[0])
    elif stdin:
        _script(stdin, found, depth + 1)


def _find(words: Sequence[str], found: Effect, depth: int) -> None:
    at = 0
    while at < len(words):
        if words[at] in ("-exec", "-execdir", "-ok", "-okdir"):
            end = next((i for i in range(at + 1, len(words)) if words[i] in (";", "+")), len(words))
            inner = Effect()
            _command(shell.Command(words=[w for w in words[at + 1 : end] if w != "{}"]), inner, depth + 1)
            found.edits |= inner.edits  # which files they are, only the machine knew
            at = end
        at += 1


def _editor_command(words: Sequence[str], found: Effect) -> None:
    verb, path = (words[0] if words else ""), next((w for w in words[1:] if not w.startswith("-")), "")
    if verb == "undo_edit":
        found.undone = True
    elif verb in ("create", "str_replace", "insert"):
        found.write(path, whole=verb == "create")
    elif verb == "view":
        found.opened = path


# --------------------------------------------------------------------------- programs on the command line


def _python_program(words: Sequence[str], stdin: str, found: Effect) -> None:
    at = 0
    while at < len(words):
        word = words[at]
        if word == "-c" or re.fullmatch(r"-[bBdEhiIOqsSuvVx]+c", word):
            _python(words[at + 1] if at + 1 < len(words) else "", found)
            return
        if word == "-m":
            module = words[at + 1] if at + 1 < len(words) else ""
            if module in ("pytest", "unittest"):
                found.ran += [w.partition("::")[0] for w in words[at + 2 :] if ".py" in w]
            return
        if word == "-" or not word.startswith("-"):
            break
        at += 2 if word in ("-W", "-X") else 1
    if at < len(words) and words[at] != "-":
        found.ran.append(words[at])
    else:
        _python(stdin, found)


def _other_program(words: Sequence[str], stdin: str, found: Effect) -> None:
    program = next((words[i + 1] for i, w in enumerate(words[:-1]) if w in ("-e", "-r", "--eval", "-p")), "")
    if not program and words and not words[0].startswith("-"):
        found.ran.append(words[0])
        return
    if re.search(r"\b(?:writeFile|appendFile|createWriteStream|file_put_contents|fwrite)", program or stdin):
        found.write("")


_WRITING_SKILLS = {"edit_file_by_replace", "edit_file_by_line", "edit_file", "insert_content_at_line", "append_file"}


def _python(code: str, found: Effect) -> None:
    """Whether a program writes files: open for writing, write_text, in-place fileinput, OpenHands' skills."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        if re.search(r"open\([^)\n]*,\s*(?:mode\s*=\s*)?['\"][rbt]*[wax+]|\.write_(?:text|bytes)\(", code):
            found.write("")
        return
    names = {
        target.id: text
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and (text := _path_of(node.value, {}))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            _python_call(node, names, found)


def _python_call(node: ast.Call, names: Mapping[str, str], found: Effect) -> None:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    first = _path_of(node.args[0], names) if node.args else ""
    owner = _path_of(function.value, names) if isinstance(function, ast.Attribute) else ""
    if name == "open":
        method = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") not in ("io", "codecs", "os")
        given = [*node.args[0 if method else 1 :][:1], *(k.value for k in node.keywords if k.arg == "mode")]
        mode = next((a.value for a in given if isinstance(a, ast.Constant)), "")
        path = owner if method else first
        if isinstance(mode, str) and re.search(r"[wax+]", mode) and not _SINK.search(path or "?"):
            found.write(path, whole="w" in mode and "+" not in mode)
    elif name in ("write_text", "write_bytes"):
        found.write(owner, whole=True)
    elif (name == "input" and any(k.arg == "inplace" and getattr(k.value, "value", 0) for k in node.keywords)) or (
        name in _WRITING_SKILLS and isinstance(function, ast.Name)
    ):
        found.write(first)
    elif name in ("remove", "unlink", "rmtree"):
        found.removed += [p for p in (first or owner,) if p]
    elif name in ("system", "run", "check_call", "check_output", "Popen", "getoutput") and node.args:
        words = node.args[0]
        if isinstance(words, ast.Constant) and isinstance(words.value, str):
            _script(words.value, found, DEPTH)
        elif isinstance(words, (ast.List, ast.Tuple)):
            texts = [e.value for e in words.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
            _command(shell.Command(words=texts), found, DEPTH)


def _path_of(node: ast.AST, names: Mapping[str, str]) -> str:
    """The path that an expression plainly names: "x", p, Path("x"); "" if it must be computed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Call) and node.args:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return _path_of(node.args[0], names) if name in ("Path", "PurePath", "PosixPath") else ""
    return ""


# --------------------------------------------------------------------------- patches within actions

_PATCHED = re.compile(r"^(?:\+\+\+ (?:b/)?([^\t\n]+)|\*\*\* (?:Update|Add) File: ([^\n]+))", re.MULTILINE)
_ADDED = re.compile(r"^(?:--- /dev/null\n\+\+\+ (?:b/)?([^\t\n]+)|\*\*\* Add File: ([^\n]+))", re.MULTILINE)
_DELETED = re.compile(r"^(?:--- (?:a/)?([^\t\n]+)\n\+\+\+ /dev/null|\*\*\* Delete File: ([^\n]+))", re.MULTILINE)
_RENAMED = re.compile(r"^\*\*\* Update File: ([^\n]+)\n\*\*\* Move to: ([^\n]+)", re.MULTILINE)


def is_patch(text: str) -> bool:
    """A unified diff, or the Begin Patch … End Patch form."""
    return bool(re.search(r"^(?:diff --git |\+\+\+ |@@ |\*\*\* Begin Patch)", text, re.MULTILINE))


def patched_files(text: str) -> list[str]:
    """Files that a patch changes or adds."""
    return [path for path in _named(_PATCHED, text) if path != "/dev/null"]


def _named(pattern: re.Pattern[str], text: str) -> list[str]:
    return [(a or b).strip() for a, b in pattern.findall(text)]


def _patched(text: str, found: Effect) -> None:
    """What applying a patch does. One that only deletes files removes them, as `rm` does."""
    written, deleted = patched_files(text), _named(_DELETED, text)
    found.written += written
    found.whole += _named(_ADDED, text)
    found.removed += deleted
    found.moved += [(old.strip(), new.strip()) for old, new in _RENAMED.findall(text)]
    found.edits |= bool(written) or not deleted


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
