"""Function calls, read from what a model says in the form of Qwen and Hermes:

    <tool_call>
    {"name": "bash", "arguments": {"command": "ls"}}
    </tool_call>

The model's chat template shows it the tools and this form (`models/chat.py: takes_tools`). Nothing makes the model keep
to it: a call that is not written so is text, and the client sees it as text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from rune.models.chat import CALL

CALL_ENDS = "</tool_call>"


class Call(NamedTuple):
    """One function that the model wants to have called."""

    name: str
    arguments: str  # a JSON object

    def shown(self) -> dict[str, Any]:
        """As OpenAI's clients read it, under an id of its own."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class Said(NamedTuple):
    """An answer taken apart."""

    text: str  # outside of calls
    calls: Sequence[Call]


def read(text: str) -> Said:
    """A whole answer taken apart. Where one of its calls is broken, all of it is text: none is made by halves.

    The last call needs no end: the limit of tokens, or a stop string, may have cut it off.
    """
    outside, begins, rest = text.partition(CALL)
    calls: list[Call] = []
    while begins:
        try:
            value, ends = _JSON.raw_decode(rest := rest.lstrip())
            calls.append(_call(value))
        except (ValueError, RecursionError):
            return Said(text, ())
        rest = rest[ends:].lstrip()
        if not (rest.startswith(CALL_ENDS) or CALL_ENDS.startswith(rest)):
            return Said(text, ())
        between, begins, rest = rest[len(CALL_ENDS) :].partition(CALL)
        outside += between
    return Said(outside.strip(), calls) if calls else Said(text, ())


class CallReader:
    """The same for an answer that comes piece by piece."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """What may be shown of the text so far: not what is a call, or could become one."""
        self._held += text
        begins = self._held.find(CALL)
        if begins < 0:
            begins = len(self._held)
            for length in range(min(len(CALL) - 1, begins), 0, -1):
                if self._held.endswith(CALL[:length]):
                    begins -= length
                    break
        shown, self._held = self._held[:begins], self._held[begins:]
        return shown

    def end(self) -> Said:
        """After the last piece: what was held back."""
        return read(self._held)


def _call(value: Any) -> Call:
    """Raises ValueError for what is no call, or could not be sent as one: a lone half of a character, an infinity."""
    match value:
        case {"name": str(name), "arguments": dict(arguments)} if name:
            pass
        case {"name": str(name)} if name and "arguments" not in value:
            arguments = {}
        case _:
            raise ValueError("not a call")
    call = Call(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    "".join(call).encode()
    return call


_JSON = json.JSONDecoder(strict=False)  # models put line breaks into strings as they are
