"""Digests and CIDs: the shape of the tree, its encoding, and what strangers may say about it."""

import hashlib
import random

import pytest
from Crypto.Cipher import ChaCha20
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flockllm.cid import cid_of, digest_of, parse_cid
from flockllm.dag import DAG_PB, RAW, UNIXFS, Profile
from flockllm.errors import StoreError

unhurried = settings(deadline=None)
"""A busy machine is no failure."""

MIB = 1 << 20


def naive_root(data: bytes, leaf: int, width: int) -> tuple[int, bytes]:
    """Codec and digest of the root, built with lists of links as the specifications describe."""

    def varint(n):
        return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + varint(n // 128)

    def prefixed(tag, payload):
        return bytes([tag]) + varint(len(payload)) + payload

    chunks = [data[i : i + leaf] for i in range(0, len(data), leaf)] or [b""]
    level = [(RAW, hashlib.sha256(c).digest(), len(c), len(c)) for c in chunks]
    while len(level) > 1:
        above = []
        for i in range(0, len(level), width):
            links, sizes, total = b"", [], 0
            for codec, digest, size, tsize in level[i : i + width]:
                cid = bytes([1, codec, 0x12, 32]) + digest
                links += prefixed(0x12, prefixed(0x0A, cid) + b"\x12\x00\x18" + varint(tsize))
                sizes.append(size)
                total += tsize
            unixfs = b"\x08\x02\x18" + varint(sum(sizes))
            unixfs += b"".join(b"\x20" + varint(size) for size in sizes)
            node = links + prefixed(0x0A, unixfs)
            above.append((DAG_PB, hashlib.sha256(node).digest(), sum(sizes), total + len(node)))
        level = above
    return level[0][:2]


profiles = st.builds(Profile, leaf=st.integers(1, 5), width=st.integers(2, 4))


@unhurried
@given(profile=profiles, size=st.integers(0, 400), seed=st.integers(0, 2**32))
def test_the_tree_is_the_one_of_the_specification(profile, size, seed):
    """Whatever the size, the root equals that of an independent construction."""
    data = random.Random(seed).randbytes(size)
    *_, (codec, digest, block) = profile.blocks(data)

    assert (codec, digest) == naive_root(data, profile.leaf, profile.width)
    assert hashlib.sha256(block).digest() == digest
    assert profile.total(size) == sum(len(block) for _, _, block in profile.blocks(data))


@unhurried
@given(profile=profiles, size=st.integers(0, 400))
def test_a_node_says_its_size_and_its_children(profile, size):
    """What encoding writes, decoding reads: at the root, and all the way down to the data."""
    data = bytes(i % 251 for i in range(size))
    blocks = {digest: bytes(block) for _, digest, block in profile.blocks(data)}

    def read(digest, size, depth):
        if depth == 0:
            return blocks[digest]
        below = profile.links(blocks[digest], size, depth)
        children = zip(below, profile.children(size, depth), strict=True)
        return b"".join(read(child, part, depth - 1) for child, part in children)

    *_, (codec, root, block) = profile.blocks(data)
    assert read(root, size, profile.depth(size)) == data
    if codec == DAG_PB:
        assert profile.declared_size(block) == size


@unhurried
@given(
    size=st.integers(3, 60),
    at=st.integers(0, 400),
    cut=st.integers(0, 12),
    put=st.binary(max_size=12),
)
def test_an_edited_node_is_refused_or_differs_in_digests_only(size, at, cut, put):
    """A stranger chooses the digests below a node, and nothing else."""
    profile = Profile(leaf=2, width=8)
    depth = profile.depth(size)
    *_, (_, _, block) = profile.blocks(bytes(size))
    edited = block[:at] + put + block[at + cut :]

    try:
        digests = profile.links(edited, size, depth)
    except StoreError:
        assert edited != block
    else:
        assert profile.node(size, depth, digests) == edited


@unhurried
@given(st.binary(max_size=200))
@example(b"\x12")
@example(b"\x12\xff")
@example(b"\x12\x00" * 50)
@example(b"\x0a\x0e\x08\x02\x18" + b"\xff" * 9)
@example(b"\x0a\x0e\x08\x02\x18" + b"\xff" * 8 + b"\x7f")
def test_bytes_that_are_no_node_are_content(block):
    """Reading a root that a stranger made up ends, and finds nothing in it."""
    assert UNIXFS.declared_size(block) is None


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 3 * MIB])
def test_a_cid_says_how_its_content_is_encoded(size):
    """Content of one leaf is raw, what is larger a tree; the text gives both back."""
    digest = digest_of(bytes(size))
    text = cid_of(digest, size)

    assert text.startswith("bafk" if size <= MIB else "bafy")
    assert parse_cid(text) == (RAW if size <= MIB else DAG_PB, digest)
    assert naive_root(bytes(size), MIB, 1024) == parse_cid(text)


def test_a_small_file_is_named_by_its_sha256():
    """The digest of what fits a leaf can be checked with `sha256sum`."""
    assert digest_of(b"adapter") == hashlib.sha256(b"adapter").digest()


KUBO = {
    ("", 0): "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    ("chunk-v1-seed", MIB): "bafkreiacndfy443ter6qr2tmbbdhadvxxheowwf75s6zehscklu6ezxmta",
    ("chunk-v1-seed", MIB + 1): "bafybeigmix7t42i6jacydtquhet7srwvgpizfg7gjbq7627d35mjomtu64",
    ("v1-2025-seed", 1024 * MIB): "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm",
    ("v1-2025-seed", 1025 * MIB): "bafybeihmzokxxjqwxjcryerhp5ezpcog2wcawfryb2xm64xiakgm4a5jue",
}
"""What Kubo prints for these files (seed, size): its own test/cli/cid_profiles_test.go and, for the
two around one leaf, the conformance tests of IPIP-499."""


@pytest.mark.parametrize(
    ("seed", "size"),
    [pytest.param(*file, marks=[pytest.mark.slow] * (file[1] > 1000 * MIB)) for file in KUBO],
)
def test_the_cid_is_the_one_that_kubo_prints(seed, size):
    """Kubo's published vectors, whose files are a ChaCha20 key stream."""
    key = hashlib.sha256(seed.encode()).digest()
    data = ChaCha20.new(key=key, nonce=bytes(12)).encrypt(bytes(size))

    assert cid_of(digest_of(data), size) == KUBO[seed, size]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "../../etc/passwd",
        "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn",  # version 0
        "bafkqaddimvwgy3zao5xxe3debi",  # the content in place of a hash
        "BAFKREIHDWDCEFGH4DQKJV67UZCMW7OJEE6XEDZDETOJUZJEVTENXQUVYKU",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvykv",  # bits after the end
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku\n",
        "bafyrei" + "a" * 52,  # dag-cbor
        "bafk" + "é" * 55,
    ],
)
def test_what_is_no_cid_of_ours_is_refused(text):
    """A name becomes a file name or a URL only if it is one that we would have written."""
    with pytest.raises(StoreError, match="no CIDv1"):
        parse_cid(text)
