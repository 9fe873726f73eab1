"""Rune: does a LoRA generated from coding trajectories make a code model solve more unseen tasks?"""

__version__ = "0.1.0"
