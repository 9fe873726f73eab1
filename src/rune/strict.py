"""Plain data → typed values, strictly: what does not fit is refused with what was found and what would fit.

The one decoder of the values in settings (`config.build`) and in records (`runs.store.decode`). These differ in their
words and in the error that they raise, which is a `Dialect`; what fits is the same, but a setting must be finite.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from rune.errors import RuneError


class Dialect(NamedTuple):
    """How one kind of data speaks of itself."""

    error: type[RuneError]
    mapping: str  # what a mapping is called: "a section", "an object"
    show: Callable[[Any], str]  # a value as a message has it
    finite: bool  # refuses infinity and NaN
    record: Callable[[type, Mapping[str, Any], str], Any]  # fills a dataclass; the text says where it stands


def value(hint: Any, raw: Any, where: str, dialect: Dialect) -> Any:
    """`raw` as `hint` says. Raises the dialect's error; `where` names the place in it.

    Fits: str, int, bool; float, for which an int will do; None where the type has it; tuples of one type, from lists;
    mappings, by their values' type; Literal; an Enum's values; dataclasses; of a union the first that fits; Any.
    """
    if hint is str or hint is int or hint is bool:
        if type(raw) is hint:
            return raw
        raise dialect.error(f"{where}: expected {hint.__name__}, found {dialect.show(raw)}")
    if hint is Any:
        return raw
    if hint is float:
        return _number(raw, where, dialect)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        return _either(parts, raw, where, dialect)
    if origin is typing.Literal:
        if raw in parts:
            return raw
        close = difflib.get_close_matches(str(raw), [str(part) for part in parts], n=1)
        guess = f"; did you mean '{close[0]}'?" if close else ""
        raise dialect.error(f"{where}: {dialect.show(raw)} is not one of {', '.join(map(str, parts))}{guess}")
    if origin is tuple:
        if not isinstance(raw, (list, tuple)):
            raise dialect.error(f"{where}: expected a list, found {dialect.show(raw)}")
        return tuple(value(parts[0], item, f"{where}[{i}]", dialect) for i, item in enumerate(raw))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _demand_mapping(raw, where, dialect)
        return {key: value(parts[1], item, f"{where}.{key}", dialect) for key, item in raw.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        _demand_mapping(raw, where, dialect)
        return dialect.record(hint, raw, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(raw)
        except ValueError:
            names = ", ".join(str(member.value) for member in hint)
            raise dialect.error(f"{where}: {dialect.show(raw)} is not one of {names}") from None
    raise dialect.error(f"{where}: expected {getattr(hint, '__name__', hint)}, found {dialect.show(raw)}")


def _number(raw: Any, where: str, dialect: Dialect) -> float:
    if type(raw) not in (int, float):
        raise dialect.error(f"{where}: expected float, found {dialect.show(raw)}")
    try:
        number = float(raw)
    except OverflowError:  # a whole number beyond any float
        number = math.inf
        fits = False
    else:
        fits = math.isfinite(number) or not dialect.finite
    if not fits:
        raise dialect.error(f"{where}: expected a finite number, found {dialect.show(raw)}")
    return number


def _either(parts: tuple[Any, ...], raw: Any, where: str, dialect: Dialect) -> Any:
    """The first of a union's types that fits; the last one says what was wrong."""
    if raw is None and type(None) in parts:
        return None
    *first, last = [part for part in parts if part is not type(None)]
    for part in first:
        try:
            return value(part, raw, where, dialect)
        except dialect.error:
            continue
    return value(last, raw, where, dialect)


def _demand_mapping(raw: Any, where: str, dialect: Dialect) -> None:
    if not isinstance(raw, Mapping):
        raise dialect.error(f"{where}: expected {dialect.mapping}, found {dialect.show(raw)}")
