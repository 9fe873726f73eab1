"""Writes mini/*.traj.json with mini-swe-agent itself: its own agent, shell and config, and its scripted model.

    python3 -m venv /tmp/v1 && /tmp/v1/bin/pip install mini-swe-agent==1.17.5 && /tmp/v1/bin/python write_mini.py
    python3 -m venv /tmp/v2 && /tmp/v2/bin/pip install mini-swe-agent==2.4.6 && /tmp/v2/bin/python write_mini.py

Not run by the tests: they read what it wrote.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import minisweagent
import yaml
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models import test_models

REPOSITORY = Path("/tmp/testbed")
OUT = Path(__file__).parent / "mini"
HAND_IN = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && git add -A && git diff --cached"
COMMANDS = {
    "sed_twice": [
        "cat calc.py",
        "sed -i 's#x // 2#x / 3#' calc.py && python t.py",
        "sed -i 's#x / 3#x / 2#' calc.py && python t.py",
        HAND_IN,
    ],
    "heredoc": ["ls", "cat > calc.py <<'EOF'\ndef half(x):\n    return x / 2\nEOF", "python t.py", HAND_IN],
    "python_and_scratch": [
        "cat > repro.py <<'EOF'\nimport calc\nprint(calc.half(3))\nEOF\npython repro.py",
        "python - <<'EOF'\ns = open('calc.py').read()\nopen('calc.py', 'w').write(s.replace('//', '/'))\nEOF\n"
        "python repro.py",
        "rm repro.py",
        HAND_IN,
    ],
}


def repository() -> None:
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    REPOSITORY.mkdir()
    (REPOSITORY / "calc.py").write_text("def half(x):\n    return x // 2\n")
    (REPOSITORY / "t.py").write_text('import calc\nassert calc.half(3) == 1.5, calc.half(3)\nprint("ok")\n')
    commit = "git init -q . && git add -A && git -c user.name=t -c user.email=t@t commit -qm start"
    subprocess.run(commit, shell=True, cwd=REPOSITORY, check=True)


def model(kind: str, commands: list[str]) -> Any:
    actions = [{"command": c, "tool_call_id": f"c{i}"} for i, c in enumerate(commands)]
    if kind == "text":
        outputs = [
            test_models.make_output(f"THOUGHT: next.\n\n```mswea_bash_command\n{c}\n```", [{"command": c}])
            for c in commands
        ]
        return test_models.DeterministicModel(outputs=outputs)
    if kind == "response":
        outputs = [test_models.make_response_api_output(None, [a]) for a in actions]
        return test_models.DeterministicResponseAPIToolcallModel(outputs=outputs)
    calls = [
        {"id": a["tool_call_id"], "type": "function", "function": {"name": "bash", "arguments": json.dumps(a)}}
        for a in actions
    ]
    outputs = [test_models.make_toolcall_output(None, [c], [a]) for c, a in zip(calls, actions, strict=True)]
    return test_models.DeterministicToolcallModel(outputs=outputs)


def main() -> None:
    config = yaml.safe_load((Path(minisweagent.__file__).parent / "config" / "mini.yaml").read_text())["agent"]
    first = minisweagent.__version__.startswith("1.")
    names = ["system_template", "instance_template"]
    if first:
        names += ["action_observation_template", "format_error_template"]
    settings = {name: config[name] for name in names} | {"cost_limit": 100}
    OUT.mkdir(exist_ok=True)
    for name, commands in COMMANDS.items():
        if first:
            from minisweagent.run.utils.save import save_traj

            repository()
            outputs = [f"THOUGHT: next.\n\n```bash\n{c}\n```" for c in commands]
            agent = DefaultAgent(
                test_models.DeterministicModel(outputs=outputs), LocalEnvironment(cwd=str(REPOSITORY)), **settings
            )
            status, result = agent.run("half(3) should be 1.5")
            save_traj(agent, OUT / f"v1_{name}.traj.json", exit_status=status, result=result)
            continue
        for kind in ("tool", "response", "text"):
            repository()
            path = OUT / f"v2_{kind}_{name}.traj.json"
            environment = LocalEnvironment(cwd=str(REPOSITORY))
            DefaultAgent(model(kind, commands), environment, **settings, output_path=path).run("half(3) should be 1.5")


main()
