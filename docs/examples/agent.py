"""An agent that remembers: it asks for a program, checks it, shows the model its mistake, and writes all of that down.

    rune serve --registry memory/
    rune watch sessions/ --registry memory/ --project shop --still 0
    python docs/examples/agent.py "Write parse_date(text)." --check "python test_dates.py" --project shop

What it writes into sessions/ becomes an adapter of the project, and its next task is answered with it. The
check is a shell command in the current folder, where the program lies as solution.py; 0 means that it passed. It runs
what a model wrote: let it do so where nothing can be lost.
"""

import argparse
import json
import os
import re
import subprocess
import time
from pathlib import Path

import openai


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="what the program shall do")
    parser.add_argument("--check", required=True, help="a command that fails if solution.py is wrong")
    parser.add_argument("--project", default="shop")
    parser.add_argument("--sessions", type=Path, default=Path("sessions"))
    parser.add_argument("--tries", type=int, default=3)
    args = parser.parse_args()
    url = os.environ.get("RUNE_URL", "http://127.0.0.1:8000")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("RUNE_KEY", "none"))
    model = client.models.list().data[0].id  # the base model stands first

    messages, attempts, passed = [{"role": "user", "content": args.task}], [], False
    while len(attempts) < args.tries and not passed:
        try:
            answer = client.chat.completions.create(
                model=model, messages=messages, metadata={"project": args.project}, temperature=0
            )
        except openai.NotFoundError:  # nothing is remembered for this project yet
            answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
        text = answer.choices[0].message.content or ""
        fenced = re.search(r"```\w*\n(.*?)```", text, re.DOTALL)
        code = fenced[1] if fenced else text
        Path("solution.py").write_text(code, encoding="utf-8")
        done = subprocess.run(args.check, shell=True, capture_output=True, text=True)
        passed, error = done.returncode == 0, (done.stdout + done.stderr).strip()[-2000:]
        print(f"{answer.model}: {'passed' if passed else error.splitlines()[-1] if error else 'failed'}", flush=True)
        attempts.append(
            {"code": code, "outcome": "passed"}
            if passed
            else {"code": code, "outcome": "failed", "error_kind": "CheckFailed", "error": error}
        )
        messages += [
            {"role": "assistant", "content": text},
            {"role": "user", "content": f"The check says:\n{error}\nCorrect the program."},
        ]

    session = {
        "trajectory_id": f"agent-{time.time_ns()}",
        "task_id": args.task,
        "benchmark": "agent",
        "prompt": args.task,
        "attempts": attempts,
        "solution": code if passed else "",
    }
    args.sessions.mkdir(parents=True, exist_ok=True)
    partial = args.sessions / f"{session['trajectory_id']}.part"
    partial.write_text(json.dumps(session) + "\n", encoding="utf-8")
    partial.rename(partial.with_suffix(".jsonl"))  # nobody finds half of it
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
