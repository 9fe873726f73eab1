"""Secrets and personal data never reach the disk; code that only looks like them stays as it is."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune.cli.main import main
from rune.corpus import conversation, reading, statement
from rune.corpus.redact import Redactor
from tests.corpus.samples import OURS, SAMPLES, UPLOADED, call, tool, user

# Made up, in the shape of the real ones.
A = "a1B2c3D4e5F6g7H8i9J0"
SECRETS = {
    "API key or token": [
        f"sk-{A}{A}",
        f"sk-proj-{A}_{A}",
        f"sk-ant-api03-{A}-{A}",
        "AKIAABCDEFGHIJKLMNOP",
        f"ghp_{A}{A}",
        f"github_pat_{A}_{A}",
        f"glpat-{A}",
        f"hf_{A}{A}",
        f"AIza{A}{A[:15]}",
        f"xoxb-1234567890-{A}",
        f"sk_live_{A}",
        f"npm_{A}{A}",
        f"pypi-AgE{A}{A}{A}",
        f"eyJ{A}.eyJ{A}.{A}",
        f"https://hooks.slack.com/services/T0000/B0000/{A}",
        f"Authorization: Bearer {A}",
        f"OPENAI_API_KEY={A}",
        f'api_key = "{A}"',
        f"aws_secret_access_key: {A}{A}",
        f'"auth_token": "{A}"',
        f"export GITHUB_TOKEN='{A}'",
        f"https://discord.com/api/webhooks/123456789012345678/{A}{A}{A}",
        f"123456789:AA{A}{A[:13]}",
        f"curl -H 'Cookie: lang=en; session={A}' http://host",
        "aws_secret_access_key = SeCrEtWiThOuTaNyDiGiTsInItAnDfOrTyLong//",
    ],
    "password in a URL": [f"https://bob:{A}@host/x", f"postgres://u:{A}@db:5432/x", f"git clone https://x:{A}@h.org/r"],
    "password": [
        f'password = "{A}"',
        f"PASSWORD: '{A}'",
        f"MYSQL_ROOT_PASSWORD={A}",
        f'"passwd": "{A}"',
        f"curl -s -u admin:{A} http://host/x",
        f"curl --user='jane:{A}' http://host/x",
        f"mysql -h db -u root -p{A} shop",
        f"mysqldump --all -p'{A}' shop",
        f"sshpass -p {A} ssh host",
        f"machine host login jane password {A}",
    ],
    "e-mail address": ["jane.doe+x@corp.example.com", "<a_b@c.de>", "mailto:me@sub.domain.org"],
    "home folder": [
        "/home/alice/code",
        "/Users/bob.smith/code",
        "C:\\Users\\carol\\x",
        "/mnt/c/Users/carol/x",
        "/c/Users/carol/x",
        "C:\\\\Users\\\\dave\\\\x",
        "file:///home/erin/x.py",
        "~/.claude/projects/-Users-frank-code/x",
    ],
    "private key": [f"-----BEGIN RSA PRIVATE KEY-----\n{A}\n{A}\n-----END RSA PRIVATE KEY-----"],
}
NAMES = ["alice", "bob.smith", "carol", "dave", "erin", "frank", "jane.doe", "a_b@", "me@", "SeCrEt", A]
CODE = [
    "password = form.cleaned_data['password']",
    "token = tokens[0]",
    "self.token = get_token_from_request_v2(request)",
    "api_key=os.environ['OPENAI_API_KEY']",
    "token_type_ids=tokenized_inputs",
    "access_token: foo.bar.baz_token_name1",
    "y = x@self.weight + W@h.T",
    "@pytest.mark.parametrize",
    "git clone git@github.com:owner/repo.git",
    "pip install package@1.2.3 @types/node@latest",
    "http://localhost:8000/a@b",
    "https://user@host/x",
    "/home/user/code",
    "/usr/lib/home/x",
    "if password == '':",
    "def check(password: str, token: str) -> None:",
    "commit 3ea751c087f32b16e039a2233dd6eefecef325d5",
    "index 20edef5..5857437 100755",
    "sha256:99a5b822202b4a5d8d9d8d3b0b7e6b5a",
    "secret_key = 'dev'",
    "secret_access_key = self.settings_of_the_store_that_is_used_here",
    "git diff a/Users/b.py",
    "at 12:AA in the morning",
    "sk-learn-contrib-py is a name",
    "curl -u user http://host:8080/x",
    "curl -L https://host/a:bcdef -o x",
    "mysql -u root -p shop",
    "mkdir -p build && mysql --version",
    "sshpass -p $PASS ssh host",
    "login form password field",
    "Cookie: theme=dark; lang=en",
]


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in SECRETS.items() for t in texts])
def test_a_secret_is_replaced_counted_and_not_found_again(kind: str, text: str) -> None:
    redact = Redactor()
    shown = redact(f"before {text} after")
    assert not any(name in shown for name in NAMES), shown
    assert redact.counts[kind] == 1, redact.counts
    assert shown.startswith("before ") and shown.endswith(" after")
    again = Redactor()
    assert again(shown) == shown and not any(again.counts.values())


@pytest.mark.parametrize("text", CODE)
def test_code_that_is_no_secret_stays(text: str) -> None:
    redact = Redactor()
    assert redact(text) == text


def test_a_redacted_patch_keeps_its_lines() -> None:
    patch = (
        "--- a/k.pem\n+++ b/k.pem\n@@ -1,4 +1,4 @@\n -----BEGIN PRIVATE KEY-----\n-AAAA1\n+BBBB2\n CCCC3\n"
        f" -----END PRIVATE KEY-----\n+password = '{A}'\n"
    )
    shown = Redactor()(patch)
    assert [line[:1] for line in shown.split("\n")] == [line[:1] for line in patch.split("\n")]
    assert not any(part in shown for part in ("AAAA1", "BBBB2", "CCCC3", A))


def every_place(secret: str) -> dict[str, object]:
    """A session with one secret in the task, a command, an answer and the patch."""
    patch = f"--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b = '{secret}'\n"
    messages = [
        user(UPLOADED.replace("half(3)", f"half({secret})")),
        call("c", "bash", command=f"echo '{secret}' > x.py"),
        tool("c", "y" * 990 + f" {secret} " + "z" * 3000),  # where the text is cut
    ]
    return {"instance_id": "demo__calc-1", "messages": messages, "patch": patch}


@pytest.mark.parametrize("kind", [k for k in SECRETS if k != "private key"])
def test_nothing_of_it_is_written_and_the_summary_counts_it(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, secret in enumerate(SECRETS[kind]):
        if "'" in secret:
            continue
        path, out = tmp_path / f"{number}.jsonl", tmp_path / "out.jsonl"
        path.write_text(json.dumps(every_place(secret)) + "\n")
        assert main(["collect", "--import", str(path), "-o", str(out)]) == 0
        written = out.read_text()
        assert not any(name in written for name in NAMES), written
        assert f"redacted: 4 × {kind}" in capsys.readouterr().err


def test_a_summary_without_secrets_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(OURS) + "\n")
    assert main(["collect", "--import", str(path), "-o", str(tmp_path / "out.jsonl")]) == 0
    assert "redacted: nothing" in capsys.readouterr().err


def test_our_own_records_and_names_of_files_and_sessions_are_redacted_too(tmp_path: Path) -> None:
    secret = f"sk-{A}{A}"
    record = json.loads(
        json.dumps(OURS).replace("x // 2", secret).replace("x / 2", secret).replace("mine/1", "a@b.com")
    )
    path = tmp_path / f"key-{secret}.jsonl"
    path.write_text(json.dumps(record) + "\n")
    found = reading.read_all([path])
    (trajectory,) = found.trajectories
    assert secret not in repr(trajectory) and "a@b.com" not in repr(trajectory)
    assert trajectory.solution == trajectory.attempts[-1].code
    assert found.redactor.counts["API key or token"] == 2  # two attempts; the solution is one of them
    claude = SAMPLES["claude_code"][0].record
    path.write_text("".join(json.dumps(line) + "\n" for line in claude).replace("5e55-10", "-home-alice@c.de"))
    (trajectory,) = reading.read(path)
    assert "alice" not in repr(trajectory)


def test_what_was_redacted_and_left_out_is_recorded_for_corpus_json(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    nothing = {"instance_id": "x", "messages": [user("look")]}
    path.write_text("".join(json.dumps(r) + "\n" for r in (every_place("jane.doe@corp.example.com"), nothing)))
    assert reading.read_all([path]).record() == {"redacted": {"e-mail address": 4}, "left_out": 1}
    assert reading.read_all([]).record() == {}


@pytest.mark.parametrize(
    "part", ["-----BEGIN PRIVATE KEY-----\n", "<issue>\n", "<function=x>", "<system-reminder>", "a@a."]
)
def test_openings_that_are_never_closed_do_not_hang(part: str) -> None:
    """Quadratic patterns took minutes on these; linear ones take none of the test's time limit."""
    text = part * 20000
    with signal_after(20):
        assert Redactor()(text)
        assert statement.find(text)
        conversation.steps([{"role": "assistant", "content": text}], "f:1")


@contextlib.contextmanager
def signal_after(cpu_seconds: float) -> Iterator[None]:
    """Raises TimeoutError after so much processor time of this process: other load does not count."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
