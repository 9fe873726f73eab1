"""A session goes in, and the same question's answer changes: `rune serve` with the real 0.5B on two CPU cores, by curl.

    python bench/remember.py [--conventions 8] [--out results/bench-remember-cpu.json] [--check]

The questions are tasks of private conventions that the shipped hypernetwork did not learn from (docs/families.md); a
session holds the trajectories of three other tasks of the convention. For each convention: the base model is asked, the
session is uploaded, the adapter is asked the same as a stream; both answers are judged by the task's tests in the
sandbox. `first_token_seconds` runs from the start of the upload's curl to the first text of the stream; `cpu_seconds`
is what the server's process used of both cores meanwhile, whatever else the machine did (`load`). At last the commands
that README shows are run as they stand there, but for the address and the folder. `--check` exits 1 if an answer does
not change from wrong to right, or the median first token comes after 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from rune import prompts
from rune.benchmarks import families
from rune.benchmarks.scorers import execution
from rune.benchmarks.scorers.judging import Item
from rune.runs import store
from rune.sandbox import fork
from rune.types import Outcome, Problem, Split, Trajectory

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
MODEL = "qwen2.5-coder-0.5b-instruct"
HELD_OUT = families.Config(seed=0, families=1800, held_out=64, tasks=6)  # of configs/families-0.5b.toml
SHOWN = "number._.void.px.harrow"  # the convention of the files in docs/examples
SIBLINGS, CORES, MOST_SECONDS = 3, 2, 5.0
ADDRESS, REGISTRY = "localhost:8000", "memory/"
COMMANDS = (
    f"rune serve --registry {REGISTRY} &",
    f'ask() {{ curl -s {ADDRESS}/v1/chat/completions -d "$(sed "s/MODEL/$1/" docs/examples/question.json)"; }}',
    f"ask {MODEL} | jq -r '.choices[0].message.content'",
    f"curl -s '{ADDRESS}/v1/trajectories?alias=house' --data-binary @docs/examples/house.jsonl | jq -r .id",
    "ask house | jq -r '.choices[0].message.content'",
)


def main() -> int:
    args = arguments()
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    trained = set(json.loads((ROOT / "results" / "hypernet-0.5b" / "settings.json").read_text())["trained_on"])
    problems = [p for p in families.generate(HELD_OUT) if p.split is Split.HELD_OUT]
    domains = sorted({p.domain for p in problems})
    chosen = [SHOWN, *(d for d in domains[:: max(1, len(domains) // args.conventions)] if d != SHOWN)]
    chosen = chosen[: args.conventions]
    tasks = {d: next(p for p in problems if p.domain == d) for d in chosen}
    assert not trained & {p.task_id for p in problems if p.domain in chosen}, "the hypernetwork learned from these"
    sessions = {d: session([p for p in problems if p.domain == d], tasks[d]) for d in chosen}
    EXAMPLES.joinpath("question.json").write_text(question("MODEL", tasks[SHOWN]), encoding="utf-8")
    store.write_jsonl(EXAMPLES / "house.jsonl", sessions[SHOWN])

    sandbox = fork.build(fork.Config(workers=1))
    with tempfile.TemporaryDirectory(prefix="rune-bench-remember-") as scratch:
        root = Path(scratch)
        with (root / "log").open("wb") as log:
            command = [sys.executable, "-m", "rune", "serve", "--registry", str(root / "memory"), "--port", "0"]
            command += ["--set", "serve.request_seconds=1800"]  # on a busy machine too
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment())
            assert server.stdout is not None
            url = server.stdout.readline().decode().strip()
            try:
                if not url:
                    raise SystemExit((root / "log").read_text(encoding="utf-8")[-2000:])
                process = psutil.Process(server.pid)
                rows = [one(url, root, process, sandbox, tasks[d], sessions[d]) for d in chosen]
                shown = as_shown(url, sandbox, tasks[SHOWN])
                memory = process.memory_info().rss
            finally:
                server.terminate()
                server.wait(60)
    sandbox.close()
    changed = sum(row["before"] != "passed" and row["after"] == "passed" for row in rows)
    seconds = [row["first_token_seconds"] for row in rows]
    result = {
        "date": store.now()[:10],
        "machine": {"cores": len(cores), "processor": platform.machine(), "python": platform.python_version()},
        "model": MODEL,
        "conventions": len(rows),
        "changed_from_wrong_to_right": changed,
        "first_token_seconds": {"median": round(statistics.median(seconds), 2), "most": max(seconds)},
        "cpu_seconds": {"median": round(statistics.median([row["cpu_seconds"] for row in rows]), 2)},
        "load": {"median": statistics.median([row["load"] for row in rows])},
        "memory_mb": round(memory / 1e6),
        "commands": COMMANDS,
        "shown": shown,
        "rows": rows,
    }
    store.write_json(args.out, result)
    print(json.dumps(result, indent=2, ensure_ascii=False))
    sound = changed == len(rows) and statistics.median(seconds) <= MOST_SECONDS
    return 0 if sound or not args.check else 1


def session(problems: list[Problem], asked: Problem) -> list[Trajectory]:
    """One trajectory of each of three other tasks of the convention."""
    found: dict[str, Trajectory] = {}
    for trajectory in families.trajectories(problems, None, seed=HELD_OUT.seed):
        if trajectory.task_id != asked.task_id:
            found.setdefault(trajectory.task_id, trajectory)
    return list(found.values())[:SIBLINGS]


def question(model: str, problem: Problem, **more: Any) -> str:
    message = {"role": "user", "content": problem.prompt.strip()}
    return json.dumps({"model": model, "temperature": 0, "max_tokens": 150, "messages": [message], **more}) + "\n"


def one(
    url: str, root: Path, process: psutil.Process, sandbox: Any, problem: Problem, trajectories: list[Trajectory]
) -> dict[str, Any]:
    """The base model's answer, the upload, the adapter's answer to the same, and how long it took to begin."""
    store.write_jsonl(root / "session.jsonl", trajectories)
    said = curl(f"{url}/v1/chat/completions", "-d", question(MODEL, problem))
    before = said["choices"][0]["message"]["content"]
    used, started = sum(process.cpu_times()[:2]), time.monotonic()
    made = curl(f"{url}/v1/trajectories", "--data-binary", f"@{root / 'session.jsonl'}")
    uploaded = time.monotonic() - started
    ask = ["curl", "-sN", f"{url}/v1/chat/completions", "-d", question(made["id"], problem, stream=True)]
    first, cpu, text = 0.0, 0.0, ""
    with subprocess.Popen(ask, stdout=subprocess.PIPE) as streaming:
        assert streaming.stdout is not None
        for line in streaming.stdout:
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                if text and not first:
                    first, cpu = time.monotonic() - started, sum(process.cpu_times()[:2]) - used
    return {
        "task": problem.task_id,
        "before": verdict(sandbox, problem, before),
        "after": verdict(sandbox, problem, text),
        "upload_seconds": round(uploaded, 2),
        "first_token_seconds": round(first, 2),
        "cpu_seconds": round(cpu, 2),
        "load": round(os.getloadavg()[0], 1),
        "answers": [before, text],
    }


def as_shown(url: str, sandbox: Any, problem: Problem) -> Mapping[str, Any]:
    """README's commands after the first, run by bash in the repository; what the two answers are worth."""
    script = "\n".join(["set -euo pipefail", *COMMANDS[1:]]).replace(ADDRESS, url.removeprefix("http://"))
    marked = script.replace("\ncurl", "\nprintf '\\0'; curl").replace("\nask house", "\nprintf '\\0'; ask house")
    done = subprocess.run(["bash", "-c", marked], cwd=ROOT, capture_output=True, text=True, check=True)
    before, identity, after = done.stdout.split("\0")
    return {
        "task": problem.task_id,
        "adapter": identity.strip(),
        "before": verdict(sandbox, problem, before),
        "after": verdict(sandbox, problem, after),
    }


def verdict(sandbox: Any, problem: Problem, text: str) -> str:
    """ "passed", or what kind of error its tests find."""
    program = prompts.extract(text, prompt=problem.prompt, entry_point=problem.entry_point)
    (found,) = execution.judge(sandbox, [Item(problem.task_id, problem, program)])
    return "passed" if found.outcome is Outcome.PASSED else found.error_kind or str(found.outcome)


def curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise SystemExit(f"the server says: {answer['error']['message']}")
    return answer


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(CORES)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conventions", type=int, default=8, help="a minute each on two free cores")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench-remember-cpu.json")
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
