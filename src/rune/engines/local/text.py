"""From token ids to text, fast enough to look for stop strings in a thousand rows between two steps."""

from __future__ import annotations

import bisect
import codecs
import copy
from collections.abc import Sequence
from typing import Any, NamedTuple


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-in of every byte in byte-level BPE vocabularies (Radford et al. 2019) → the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Detokenizer:
    """Bytes of a token, by table. Special tokens are no text, as under `skip_special_tokens`.

    A tokenizer that is not byte-level (SentencePiece) has no such table; then each row is decoded whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _byte_alphabet()
        self._known: dict[int, bytes] = {}
        added = tokenizer.added_tokens_decoder
        self._special = {token for token, spec in added.items() if spec.special}
        self._names = {token: spec.content for token, spec in added.items()}
        self._literal = {token: spec.content for token, spec in added.items() if not spec.special}
        probe = 'def f(x):\n    return "ü" + x  # 1\n'
        ids = tokenizer(probe, add_special_tokens=False)["input_ids"]
        try:
            self.bytewise = b"".join(self.bytes_of(token) for token in ids).decode() == probe
        except (KeyError, UnicodeDecodeError, TypeError):
            self.bytewise = False

    def bytes_of(self, token: int) -> bytes:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._look_up(token)
        return known

    def text(self, tokens: Sequence[int]) -> str:
        if not self.bytewise:
            text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return text
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", errors="replace")

    def name_of(self, token: int) -> bytes:
        """What a reader sees of one token alone, special ones by their names."""
        if token in self._special:
            return self._names[token].encode()
        return self.bytes_of(token) if self.bytewise else str(self._tokenizer.decode([token])).encode()

    def _look_up(self, token: int) -> bytes:
        if token in self._special:
            return b""
        if token in self._literal:
            return self._literal[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a padded vocabulary has rows that no token owns
            return b""
        return bytes(self._alphabet[character] for character in piece)


class StopWatch:
    """Finds the first token after which a row's text holds a stop string."""

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(string.encode() for string in stop if string)
        self._keep = max((len(string) for string in self._stop), default=1) - 1
        self._tail = b""
        self._seen: list[int] = []

    def fresh(self) -> StopWatch:
        """A watch for the same strings that has seen nothing."""
        other = copy.copy(self)
        other._tail, other._seen = b"", []
        return other

    def push(self, tokens: Sequence[int]) -> int | None:
        """Index in `tokens` of the token that completes a stop string, or None."""
        if not self._stop:
            return None
        if not self._detokenizer.bytewise:
            return self._push_whole(tokens)
        pieces = [self._detokenizer.bytes_of(token) for token in tokens]
        text = self._tail + b"".join(pieces)
        if any(string in text for string in self._stop):
            grown = self._tail
            for index, piece in enumerate(pieces):
                grown += piece
                if any(string in grown for string in self._stop):
                    return index
        self._tail = text[-self._keep :] if self._keep else b""
        return None

    def _push_whole(self, tokens: Sequence[int]) -> int | None:
        for index, token in enumerate(tokens):
            self._seen.append(token)
            if any(string in self._detokenizer.text(self._seen).encode() for string in self._stop):
                return index
        return None


class Shown(NamedTuple):
    """What may be shown now that could not before: text, and how many tokens in all begin within what is shown."""

    text: str
    tokens: int


class Unfolding:
    """A row's text as it grows: never a part of a character, nor what may turn out to begin a stop string.

    The pieces, joined, are the row's text before its first stop string, whatever the bursts that it came in.
    """

    def __init__(self, detokenizer: Detokenizer, stop: tuple[str, ...]) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(string.encode() for string in stop if string)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._seen: list[int] = []  # only where a token has no bytes of its own
        self._starts: list[int] = []  # of each token, in bytes
        self._held, self._length, self._shown, self._over = b"", 0, 0, False

    def push(self, tokens: Sequence[int], *, last: bool = False) -> Shown:
        """`tokens` have come, the one that ends the row not among them; `last`: there will be no more."""
        self._held += self._bytes(tokens, last)
        places = [place for place in (self._held.find(string) for string in self._stop) if place >= 0]
        safe = min(places) if places else len(self._held) - (0 if last else self._maybe_stop())
        piece, self._held = self._held[:safe], self._held[safe:]
        if self._over:
            piece = b""
        self._shown += len(piece)
        text = self._decoder.decode(piece, final=last or bool(places))
        if places:
            self._over, self._held = True, b""
        incomplete = len(self._decoder.getstate()[0])
        shown = self._shown - incomplete
        return Shown(text, bisect.bisect_left(self._starts, shown))

    def _bytes(self, tokens: Sequence[int], last: bool) -> bytes:
        if self._detokenizer.bytewise:
            pieces = [self._detokenizer.bytes_of(token) for token in tokens]
            for piece in pieces:
                self._starts.append(self._length)
                self._length += len(piece)
            return b"".join(pieces)
        for token in tokens:
            self._starts.append(len(self._whole(self._seen, last=False)))
            self._seen.append(token)
        whole = self._whole(self._seen, last=last)
        grown, self._length = whole[self._length :], len(whole)
        return grown

    def _whole(self, tokens: Sequence[int], *, last: bool) -> bytes:
        text = self._detokenizer.text(tokens)
        # A replacement character at the end is a part of a character, as yet.
        return (text if last else text.rstrip("\ufffd")).encode()

    def _maybe_stop(self) -> int:
        """How many of the last bytes held may be the beginning of a stop string."""
        longest = max((len(string) for string in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-size:]) for string in self._stop):
                return size
        return 0
