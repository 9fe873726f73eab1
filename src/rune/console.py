"""The terminal: results on stdout, everything else (progress, notes, warnings) on stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rune import interrupt

T = TypeVar("T")


_hushed = False


def hush() -> None:
    """Nothing but errors from here on: another process says it already."""
    global _hushed
    _hushed = True


def out(text: str = "") -> None:
    """A result: what a pipe would want."""
    if not _hushed:
        print(text, flush=True)


def note(text: str) -> None:
    """A remark for the person watching."""
    if not _hushed:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    note(f"warning: {text}")


class Progress:
    """A bar with rate and ETA on stderr; a plain line every ten seconds where stderr is no terminal.

    Use as a context manager. `total` may be None when unknown; `initial` is what a resumed run already has.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        unit: str = "it",
        initial: int = 0,
        pulse: Callable[[], Mapping[str, object]] | None = None,
    ) -> None:
        """`pulse` is asked every few seconds for fields to show, from a thread of its own: a unit may take minutes."""
        from tqdm import tqdm

        self._bar: Any = tqdm(
            desc=title,
            total=total,
            unit=f" {unit}",
            initial=initial,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            leave=True,
            disable=_hushed,
        )
        self._closed = threading.Event()
        if pulse is not None:
            threading.Thread(target=self._beat, args=(pulse,), daemon=True).start()

    def _beat(self, pulse: Callable[[], Mapping[str, object]]) -> None:
        while not self._closed.wait(self._bar.mininterval if self._bar.mininterval > 1 else 1.0):
            self._bar.set_postfix({k: str(v) for k, v in pulse().items()}, refresh=False)
            self._bar.refresh()

    def advance(self, amount: int = 1, **fields: object) -> None:
        """Move on by `amount`; `fields` stand at the end of the line (loss=0.31, alive=40).

        Raises KeyboardInterrupt if one was asked for and has been swallowed on its way.
        """
        if fields:
            self._bar.set_postfix({k: str(v) for k, v in fields.items()}, refresh=False)
        self._bar.update(amount)
        interrupt.check()

    def close(self) -> None:
        self._closed.set()
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(items: Iterable[T], title: str, *, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate with a progress bar."""
    with Progress(title, total, unit=unit) as bar:
        for item in items:
            yield item
            bar.advance()


def table(rows: list[tuple[object, ...]], header: tuple[str, ...]) -> str:
    """Plain columns for the terminal: numbers right, text left."""
    cells = [tuple(str(c) for c in row) for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(isinstance(row[i], (int, float)) for row in rows) and bool(rows) for i in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("─" * w for w in widths), *lines[1:]])
