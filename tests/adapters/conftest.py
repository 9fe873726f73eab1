"""A trained hypernetwork for the tests that go from trajectories to adapters."""

from tests.train.train_setup import corpus, trained

__all__ = ["corpus", "trained"]
