"""Function calls, read from what a model says in the form of Qwen and Hermes:

    <tool_call>
    {"name": "bash", "arguments": {"command": "ls"}}
    </tool_call>

The model's chat template shows it the tools and this form (`models/chat.py: takes_tools`). Nothing makes the model keep
to it: a call that is not written so is text, and the client sees it as text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from rune.models.chat import CALL

CALL_ENDS = "</tool_call>"
_CALLS = re.compile(rf"{CALL}(.*?)(?:{CALL_ENDS}|\Z)", re.DOTALL)


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
    calls = [_call(found[1]) for found in _CALLS.finditer(text)]
    good = [call for call in calls if call is not None]
    if not good or len(good) < len(calls):
        return Said(text, ())
    return Said(_CALLS.sub("", text).strip(), good)


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


def _call(text: str) -> Call | None:
    try:  # not strict: models put line breaks into strings as they are
        value = json.loads(text, strict=False, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
