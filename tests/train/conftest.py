"""Fixtures of this folder; the plain functions are in train_setup.py, so that child processes can import them."""

from tests.train.train_setup import corpus, trained

__all__ = ["corpus", "trained"]
