"""Tokens → text as they come, up to a stop sequence."""

from collections.abc import Sequence
from typing import Any


class Text:
    """Turns a growing answer into pieces that, joined, are its text.

    A piece is held back while it may still change: half of a character of several tokens, or
    the beginning of a stop sequence.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._tokens: list[int] = []
        self._start = self._read = 0
        self._held = ""
        self.stopped = False
        """Whether a stop sequence came; what follows it is dropped."""

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """The next piece. `last` gives out what was held back."""
        self._tokens += tokens
        if self.stopped:
            return ""
        self._held += self._decoded(last)
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            piece, self._held = self._held[: min(ends)], ""
            return piece
        safe = len(self._held) - (0 if last else self._maybe_stop())
        piece, self._held = self._held[:safe], self._held[safe:]
        return piece

    def _decoded(self, last: bool) -> str:
        """What new tokens add. They are decoded together with those just before them, because
        tokenizers treat the beginning of a text differently."""
        before = self._decode(self._tokens[self._start : self._read])
        now = self._decode(self._tokens[self._start :])
        if not last and now.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return now[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _maybe_stop(self) -> int:
        """Length of the longest end of what is held that a stop sequence begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
