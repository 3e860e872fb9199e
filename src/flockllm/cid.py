"""Names of content. The chain keeps digest and size; people and IPFS read the CID of the two."""

from base64 import b32decode, b32encode

from flockllm.dag import DAG_PB, RAW, UNIXFS, Bytes, cid_bytes
from flockllm.errors import StoreError


def digest_of(data: Bytes) -> bytes:
    """The 32 bytes that name `data` on chain: sha2-256 of the root of its UnixFS DAG."""
    for _, digest, _ in UNIXFS.blocks(data):
        root = digest
    return root


def cid_of(digest: bytes, size: int) -> str:
    """The CIDv1 that IPFS prints: `bafk…` for content of one leaf, `bafy…` above 1 MiB."""
    return cid_text(codec_of(size), digest)


def codec_of(size: int) -> int:
    """The codec of the root of a file."""
    return RAW if size <= UNIXFS.leaf else DAG_PB


def cid_text(codec: int, digest: bytes) -> str:
    """A CIDv1 in base32, whose length is always 59."""
    if len(digest) != 32:
        raise StoreError(f"a digest has 32 bytes, got {len(digest)}")
    return "b" + b32encode(cid_bytes(codec, digest)).decode().rstrip("=").lower()


def parse_cid(text: str) -> tuple[int, bytes]:
    """Codec (`RAW` or `DAG_PB`) and digest of a CID as `cid_of` writes it.

    Raises:
        StoreError: another version, base, codec or hash: not an address of this protocol.
    """
    try:
        raw = b32decode(text[1:].upper() + "=" * 6)
        codec, digest = raw[1], raw[4:]
    except (ValueError, IndexError):
        codec, digest = -1, b""
    if codec not in (RAW, DAG_PB) or len(digest) != 32 or cid_text(codec, digest) != text:
        raise StoreError(f"{text[:80]!r} is no CIDv1 in base32 with sha2-256, raw or dag-pb")
    return codec, digest
