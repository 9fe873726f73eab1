"""Numbers, truth values and dates of lent packages (sympy, mpmath, pandas, numpy's dates), as Python's own.

Used where a program's answer is encoded, inside the box: an honest program that answers `sympy.gcd(a, b)` has answered
an integer. Nothing here needs to be believed. Whatever a class pretends (registered as a number, a lying `__index__`),
what leaves the box is one plain value, equal to what that value is equal to; the program could have returned it.

A number is recognised by Python's own abstract classes (`numbers`), a constant of sympy (`sqrt(2)`, `pi`) by sympy. A
real number that no float hits exactly becomes the nearest one; what Python has no plain value for (a date with
nanoseconds, an interval, a symbol) stays an object.
"""

from __future__ import annotations

import datetime
import fractions
import math
import numbers
import operator
import sys
from typing import Any

NONE = object()


def plain(value: Any) -> object:
    """The bool, int, float, complex, Fraction, date or time that `value` stands for; NONE if there is none."""
    try:
        found = _plain(value)
    except Exception:  # a program's own class may raise anything
        return NONE
    # `operator.index`, `float` and `complex` give a subclass where the method gives one.
    return found if found is NONE or type(found) in _KINDS else NONE


_DATES = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
_KINDS = {bool, int, float, complex, fractions.Fraction, *_DATES}


def _plain(value: Any) -> object:
    if isinstance(value, _DATES):
        return _date(value)
    if (numpy := sys.modules.get("numpy")) is not None and isinstance(value, (numpy.datetime64, numpy.timedelta64)):
        item = value.item()  # an integer where it counts nanoseconds, or months
        return item if type(item) in _DATES else NONE
    if isinstance(value, numbers.Number):
        return _number(value)
    if (sympy := sys.modules.get("sympy")) is not None and isinstance(value, sympy.Basic):
        if value is sympy.true or value is sympy.false:
            return value is sympy.true
        return _number(value) if value.is_number else NONE
    return NONE


def _number(value: Any) -> object:
    if isinstance(value, numbers.Integral):
        return operator.index(value)
    if isinstance(value, numbers.Rational):
        return fractions.Fraction(operator.index(value.numerator), operator.index(value.denominator))
    try:
        near = float(value)
    except TypeError:
        return complex(value)
    if not abs(near) >= 1 << 53 or value == near:
        return near
    whole = int(value)  # there may be integers that floats are too short for
    if value == whole:
        return whole
    return NONE if math.isinf(near) else near


def _date(value: Any) -> object:
    """A subclass (pandas' Timestamp and Timedelta) as its base, where that says all that it says."""
    base: Any
    if isinstance(value, datetime.timedelta):
        base = datetime.timedelta(value.days, value.seconds, value.microseconds)
    else:
        kind: Any = next(k for k in _DATES if isinstance(value, k))
        base = kind.fromisoformat(kind.isoformat(value))
    return base if value == base else NONE  # not so: nanoseconds, NaT
