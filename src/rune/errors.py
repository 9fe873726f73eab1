"""Everything Rune raises on purpose. Each message is one line: what was found, what would fit, what to type.

The command line prints the message and exits with `exit_code`; a traceback is a bug of ours.
An outcome of the *model* (wrong answer, timeout) is never an exception: it is a value of `types.Outcome`.
"""


class RuneError(Exception):
    """Base of every error that a user can act on."""

    exit_code = 2


class ConfigError(RuneError):
    """A setting, flag or argument that cannot be used; raised before any model is loaded."""


class DataError(RuneError):
    """A file whose content does not fit its schema; the message names file, line and field."""


class ContaminationError(DataError):
    """A held-out task, or something derived from one, where only training material may be."""


class ModelError(RuneError):
    """A base model that cannot be found, verified, converted or loaded."""


class AdapterError(RuneError):
    """An adapter that is corrupt, unsupported, dead (changes nothing) or made for another base model."""


class EngineError(RuneError):
    """A generation engine or server that failed; nothing it returned before is lost."""


class SandboxError(RuneError):
    """Broken scoring machinery. The sample is judged again; it never counts as a failed task.

    `key` is the `Program.key` of the one program that it is about, "" if about none; `reason` what was found.
    """

    def __init__(self, message: str, *, key: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.reason = reason or message


class StoreError(RuneError):
    """A run folder that cannot be written, is locked, or belongs to another configuration."""


class PhaseError(RuneError):
    """A phase that may not begin: the decision it waits for is missing, did not pass, or was changed."""


class GateError(RuneError):
    """A run that cannot be decided: missing verdicts, a changed pre-registration, a failed self-check."""


class NotEnoughSamples(GateError):
    """pass@k asked for with fewer than k samples of some task."""
