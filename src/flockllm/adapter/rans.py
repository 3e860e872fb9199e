"""Entropy coding of small numbers: interleaved range asymmetric numeral systems.

J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; lanes as in F. Giesen, "Interleaved entropy
coders", arXiv:1402.3392. A hundred lines of our own rather than zlib or zstd, because updates have
digests and are judged: a compressor's output depends on its version, and two decompressors need
not agree on what they refuse, while here each sequence has one valid stream, by construction, on
every machine. It also tells numbers in less than a bit, which Huffman codes cannot, and the length
of what comes out is an argument, not a claim of the stream.

A stream of n symbols has `lanes(n)` lanes; symbol i belongs to lane i mod lanes. A lane's state is
in [2¹⁶, 2³²) and starts at 2¹⁶; encoding runs from the last symbol to the first. Layout: the
frequencies (u16 each, their sum is 2¹⁴), the lanes' last states (u32 each), then words of 16 bits
in the order in which decoding asks for them, all little-endian.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flockllm.adapter.tensors import BLOCK, Data
from flockllm.errors import InvalidUpdate

SCALE = 14
"""Frequencies are counted in 2⁻¹⁴."""
LOW = 1 << 16
"""The smallest state; a word moves in or out to stay above it."""


def lanes(count: int) -> int:
    """Lanes that are coded side by side, a power of two: with 2 048 to 4 095 symbols each."""
    return 1 << max(0, (count >> 11).bit_length() - 1)


def frequencies(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Counts scaled to a sum of 2¹⁴: at least 1 for what occurs, the rest to the most frequent."""
    present = counts > 0
    spare = (1 << SCALE) - int(present.sum())
    scaled = np.where(present, 1 + counts * spare // max(1, counts.sum()), 0)
    scaled[counts.argmax()] += (1 << SCALE) - scaled.sum()
    return scaled.astype(np.uint32)


def encode(symbols: NDArray[np.uint8], alphabet: int) -> bytes:
    """The one stream of these symbols, each below `alphabet`."""
    table = frequencies(np.bincount(symbols, minlength=alphabet))
    begins = np.cumsum(table) - table
    width = lanes(len(symbols))
    states = np.full(width, LOW, np.uint64)
    words = np.empty(len(symbols), np.uint16)
    at = len(words)
    for start in reversed(range(0, len(symbols), width)):
        row = symbols[start : start + width]
        state, frequency = states[: len(row)], table[row].astype(np.uint64)
        full = state >= frequency << np.uint64(32 - SCALE)
        out = state[full]
        at -= len(out)
        words[at : at + len(out)] = out  # the low 16 bits
        state[full] = out >> np.uint64(16)
        quotient, rest = np.divmod(state, frequency)
        state[:] = (quotient << np.uint64(SCALE)) + rest + begins[row]
    parts = table.astype("<u2"), states.astype("<u4"), words[at:].astype("<u2", copy=False)
    return b"".join(part.tobytes() for part in parts)


def max_bytes(count: int, alphabet: int) -> int:
    """No stream of so many symbols is longer: a word for each would be more than any needs."""
    return 2 * alphabet + 4 * lanes(count) + 2 * count


def decode(data: Data, count: int, alphabet: int) -> tuple[NDArray[np.uint8], "Stream"]:
    """All symbols of a stranger's stream, and the stream for reading parts of it again.

    Raises:
        InvalidUpdate: anything but the stream that `encode` makes of `count` symbols.
    """
    width = lanes(count)
    head = 2 * alphabet + 4 * width
    if not head <= len(data) <= max_bytes(count, alphabet) or len(data) % 2:
        raise InvalidUpdate(f"{len(data)} bytes cannot be {count} symbols")
    table = np.frombuffer(data, "<u2", alphabet).astype(np.uint32)
    states = np.frombuffer(data, "<u4", width, 2 * alphabet).astype(np.uint32)
    if table.sum() != 1 << SCALE or states.min() < LOW:
        raise InvalidUpdate("frequencies or states are out of range")

    stream = Stream(np.frombuffer(data, "<u2", offset=head), table, count, [(states, 0)])
    symbols = np.empty(count, np.uint8)
    for start in range(0, count, stream.stride):
        states, at = stream.marks[-1]
        part = symbols[start : start + stream.stride]
        stream.marks.append(stream.read(states.copy(), at, part))

    states, at = stream.marks.pop()
    if (states != LOW).any() or at != len(stream.words):
        raise InvalidUpdate("the stream does not end where its symbols do")
    if (table != frequencies(np.bincount(symbols, minlength=alphabet))).any():
        raise InvalidUpdate("the frequencies are not those of the symbols")
    return symbols, stream


@dataclass(frozen=True, eq=False)
class Stream:
    """A valid stream, of which any part can be decoded without what is before it."""

    words: NDArray[np.uint16]
    table: NDArray[np.uint32]
    count: int
    marks: list[tuple[NDArray[np.uint32], int]]
    """States and place in `words` at every `stride` symbols."""

    @property
    def stride(self) -> int:
        """Symbols from one mark to the next: whole rows."""
        return max(BLOCK, lanes(self.count))

    def __getitem__(self, span: slice) -> NDArray[np.uint8]:
        mark = span.start // self.stride
        states, at = self.marks[mark]
        start = mark * self.stride
        symbols = np.empty(span.stop - start, np.uint8)
        self.read(states.copy(), at, symbols)
        return symbols[span.start - start :]

    def read(
        self, states: NDArray[np.uint32], at: int, into: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint32], int]:
        """Fills `into` from here on; returns where that ends. Changes `states`."""
        symbol_of = np.repeat(np.arange(len(self.table), dtype=np.uint8), self.table)
        begins = np.cumsum(self.table, dtype=np.uint32) - self.table
        slots = np.arange(1 << SCALE, dtype=np.uint32)
        frequency_of, place_of = self.table[symbol_of], slots - begins[symbol_of]
        mask, scale, word = np.uint32((1 << SCALE) - 1), np.uint32(SCALE), np.uint32(16)

        for start in range(0, len(into), len(states)):
            row = into[start : start + len(states)]
            state = states[: len(row)]
            slot = state & mask
            symbol_of.take(slot, out=row)
            state >>= scale
            state *= frequency_of.take(slot)
            state += place_of.take(slot)
            low = np.flatnonzero(state < LOW)
            if at + len(low) > len(self.words):
                raise InvalidUpdate("the stream ends before its symbols do")
            state[low] = state[low] << word | self.words[at : at + len(low)]
            at += len(low)
        return states, at
