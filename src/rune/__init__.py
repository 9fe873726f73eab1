"""Rune: does a LoRA generated from coding trajectories make a code model solve more unseen tasks?"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`rune.remember` and `rune.chat`, loaded when they are first asked for: see `serving/library.py`."""
    if name in ("remember", "chat"):
        import importlib  # by name: every module imports `rune`, and none may rest on the server

        return getattr(importlib.import_module("rune.serving.library"), name)
    raise AttributeError(f"module 'rune' has no attribute '{name}'")
