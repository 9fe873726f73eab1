"""The command line. A verb is a file in this folder with `configure(parser)` and `run(args) -> int`.

Only the verb that was typed is imported, so `rune --help` answers at once and loads neither torch nor numpy.
Exit codes: 0 done (for `gate`: passed) · 1 a check found something · 2 bad input · 10 the gate failed · 130 stopped.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from rune import __version__, interrupt
from rune.errors import RuneError

VERBS: dict[str, str] = {
    "run": "a whole experiment: CONFIG → decision and report; --resume goes on",
    "collect": "trajectories by generate → execute → reflect, or --import FILE",
    "corpus": "training trajectories from MBPP and puzzles: break, run, repair",
    "train": "the static LoRA and the hypernetwork",
    "adapt": "adapters and contexts for every arm and task; or one from --trajectory FILE",
    "adapters": "the memory of adapters: add, list, select, compose, evolve, export",
    "checkpoints": "trained hypernetworks: which ship, what one is, a copy as int8",
    "serve": "OpenAI's interface over the model and the memory; learns from trajectories",
    "remember": "one adapter from an agent's sessions, kept in the memory",
    "watch": "learns from an agent's sessions as it writes them",
    "keys": "API keys of `rune serve`: add, list, revoke",
    "sample": "draw completions for every arm and task",
    "score": "judge a run's samples, or any samples FILE.jsonl of a benchmark",
    "gate": "decide: Gate PASSED or Gate FAILED — reassessing",
    "report": "write report.html and report.md of a run",
    "leakage": "look for held-out tasks in what trained or was retrieved",
    "track": "write a run to MLflow, again if the tracker was down",
    "compare": "several runs in one table and plot",
    "power": "what a gate of N tasks and k draws can see, before any GPU minute is spent",
    "preregister": "freeze hypothesis, arms, split, rule and analysis under a digest",
    "show": "what a run is, how far it is and what it found",
    "models": "list, pull or locate base models",
    "doctor": "what this machine can do: device, memory, sandbox, model cache",
}


# One for each verb, to copy; `.venv/bin/rune` where the environment is not activated.
EXAMPLES: dict[str, str] = {
    "run": "rune run configs/phase1-demo.toml --set sample.n=2",
    "collect": "rune collect --import trajectories/ -o corpus.jsonl",
    "corpus": "rune corpus --benchmark puzzles -o corpus.jsonl",
    "train": "rune train runs/phase1-demo-0123abcd",
    "adapt": "rune adapt --trajectory session.jsonl -o adapter/",
    "adapters": "rune adapters add adapter/ --project shop --domain dates",
    "checkpoints": "rune checkpoints compress checkpoints/hypernet -o small/",
    "serve": "rune serve --registry memory/ --port 8000",
    "remember": "rune remember session.jsonl --project shop --domain dates",
    "watch": "rune watch ~/.claude/projects --project shop",
    "keys": "rune keys add team --project shop",
    "sample": "rune sample runs/phase1-demo-0123abcd",
    "score": "rune score --benchmark humaneval samples.jsonl --problems HumanEval.jsonl.gz --k 1,10",
    "gate": "rune gate results/phase1-0.5b",
    "report": "rune report runs/phase1-demo-0123abcd",
    "leakage": "rune leakage runs/phase1-demo-0123abcd",
    "track": "rune track runs/phase1-demo-0123abcd",
    "compare": "rune compare runs/first-0123abcd runs/second-4567cdef",
    "power": "rune power configs/phase1-0.5b.toml",
    "preregister": "rune preregister configs/phase1-0.5b.toml",
    "show": "rune show runs/",
    "models": "rune models path qwen2.5-coder-0.5b-instruct",
    "doctor": "rune doctor --config configs/phase1-demo.toml",
}
_EXITS = "Exit codes: 0 done, 1 a check found something, 2 bad input, 10 the gate failed, 130 interrupted."

# Verbs that are gone: what does it now.
GONE = {
    "crossfit": "`rune run CONFIG` does it, with [design] folds and seeds in the config; `rune gate RUN` decides again"
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; try `{self.prog} --help`\n")


def _top(prog: str) -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name.ljust(width)}  {text}" for name, text in VERBS.items())
    return (
        f"usage: {prog} VERB …\n\n"
        "Does a LoRA generated from coding trajectories make a code model solve more unseen tasks?\n\n"
        f"{verbs}\n\n`{prog} VERB --help` (or `{prog} help VERB`) says more. "
        f"Start with `make demo` or `{prog} run configs/phase1-demo.toml`."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors of ours become one line on stderr."""
    args = list(sys.argv[1:] if argv is None else argv)
    _show_what_can_be_shown()
    if len(args) > 1 and args[0] == "help":
        args = [args[1], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(_top("rune"))
        return 0
    if args[0] in ("-V", "--version"):
        print(f"rune {__version__}")
        return 0
    verb = args[0]
    if verb in GONE:
        print(f"rune: there is no verb '{verb}' any more: {GONE[verb]}", file=sys.stderr)
        return 2
    if verb not in VERBS:
        from rune.plugins import unknown

        print(f"rune: {unknown('verb', verb, list(VERBS))}", file=sys.stderr)
        return 2
    # One progress bar at a time, and ours: the libraries' bars and hints would stand between its lines.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with interrupt.heard():
            module = importlib.import_module(f"rune.cli.{verb}")
            parser = _Parser(prog=f"rune {verb}", description=VERBS[verb])
            module.configure(parser)
            parser.formatter_class = argparse.RawDescriptionHelpFormatter
            said = f"{parser.epilog}\n" if parser.epilog else ""
            parser.epilog = f"{said}Example: {EXAMPLES[verb]}\n{_EXITS}"
            return int(module.run(parser.parse_args(args[1:])))
    except RuneError as error:
        print(f"rune: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nrune: interrupted; everything finished so far is kept, --resume goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:  # not about a file the user could mend
            raise
        print(f"rune: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def _one_line(text: str) -> str:
    """A message with the line breaks that a name or value from outside put into it shown, not obeyed."""
    return "".join(repr(c)[1:-1] if c.splitlines() == [""] else c for c in text.strip())


def _show_what_can_be_shown() -> None:
    """A terminal of another encoding than UTF-8 gets replacements; files are UTF-8 whatever the locale is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def entry() -> None:
    """The `rune` console script."""
    # Read when torch is loaded. By default its threads spin while they wait for each other: on cores that something
    # else uses too, a model's step on a CPU takes nine times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    code = 0
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
