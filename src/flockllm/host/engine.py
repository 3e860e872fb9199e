"""The queue and the one thread that runs the model for everybody."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

import torch

from flockllm.host.batch import Batch
from flockllm.host.decoding import Choice, Decoder, decoder
from flockllm.host.switch import Switch
from flockllm.host.text import Text

log = logging.getLogger(__name__)


class Busy(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One answer that is wanted."""

    prompt: Sequence[int]
    """Tokens, at least one."""
    adapter: int = 0
    """The adapter's number; 0 for the base model alone."""
    choice: Choice = field(default_factory=Choice)
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What became known of an answer in one step."""

    text: str
    tokens: int
    """Length of the answer so far."""
    finish: str = ""
    """In the last piece: `stop`, `length`, `closed` or `error`."""


Emit = Callable[[Piece], None]
"""Called in the engine's thread, once for each piece."""


class Answer:
    """An answer on its way. `cancel` ends it at the next step, without a last piece."""

    def __init__(self, ask: Ask, emit: Emit, tokenizer: Any, ends: frozenset[int]) -> None:
        self.ask = ask
        self.rows = 1
        self.told = 0
        """Tokens of the answer so far."""
        self._emit = emit
        self._decoder: Decoder = decoder(ask.choice, ends)
        self._text = Text(tokenizer, ask.stops)
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True

    def advance(self, logits: torch.Tensor) -> list[tuple[int, int]]:
        """The next rows; none when the answer is complete."""
        if self.cancelled:
            return []
        moves = self._decoder.advance(logits)
        tokens, finish = self._decoder.tokens, self._decoder.finish
        text = self._text.add(tokens[self.told :], last=bool(finish))
        self.told = len(tokens)
        if self._text.stopped:
            finish = "stop"
        if text or finish:
            self._emit(Piece(text, self.told, finish))
        return [] if finish else moves

    def end(self, finish: str) -> None:
        """Ends the answer where it is."""
        if not self.cancelled:
            self._emit(Piece("", self.told, finish))


class Engine:
    """Runs a model for many at once.

    Args:
        model: a causal language model.
        switch: chooses among its adapters.
        tokenizer: its tokenizer.
        ends: tokens that end an answer.
        max_rows: sequences that are advanced together; a beam is one.
        max_waiting: answers that wait for a row; further ones are refused.
    """

    def __init__(
        self,
        model: Any,
        switch: Switch,
        tokenizer: Any,
        ends: frozenset[int],
        *,
        max_rows: int = 16,
        max_waiting: int = 64,
    ) -> None:
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self._tokenizer, self._ends = tokenizer, ends
        self._batch = Batch(model, switch)
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._next: list[int] = []
        self._closed = False
        self._wake = Condition()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, asks: Sequence[Ask], emit: Callable[[int, Piece], None]) -> list[Answer]:
        """Queues all of them or none; `emit` gets an ask's index with each piece.

        Raises:
            Busy: too many wait.
        """
        answers = [
            Answer(ask, lambda piece, i=i: emit(i, piece), self._tokenizer, self._ends)  # type: ignore[misc]
            for i, ask in enumerate(asks)
        ]
        with self._wake:
            if self._closed or len(self._waiting) + len(asks) > self.max_waiting:
                raise Busy
            self._waiting += answers
            self._wake.notify()
        return answers

    @property
    def waiting(self) -> int:
        """Answers that wait for a row."""
        return len(self._waiting)

    @property
    def running(self) -> Sequence[Answer]:
        """Answers that have rows."""
        return tuple(self._running)

    def close(self) -> None:
        """Ends all answers at once; may be called from a signal handler."""
        self._closed = True
        Thread(target=self._notify, daemon=True).start()

    def join(self) -> None:
        """Waits until the thread has ended."""
        self._thread.join()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._closed:
                with self._wake:
                    self._wake.wait_for(lambda: self._closed or self._waiting or self._running)
                    new = self._admit()
                try:
                    self._advance(new)
                except Exception:
                    log.exception("generation failed; %d answers end", len(self._running + new))
                    self._end([*self._running, *new], "error")
        self._end([*self._running, *self._waiting], "closed")

    def _admit(self) -> list[Answer]:
        """Takes answers from the queue, in order, while there are rows for them."""
        new: list[Answer] = []
        free = self.max_rows - sum(answer.ask.choice.beams for answer in self._running)
        while self._waiting and self._waiting[0].ask.choice.beams <= free:
            answer = self._waiting.popleft()
            if not answer.cancelled:
                new.append(answer)
                free -= answer.ask.choice.beams
        return new

    def _advance(self, new: list[Answer]) -> None:
        """One step: a token for each running row, the first token for each new one."""
        parts = []
        if self._running:
            parts.append(self._batch.step(self._next))
        if new:
            prompts = [answer.ask.prompt for answer in new]
            parts.append(self._batch.join(prompts, [answer.ask.adapter for answer in new]))
        if not parts:
            return
        logits = torch.cat(parts).float().cpu()

        rows: list[int] = []
        tokens: list[int] = []
        running: list[Answer] = []
        first = 0
        for answer in [*self._running, *new]:
            moves = answer.advance(logits[first : first + answer.rows])
            rows += [first + row for row, _ in moves]
            tokens += [token for _, token in moves]
            first += answer.rows
            answer.rows = len(moves)
            if moves:
                running.append(answer)
        self._batch.keep(rows)
        self._running, self._next = running, tokens

    def _end(self, answers: Sequence[Answer], finish: str) -> None:
        self._batch.clear()
        self._running, self._next = [], []
        for answer in answers:
            answer.end(finish)
