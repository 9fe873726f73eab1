"""A shell command line as simple commands, as far as is needed to see what it does to files.

Quotes, escapes, comments, pipes, lists, redirections, here-documents, here-strings and substitutions are read as
POSIX and bash do; nothing is expanded and nothing is run. What cannot be parsed is read as far as it goes: this
looks at logs of what agents typed, so it must not fail on any of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

DEPTH = 6  # substitutions within substitutions that are looked into

_OPERATOR = re.compile(r"&&|\|\||\|&|;;|[;&|()\n]")
_REDIRECT = re.compile(r"<<<|<<-|<<|<&|<>|<|&>>|&>|>>|>\||>&|>")
_ESCAPED_IN_QUOTES = set('"\\$`\n')


@dataclass(slots=True)
class Command:
    """One simple command: words without their quotes, redirections as (operator, target), its here-document."""

    words: list[str] = field(default_factory=list)
    redirects: list[tuple[str, str]] = field(default_factory=list)
    stdin: str = ""  # here-document or here-string
    source: Command | None = None  # the command whose output is piped into this one


def parse(text: str, depth: int = 0) -> list[Command]:
    """All simple commands of a script in order, those in substitutions included."""
    return _Parser(text, depth).run()


class _Parser:
    def __init__(self, text: str, depth: int) -> None:
        self.text = text
        self.depth = depth
        self.at = 0
        self.done: list[Command] = []
        self.inner: list[Command] = []
        self.command = Command()
        self.word: str | None = None  # None between words, "" for an empty quoted one
        self.plain = True  # the word so far has no quotes: digits before > are a file descriptor
        self.expects = ""  # a redirection operator that still lacks its target
        self.pending: list[tuple[str, bool, Command]] = []  # here-documents: delimiter, tabs stripped, whose

    def run(self) -> list[Command]:
        text = self.text
        while self.at < len(text):
            char = text[self.at]
            if char == "\\":
                self._escape()
            elif char == "'":
                self._single()
            elif char == '"':
                self._double()
            elif char == "`" or text.startswith(("$(", "<(", ">("), self.at):
                self._substitution()
            elif char in " \t\r":
                self._end_word()
                self.at += 1
            elif char == "#" and self.word is None:
                self.at = self._line_end()
            elif match := _REDIRECT.match(text, self.at):
                self._redirect(match[0])
            elif match := _OPERATOR.match(text, self.at):
                self._operator(match[0])
            else:
                self.word = (self.word or "") + char
                self.at += 1
        self._end_command()
        return self.done + self.inner

    def _line_end(self) -> int:
        end = self.text.find("\n", self.at)
        return len(self.text) if end < 0 else end

    def _escape(self) -> None:
        following = self.text[self.at + 1 : self.at + 2]
        if following != "\n":
            self.word, self.plain = (self.word or "") + following, False
        self.at += 2

    def _single(self) -> None:
        end = self.text.find("'", self.at + 1)
        end = len(self.text) if end < 0 else end
        self.word, self.plain = (self.word or "") + self.text[self.at + 1 : end], False
        self.at = end + 1

    def _double(self) -> None:
        parts, at = [], self.at + 1
        while at < len(self.text) and self.text[at] != '"':
            if self.text[at] == "\\" and self.text[at + 1 : at + 2] in _ESCAPED_IN_QUOTES:
                parts.append(self.text[at + 1 : at + 2].replace("\n", ""))
                at += 2
            elif self.text.startswith("$(", at):
                end = self._closing(at + 2)
                self._look_into(self.text[at + 2 : end])
                parts.append(self.text[at : end + 1])
                at = end + 1
            else:
                parts.append(self.text[at])
                at += 1
        self.word, self.plain = (self.word or "") + "".join(parts), False
        self.at = at + 1

    def _substitution(self) -> None:
        if self.text[self.at] == "`":
            begin, end = self.at + 1, self.text.find("`", self.at + 1)
            end = len(self.text) if end < 0 else end
        else:
            begin = self.at + 2
            end = self._closing(begin)
        self._look_into(self.text[begin:end])
        self.word, self.plain = (self.word or "") + self.text[self.at : end + 1], False
        self.at = end + 1

    def _closing(self, at: int) -> int:
        """Where the parenthesis that was opened before `at` closes; quotes within are skipped."""
        level = 1
        while at < len(self.text):
            char = self.text[at]
            if char == "\\":
                at += 1
            elif char in "'\"":
                end = self.text.find(char, at + 1)
                at = len(self.text) if end < 0 else end
            elif char in "()":
                level += 1 if char == "(" else -1
                if not level:
                    return at
            at += 1
        return len(self.text)

    def _look_into(self, script: str) -> None:
        if self.depth < DEPTH:
            self.inner += parse(script, self.depth + 1)

    def _redirect(self, operator: str) -> None:
        if self.word is not None and self.plain and self.word.isdigit() and not operator.startswith("&"):
            descriptor, self.word = self.word, None
        else:
            descriptor = ""
            self._end_word()
        self.at += len(operator)
        if operator in ("<<", "<<-"):
            self._here_document(operator)
        else:
            # An error stream of its own is no output of the command.
            self.expects = f"2{operator}" if descriptor == "2" else operator

    def _here_document(self, operator: str) -> None:
        rest = re.compile(r"[ \t]*(?:'([^'\n]*)'|\"([^\"\n]*)\"|\\?([^\s;&|<>()'\"]+))").match(self.text, self.at)
        if rest:
            delimiter = next((g for g in rest.groups() if g is not None), "")
            self.pending.append((delimiter, operator == "<<-", self.command))
            self.at = rest.end()

    def _operator(self, operator: str) -> None:
        before = self.command
        self._end_command()
        self.at += len(operator)
        if operator == "\n":
            self._bodies()
            if before.source and not before.words:  # the line was broken after a pipe
                self.command.source = before.source
        elif operator in ("|", "|&"):
            self.command.source = before

    def _bodies(self) -> None:
        """The here-documents that were announced on the line that has just ended."""
        for delimiter, tabs, command in self.pending:
            lines = []
            while self.at < len(self.text):
                end = self._line_end()
                line = self.text[self.at : end].rstrip("\r")
                self.at = end + 1
                if (line.lstrip("\t") if tabs else line) == delimiter:
                    break
                lines.append(line.lstrip("\t") if tabs else line)
            command.stdin = "\n".join(lines) + "\n" if lines else ""
        self.pending = []

    def _end_word(self) -> None:
        if self.word is None:
            return
        if self.expects == "<<<":
            self.command.stdin = self.word
        elif self.expects:
            self.command.redirects.append((self.expects, self.word))
        else:
            self.command.words.append(self.word)
        self.word, self.plain, self.expects = None, True, ""

    def _end_command(self) -> None:
        self._end_word()
        self.expects = ""
        if self.command.words or self.command.redirects or any(c is self.command for _, _, c in self.pending):
            self.done.append(self.command)
        self.command = Command()
