"""Many blocks as one stream: CAR version 1 (ipld.io/specs/transport/car/carv1)."""

import hashlib
from collections.abc import Iterable, Iterator

from flockllm.dag import UNIXFS, Bytes, cid_bytes, varint
from flockllm.errors import StoreError

HEADER_LIMIT = 1 << 16
"""Bytes of a header; ours has 59."""

CID_LENGTH = len(cid_bytes(0, bytes(32)))


def write_car(
    codec: int, digest: bytes, blocks: Iterable[tuple[int, bytes, Bytes]]
) -> Iterator[bytes]:
    """The stream, in pieces, whose root is `codec` and `digest`."""
    root = b"\x00" + cid_bytes(codec, digest)
    header = b"\xa2\x65roots\x81\xd8\x2a\x58" + bytes((len(root),)) + root + b"\x67version\x01"
    yield varint(len(header)) + header
    for block_codec, block_digest, block in blocks:
        yield varint(CID_LENGTH + len(block)) + cid_bytes(block_codec, block_digest)
        yield bytes(block)


def read_car(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Digest and bytes of the blocks of a stranger's stream, each checked.

    Holds one block at a time, whatever lengths the stream declares.

    Raises:
        StoreError: it is no CAR, a block is not what its CID says, or it ends in the middle.
    """
    stream = _Stream(chunk for chunk in chunks if chunk)
    stream.section(HEADER_LIMIT)
    while section := stream.section(CID_LENGTH + UNIXFS.leaf):
        cid, block = section[:CID_LENGTH], section[CID_LENGTH:]
        digest = hashlib.sha256(block).digest()
        if len(cid) < CID_LENGTH or cid != cid_bytes(cid[1], digest):
            raise StoreError("a block of the CAR is not what its CID says")
        yield digest, block


class _Stream:
    """Sections, each behind its length, of a stream that comes in chunks of any size."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()

    def section(self, limit: int) -> bytes:
        """The next section; empty at the end of the stream."""
        length = shift = 0
        while True:
            byte = self._take(1)
            if not byte and shift == 0:
                return b""
            if not byte or shift > 28:
                raise StoreError("the CAR ends in the middle, or is none")
            length |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                break
        if not 0 < length <= limit:
            raise StoreError(f"a section of the CAR has {length} bytes, at most {limit} allowed")
        section = self._take(length)
        if len(section) < length:
            raise StoreError("the CAR ends in the middle")
        return section

    def _take(self, count: int) -> bytes:
        """So many bytes; fewer only at the end of the stream."""
        while len(self._buffer) < count and (chunk := next(self._chunks, b"")):
            self._buffer += chunk
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken
