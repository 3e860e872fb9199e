"""A file as blocks: UnixFS in the profile `unixfs-v1-2025` (IPIP-499).

Raw leaves of 1 MiB below a balanced tree of dag-pb nodes with up to 1024 links each; a file of
at most one leaf is that leaf. The profile leaves no choice: the size of a file fixes the shape of
its tree and every byte of a node but its children's digests. So a stranger's node is compared,
not believed, and no DAG can be deeper, wider or larger than the size that was asked for.

Nodes are protocol buffers: ipld.io/specs/codecs/dag-pb and specs.ipfs.tech/unixfs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from flockllm.errors import StoreError

RAW, DAG_PB = 0x55, 0x70
"""Multicodec numbers: a leaf is its bytes, a node is a protocol buffer."""

SHORTEST_LINK = 44
"""Bytes of a link in a node, at least; a shorter block is refused before much is computed."""

Bytes = bytes | memoryview


def cid_bytes(codec: int, digest: bytes) -> bytes:
    """The 36 bytes of a CIDv1 with a sha2-256 multihash."""
    return bytes((1, codec, 0x12, 0x20)) + digest


@dataclass(frozen=True)
class Profile:
    """How files are cut. Sizes are those of the file below a node; a leaf has depth 0."""

    leaf: int
    """Bytes in a leaf; only the last one of a file is shorter."""

    width: int
    """Links in a node; only the last node of a level has fewer."""

    def depth(self, size: int) -> int:
        """Levels of nodes above the leaves."""
        depth, span = 0, self.leaf
        while span < size:
            depth, span = depth + 1, span * self.width
        return depth

    def children(self, size: int, depth: int) -> list[int]:
        """Sizes of the children of a node; all stand at `depth - 1`."""
        span = self.leaf * self.width ** (depth - 1)
        full, rest = divmod(size, span)
        return [span] * full + [rest] * bool(rest)

    def node(self, size: int, depth: int, digests: Sequence[bytes]) -> bytes:
        """The one encoding of a node with these children."""
        sizes = self.children(size, depth)
        links = (
            self._link(child, depth, digest) for child, digest in zip(sizes, digests, strict=True)
        )
        file = b"\x08\x02\x18" + varint(size) + b"".join(b"\x20" + varint(s) for s in sizes)
        return b"".join(links) + b"\x0a" + varint(len(file)) + file

    def links(self, block: bytes, size: int, depth: int) -> list[bytes]:
        """The digests of a node's children.

        Raises:
            StoreError: `block` is not the node that this size prescribes.
        """
        sizes = self.children(size, depth)
        digests, at = [], 0
        for child in sizes if len(block) >= SHORTEST_LINK * len(sizes) else ():
            digests.append(bytes(block[at + 8 : at + 40]))
            at += len(self._link(child, depth, bytes(32)))
        if len(digests) < len(sizes) or self.node(size, depth, digests) != block:
            raise StoreError(f"not the tree of a file of {size} bytes in the agreed profile")
        return digests

    def declared_size(self, block: bytes) -> int | None:
        """The size of the file below a node; None if `block` is no node, that is: content."""
        at = 0
        while block[at : at + 1] == b"\x12" and at + 1 < len(block):
            at += 2 + block[at + 1]  # a link is always shorter than 128 bytes
        _, at = _read_varint(block, at + 1)
        size, _ = _read_varint(block, at + 3)
        depth = self.depth(size)
        if depth == 0:
            return None
        try:
            self.links(block, size, depth)
        except StoreError:
            return None
        return size

    def blocks(self, data: Bytes) -> Iterator[tuple[int, bytes, Bytes]]:
        """Codec, digest and bytes of every block: children before parents, the root last."""
        view = memoryview(data)
        digests = []
        for start in range(0, len(view) or 1, self.leaf):
            leaf = view[start : start + self.leaf]
            digests.append(hashlib.sha256(leaf).digest())
            yield RAW, digests[-1], leaf

        for depth in range(1, self.depth(len(view)) + 1):
            span = self.leaf * self.width**depth
            below, digests = digests, []
            for i, start in enumerate(range(0, len(view), span)):
                size = min(span, len(view) - start)
                block = self.node(size, depth, below[i * self.width : (i + 1) * self.width])
                digests.append(hashlib.sha256(block).digest())
                yield DAG_PB, digests[-1], block

    def total(self, size: int) -> int:
        """Bytes of all blocks of a file, a block that stands twice counted twice."""
        return _total(self, size, self.depth(size))

    def _link(self, child: int, depth: int, digest: bytes) -> bytes:
        """One PBLink of a node at `depth`: hash, empty name, bytes of all blocks below it."""
        cid = cid_bytes(DAG_PB if depth > 1 else RAW, digest)
        total = varint(_total(self, child, depth - 1))
        link = b"\x0a" + varint(len(cid)) + cid + b"\x12\x00\x18" + total
        return b"\x12" + varint(len(link)) + link


UNIXFS = Profile(leaf=1 << 20, width=1024)
"""The profile that digests on chain are of."""


@lru_cache(maxsize=256)
def _total(profile: Profile, size: int, depth: int) -> int:
    """Bytes of all blocks of a file whose root stands at `depth`."""
    if depth == 0:
        return size
    sizes = profile.children(size, depth)
    below = sum(_total(profile, child, depth - 1) for child in sizes)
    return below + len(profile.node(size, depth, [bytes(32)] * len(sizes)))


def varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends; at most nine bytes, and what is missing is zero."""
    value = 0
    for shift in range(0, 63, 7):
        byte = data[at] if at < len(data) else 0
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            break
    return value, at
