"""Secrets and personal data out of text: keys, tokens, passwords, e-mail addresses, home folders.

Known key formats are matched by their shape; a value is also taken for a secret where an assignment, a header or a
URL says that it is one. What replaces it says what it was, has no line break, and is never matched again, so that a
patch keeps its line counts and redacting twice changes nothing. Every replacement is counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable

_MARK = "[redacted {}]"


class Redactor:
    """Redacts texts and counts what it found: `counts` maps a kind to its number."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, text: str) -> str:
        for kind, pattern, replace in _RULES:
            if kind not in _QUICK or any(word in text for word in _QUICK[kind]):
                text = pattern.sub(self._counted(kind, replace), text)
        return text

    def _counted(self, kind: str, replace: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
        def once(match: re.Match[str]) -> str:
            new = replace(match)
            if new != match[0]:
                self.counts[kind] += 1
            return new

        return once

    def summary(self) -> str:
        """ "redacted: 3 × e-mail address, 1 × API key", or "redacted: nothing"."""
        found = [f"{n} × {kind}" for kind, n in self.counts.most_common() if n]
        return f"redacted: {', '.join(found) or 'nothing'}"


def _whole(kind: str) -> Callable[[re.Match[str]], str]:
    return lambda match: _MARK.format(kind)


def _value(kind: str) -> Callable[[re.Match[str]], str]:
    """The group "value" alone is replaced."""

    def replace(match: re.Match[str]) -> str:
        start, end = match.start("value") - match.start(), match.end("value") - match.start()
        return match[0][:start] + _MARK.format(kind) + match[0][end:]

    return replace


def _if_random(kind: str) -> Callable[[re.Match[str]], str]:
    """A value that was assigned to something called a key or token, if it looks drawn, not written."""

    def replace(match: re.Match[str]) -> str:
        return _value(kind)(match) if _drawn(match["value"]) else match[0]

    return replace


def _drawn(value: str) -> bool:
    """Letters and digits mixed as no name mixes them, with as many bits a character as drawn ones have."""
    digits = sum(c.isdigit() for c in value)
    cases = re.search(r"[a-z]", value) and re.search(r"[A-Z]", value)
    if digits < 2 or digits == len(value) or not (cases or digits >= 0.15 * len(value)):
        return False
    counts = Counter(value)
    bits = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return bits >= 3.0


def _private_key(match: re.Match[str]) -> str:
    """The lines between BEGIN and END; a diff's first column and the number of lines stay."""
    head, *body, foot = match[0].split("\n")
    if not body:
        return re.sub(r"(?<=-----).+?(?=-----END)", _MARK.format("private key"), match[0], flags=re.DOTALL)
    kept = [(line[0] if line[:1] in ("+", "-", " ") else "") + _MARK.format("private key") for line in body]
    return "\n".join([head, *kept, foot])


def _home(match: re.Match[str]) -> str:
    return match[0] if match["name"] in _NO_PERSON else f"{match['base']}user"


# Accounts of images and services, and what our own replacement writes.
_NO_PERSON = {"user", "runner", "ubuntu", "ec2-user", "vscode", "codespace", "circleci", "Public", "Shared", "Default"}
_NO_PERSON |= {"openhands", "swe-agent", "jovyan", "vagrant", "coder", "gitpod", "linuxbrew", "app", "node", "build"}

_TLD = r"(?:com|org|net|edu|gov|mil|int|info|biz|name|example|test|invalid|local|localhost|[a-z]{2})"
_SECRET = r"(?:api[_-]?key|secret(?:[_-]?(?:access[_-]?)?key)?|access[_-]?(?:key|token)|auth[_-]?token|private[_-]?key"
_SECRET += r"|client[_-]?secret|bearer|token|credential)s?"
_PASSWORD = r"(?:password|passwd|passphrase|pwd)"
_KEYS = (
    r"sk-(?:ant-|proj-|svcacct-|or-v1-|lf-)?[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA|AGPA|AROA|ANPA)[A-Z0-9]{16}\b|AIza[\w-]{35}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{30,}"
    r"|pypi-AgE[\w-]{50,}|xox[abeoprs]-[\w-]{10,}|xapp-\d-[\w-]{20,}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|gsk_[A-Za-z0-9]{30,}|r8_[A-Za-z0-9]{30,}|tvly-[\w-]{20,}|dop_v1_[a-f0-9]{64}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|lin_api_[A-Za-z0-9]{30,}|ya29\.[\w-]{30,}|dckr_pat_[\w-]{20,}|nvapi-[\w-]{40,}|xai-[A-Za-z0-9]{40,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}|https://hooks\.slack\.com/services/[\w/]{20,}|AccountKey=[\w+/=]{40,}"
    r"|https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/\d+/[\w-]{40,}|\d{8,10}:AA[\w-]{33}(?![\w-])"
)

_RULES: list[tuple[str, re.Pattern[str], Callable[[re.Match[str]], str]]] = [
    (
        "private key",
        re.compile(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----(?!\s*\n?[ +-]?\[redacted)(?:(?!-----BEGIN).)*?"
            r"-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
            re.DOTALL,
        ),
        _private_key,
    ),
    ("API key or token", re.compile(rf"(?<![A-Za-z0-9])(?:{_KEYS})"), _whole("key")),
    (
        "password in a URL",
        re.compile(r"\b[a-zA-Z][\w+.-]*://[^\s:/@'\"<>]*:(?P<value>(?!\[redacted )[^\s/@'\"<>{}$]+)@(?=[\w\[])"),
        _value("password"),
    ),
    (
        "API key or token",
        re.compile(r"\b(?:Bearer|Basic|Token)\s+(?P<value>[A-Za-z0-9._~+/-]{16,}=*)", re.IGNORECASE),
        _if_random("token"),
    ),
    (
        "API key or token",
        re.compile(
            rf"(?i:{_SECRET})[\"']?\s*(?:[:=]|=>|:=)\s*[\"']?(?P<value>[A-Za-z0-9_+/.~-]{{16,}}=*)(?![\w(\[.])",
        ),
        _if_random("key"),
    ),
    (  # Forty characters of AWS are a secret whatever they look like: one in a hundred holds no two digits.
        "API key or token",
        re.compile(
            r"(?i:secret_?access_?key)[\"']?\s*(?:[:=]|=>)\s*[\"']?(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=(\[._])"
        ),
        _value("key"),
    ),
    (
        "password",
        re.compile(rf"(?i:{_PASSWORD})[\"']?\s*(?:[:=]|=>)\s*([\"'])(?P<value>(?!\[redacted )[^\"'\n]{{4,}})\1"),
        _value("password"),
    ),
    (
        "password",
        re.compile(
            r"\b[A-Z0-9_]*(?:PASSWORD|PASSWD|PASSPHRASE|PWD)=(?!None\b|True\b|False\b)"
            r"(?P<value>(?!\[redacted )[^\s\"'$()<>;,&|{}]{4,})(?![\w(.\[])"
        ),
        _value("password"),
    ),
    (  # Given on a command line: curl -u user:password, mysql -ppassword, sshpass -p password.
        "password",
        re.compile(
            r"\bcurl\b[^\n|;&]{0,400}?\s(?:-u|--user)[ =]?[\"']?[\w.@%+-]+:"
            r"(?P<value>(?!\[redacted )[^\s\"'$<>{}\[]{4,})"
        ),
        _value("password"),
    ),
    (
        "password",
        re.compile(
            r"\b(?:(?:mysql|mariadb)(?:dump|admin)?\b[^\n|;&]{0,400}?\s-p|sshpass\s+-p\s*)[\"']?"
            r"(?P<value>(?!\[redacted )[^\s\"'$<>{}\[-][^\s\"'$<>{}]{3,})"
        ),
        _value("password"),
    ),
    (  # a line of .netrc
        "password",
        re.compile(r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+(?P<value>(?!\[redacted )\S{4,})"),
        _value("password"),
    ),
    (
        "API key or token",
        re.compile(r"(?i:\bcookie:\s*)(?:[\w.-]+=[^;\n]*;\s*)*?[\w.-]+=(?P<value>[A-Za-z0-9_.~+/%-]{20,}=*)"),
        _if_random("token"),
    ),
    (
        "e-mail address",
        re.compile(rf"(?<![\w.+%/])(?!git@)[A-Za-z0-9][\w.+%-]*@(?:[A-Za-z0-9-]+\.)+{_TLD}\b(?![\w(\[]|\.\w)"),
        _whole("e-mail"),
    ),
    (
        "home folder",
        re.compile(
            r"(?P<base>(?:(?<![\w.-])|(?<=/mnt)|(?<=/nfs)|(?<=/net)|(?<=/data)|(?<=/export))/(?:home|Users)/"
            r"|(?<![\w.-])(?:/mnt)?/[a-z]/Users/|\b[A-Za-z]:\\{1,2}Users\\{1,2}|\b[A-Za-z]:/Users/"
            r"|(?<=/projects/)-(?:home|Users)-)"
            r"(?P<name>[A-Za-z0-9_][\w.]*(?:-(?!-)[\w.]+)*)"
        ),
        _home,
    ),
]
# Substrings without which a rule cannot match: most texts hold none, and long logs are many.
_QUICK: dict[str, tuple[str, ...]] = {
    "private key": ("PRIVATE KEY",),
    "password in a URL": ("://",),
    "e-mail address": ("@",),
}
_QUICK["home folder"] = ("/home/", "/Users/", "\\Users", "-home-", "-Users-")
