"""Which token comes next: drawn, or by beam search. Logits in, rows and tokens out.

A decoder owns one row of a batch at first, and as many as it asks for later. `advance` takes
the logits of its rows and returns its next rows: which old row each continues, and with which
token. `tokens` are those of the answer that will not change any more.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Move = tuple[int, int]
"""(the decoder's row that is continued, the token it is continued with)"""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How tokens are chosen."""

    max_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that make up this probability (Holtzman et al., 2020)."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 for all."""
    beams: int = 1
    """Above 1: beam search; nothing is drawn then."""
    seed: int | None = None
    """Makes drawing repeatable."""


class Decoder(Protocol):
    """The state of one answer."""

    tokens: list[int]
    finish: str
    """Empty while it goes on, then `stop` or `length`."""

    def advance(self, logits: torch.Tensor) -> list[Move]:
        """Takes [rows, vocab]; no rows mean that the answer is complete."""
        ...


def decoder(choice: Choice, ends: frozenset[int]) -> Decoder:
    """The decoder for a choice; `ends` are the tokens that end an answer."""
    return Beams(choice, ends) if choice.beams > 1 else Draw(choice, ends)


class Draw:
    """One row; the next token is drawn from its logits."""

    def __init__(self, choice: Choice, ends: frozenset[int]) -> None:
        self._choice, self._ends = choice, ends
        self._random = torch.Generator()
        if choice.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(choice.seed)
        self.tokens: list[int] = []
        self.finish = ""

    def advance(self, logits: torch.Tensor) -> list[Move]:
        """Draws from logits [1, vocab]."""
        token = _draw(logits[0], self._choice, self._random)
        if token in self._ends:
            self.finish = "stop"
            return []
        self.tokens.append(token)
        if len(self.tokens) == self._choice.max_tokens:
            self.finish = "length"
        return [(0, token)]


def _draw(logits: torch.Tensor, choice: Choice, random: torch.Generator) -> int:
    if choice.temperature == 0:
        return int(logits.argmax())
    logits, tokens = logits.topk(min(choice.top_k or len(logits), len(logits)))
    shares = (logits / choice.temperature).softmax(0)
    shares[1:][shares.cumsum(0)[:-1] >= choice.top_p] = 0  # the likeliest always stays
    return int(tokens[torch.multinomial(shares, 1, generator=random)])


class Beams:
    """Beam search with scores divided by length, as `transformers` does it by default.

    A beam's score is the sum of its tokens' log-probabilities. The answer is the finished beam
    with the best score per token, and the search ends when none that goes on could beat the
    worst of the finished ones at its present length.
    """

    def __init__(self, choice: Choice, ends: frozenset[int]) -> None:
        self._choice, self._ends = choice, ends
        self._live: list[list[int]] = [[]]
        self._scores = torch.zeros(1)
        self._finished: list[tuple[float, list[int]]] = []
        self.tokens: list[int] = []
        self.finish = ""

    def advance(self, logits: torch.Tensor) -> list[Move]:
        """Continues with the best of all continuations, given logits [rows, vocab]."""
        beams, vocabulary = self._choice.beams, logits.shape[1]
        length = len(self._live[0]) + 1
        scores = (logits.log_softmax(1) + self._scores[:, None]).flatten()
        most = min(max(2, 1 + len(self._ends)) * beams, len(scores))
        best = [
            (score, *divmod(place, vocabulary))
            for score, place in zip(*(t.tolist() for t in scores.topk(most)), strict=True)
        ]
        full = length == self._choice.max_tokens
        for score, row, token in best[:beams]:
            if full or token in self._ends:
                ended = self._live[row] + [token] * (token not in self._ends)
                self._finished.append((score / length, ended))
        self._finished = heapq.nlargest(beams, self._finished, key=lambda f: f[0])

        going_on = [(s, r, t) for s, r, t in best if t not in self._ends][:beams]
        if full or not going_on or self._decided(going_on[0][0] / length):
            self.tokens = self._finished[0][1]
            self.finish = "length" if len(self.tokens) == self._choice.max_tokens else "stop"
            return []
        self._live = [self._live[row] + [token] for _, row, token in going_on]
        self._scores = torch.tensor([score for score, _, _ in going_on])
        self._settle()
        return [(row, token) for _, row, token in going_on]

    def _decided(self, best_going_on: float) -> bool:
        enough = len(self._finished) == self._choice.beams
        return enough and best_going_on <= self._finished[-1][0]

    def _settle(self) -> None:
        """What all beams begin with is settled: it can be shown before the search ends."""
        possible = self._live + [tokens for _, tokens in self._finished]
        self.tokens = common_prefix(possible, len(self.tokens))


def common_prefix(sequences: Sequence[list[int]], known: int = 0) -> list[int]:
    """What all sequences begin with, given that the first `known` elements are the same."""
    first = sequences[0]
    end = min(map(len, sequences))
    while known < end and all(sequence[known] == first[known] for sequence in sequences):
        known += 1
    return first[:known]
