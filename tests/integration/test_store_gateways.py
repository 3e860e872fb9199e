"""Gateways that lie, stall, die or send for ever: content comes right, or an error comes in time.

Time limits are those of pytest: a fault that could block would hang its test.
"""

import itertools
import random
import threading
import tracemalloc

import pytest
from blockserver import FAULTS, MIB, Cut, Server, dies, drips, page

from flockllm.dag import UNIXFS, Profile
from flockllm.errors import NotFound, StoreError
from flockllm.store import LocalStore, cid_of, digest_of
from flockllm.store.ipfs import Gateway
from flockllm.store.remote import RemoteStore

pytestmark = pytest.mark.timeout(60)

SIZE = 4 * MIB + 123
DATA = random.Random(1).randbytes(SIZE)
DIGEST = digest_of(DATA)


def store_of(tmp_path, *servers, patience=1.0, name="store"):
    """A store that has nothing, before gateways."""
    gateways = [Gateway(f"http://{server.address}") for server in servers]
    return RemoteStore(LocalStore(tmp_path / name), gateways, patience=patience)


def name_of(fault):
    """How a fault is called in the names of tests."""
    return fault if isinstance(fault, str) else fault.__name__


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 5 * MIB + 3])
@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_an_honest_gateway_is_enough(tmp_path, size, known):
    """Whatever the size, and whether the chain or only the root tells it."""
    data = random.Random(size).randbytes(size)
    told = []
    with Server(data) as server:
        store = store_of(tmp_path, server)
        found = store.get(
            digest_of(data), size if known else None, size, progress=lambda *at: told.append(at)
        )

    assert found == data
    assert told == sorted(told)
    assert told[-1] == (size, size)
    assert LocalStore(tmp_path / "store").get(digest_of(data), size, size) == data
    assert not list((tmp_path / "store" / "unfinished").iterdir())


@pytest.mark.parametrize("fault", FAULTS, ids=name_of)
def test_a_bad_gateway_alone_is_an_error_in_time(tmp_path, fault):
    """No content is handed out, nothing stays under a CID, memory stays bounded."""
    with Server(DATA, fault=fault) as server:
        store = store_of(tmp_path, server)
        tracemalloc.start()
        with pytest.raises(StoreError):
            store.get(DIGEST, SIZE, SIZE, seconds=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert not store.has(DIGEST, SIZE)
    assert peak < 30 * MIB  # both sides, for each of the requests that were made


@pytest.mark.parametrize("fault", FAULTS, ids=name_of)
def test_a_bad_gateway_does_not_keep_a_good_one_from_answering(tmp_path, fault):
    """The next in turn is asked while there is time."""
    with Server(DATA, fault=fault) as bad, Server(DATA) as good:
        assert store_of(tmp_path, bad, good).get(DIGEST, SIZE, SIZE, seconds=8) == DATA


def test_a_slow_gateway_leaves_time_for_the_next(tmp_path):
    """However patient we are with one block, a source gets its share of the time and no more."""
    with Server(DATA, fault=drips) as slow, Server(DATA) as good:
        store = store_of(tmp_path, slow, good, patience=1000)
        assert store.get(DIGEST, SIZE, SIZE, seconds=3) == DATA


def test_what_no_gateway_has_is_not_found(tmp_path):
    """And is told apart from what went wrong, so that a voter can wait for it."""
    with Server() as one, Server() as two:
        store = store_of(tmp_path, one, two)
        for size in (SIZE, 5, None):
            with pytest.raises(NotFound):
                store.get(DIGEST, size, SIZE)

    with pytest.raises(StoreError, match="Connect") as refused:
        store.get(DIGEST, SIZE, SIZE, seconds=1)
    assert not isinstance(refused.value, NotFound)


def test_a_gateway_that_recovers_is_asked_again(tmp_path):
    """Trouble that passes costs a pause, not the content."""
    failures = itertools.count()

    def recovers(kind, body):
        if next(failures) < 2:
            raise Cut
        yield from body

    with Server(DATA, fault=recovers) as server:
        assert store_of(tmp_path, server).get(DIGEST, SIZE, SIZE) == DATA


def test_a_broken_download_goes_on_elsewhere(tmp_path):
    """What came from a gateway that died is not asked for again, in this process or another."""
    with Server(DATA, fault=dies) as server, pytest.raises(StoreError):
        store_of(tmp_path, server).get(DIGEST, SIZE, SIZE, seconds=1)
    (unfinished,) = (tmp_path / "store" / "unfinished").iterdir()
    assert unfinished.name == cid_of(DIGEST, SIZE)

    with Server(DATA) as server:
        assert store_of(tmp_path, server).get(DIGEST, SIZE, SIZE) == DATA
        assert server.sent < SIZE - MIB


def test_what_somebody_wrote_into_an_unfinished_file_is_found_out(tmp_path):
    """A download trusts nothing that it finds, not even its own."""
    store = store_of(tmp_path)
    path = store.local.unfinished(DIGEST, SIZE)
    path.write_bytes(DATA[:MIB] + bytes(2 * MIB) + DATA[3 * MIB :] + b"and more")

    with Server(DATA) as server:
        assert store_of(tmp_path, server).get(DIGEST, SIZE, SIZE) == DATA
        assert server.asked == ["raw"] * 3  # the root and the two leaves that are wrong


def test_a_link_in_place_of_an_unfinished_file_is_not_followed(tmp_path):
    """A download never writes outside of the store."""
    outside = tmp_path / "outside"
    outside.write_text("precious")
    store = store_of(tmp_path)
    store.local.unfinished(DIGEST, SIZE).symlink_to(outside)

    with Server(DATA) as server, pytest.raises(StoreError, match="cannot write"):
        store_of(tmp_path, server).get(DIGEST, SIZE, SIZE)
    assert outside.read_text() == "precious"


def test_altered_content_in_the_cache_is_fetched_anew(tmp_path):
    """A flipped bit on the disk costs a download, not a round."""
    with Server(DATA) as server:
        store = store_of(tmp_path, server)
        store.local.put(DATA)
        path = store.local.folder / cid_of(DIGEST, SIZE)
        path.write_bytes(bytes(SIZE))

        assert store.get(DIGEST, SIZE, SIZE) == DATA
        assert path.read_bytes() == DATA


def test_blocks_that_stand_several_times_are_fetched_once(tmp_path):
    """A file of zeros is one leaf and one node."""
    zeros = bytes(50 * MIB)
    with Server(zeros) as server:
        assert store_of(tmp_path, server).get(digest_of(zeros), len(zeros), len(zeros)) == zeros
        assert server.sent < 2 * MIB


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, MIB, MIB + 1, 2**50])
def test_a_size_that_is_not_that_of_the_content_is_refused(tmp_path, size):
    """What the chain says about size must hold; one answer is enough to know."""
    with Server(DATA) as server:
        with pytest.raises(StoreError, match=r"file of|leaf of"):
            store_of(tmp_path, server).get(DIGEST, size, 2**60)
        assert server.asked == ["raw"]


def test_content_over_the_limit_is_not_downloaded(tmp_path):
    """Declared by the chain: nobody is asked. Declared by the root: only the root is read."""
    with Server(DATA) as server:
        store = store_of(tmp_path, server)
        with pytest.raises(StoreError, match="at most"):
            store.get(DIGEST, SIZE, SIZE - 1)
        assert server.asked == []

        with pytest.raises(StoreError, match="at most"):
            store.get(DIGEST, None, SIZE - 1)
        assert server.asked == ["raw"]


def test_a_root_that_declares_an_exabyte_costs_nothing(tmp_path):
    """The root of a tree that nobody has can be made up; the limit stops it."""
    size = 1 << 60
    depth = UNIXFS.depth(size)
    root = UNIXFS.node(size, depth, [bytes(32)] * len(UNIXFS.children(size, depth)))
    with Server() as server:
        server.blocks[digest_of(root)] = root
        with pytest.raises(StoreError, match=f"{size} bytes, at most"):
            store_of(tmp_path, server).get(digest_of(root), None, 10 * SIZE)


@pytest.mark.parametrize("profile", [Profile(1 << 18, 1024), Profile(MIB, 2)], ids=str)
def test_a_tree_of_another_profile_is_refused(tmp_path, profile):
    """The same content, cut otherwise, has another digest; that digest is not one of ours."""
    with Server() as server:
        digest = server.add(DATA, profile)
        assert digest != DIGEST
        with pytest.raises(StoreError, match="profile"):
            store_of(tmp_path, server).get(digest, SIZE, SIZE)
        assert server.asked == ["raw"]


def test_one_wrong_block_anywhere_is_refused(tmp_path):
    """Root or leaf, first or last: it is asked for again, never taken."""
    for _, digest, _ in UNIXFS.blocks(DATA):
        with Server(DATA) as bad, Server(DATA) as good:
            altered = bytearray(bad.blocks[digest])
            altered[len(altered) // 2] ^= 1
            bad.blocks[digest] = bytes(altered)
            name = digest.hex()
            with pytest.raises(StoreError):
                store_of(tmp_path, bad, name=name).get(DIGEST, SIZE, SIZE, seconds=0.3)
            assert store_of(tmp_path, bad, good, name=name).get(DIGEST, SIZE, SIZE) == DATA


def test_several_may_fetch_the_same_at_once(tmp_path):
    """Processes that share a cache help each other, or at least do no harm."""
    got = []
    with Server(DATA) as server:
        threads = [
            threading.Thread(
                target=lambda: got.append(store_of(tmp_path, server).get(DIGEST, SIZE, SIZE))
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [DATA] * 6


def test_a_gateway_without_cars_is_asked_for_blocks(tmp_path):
    """Only the raw form is there, as at the smallest gateways."""

    def raw_only(kind, body):
        yield from page(kind, body) if kind == "car" else body

    with Server(DATA, fault=raw_only) as server:
        assert store_of(tmp_path, server).get(DIGEST, SIZE, SIZE) == DATA
        assert server.asked.count("raw") == 6


@pytest.mark.slow
def test_a_file_of_more_than_a_gibibyte_is_a_deeper_tree(tmp_path):
    """Two levels of nodes, most leaves alike; then the same with its last leaf altered."""
    data = bytes(1024 * MIB) + b"the end"
    digest, size = digest_of(data), len(data)
    with Server(data) as server:
        assert store_of(tmp_path, server, patience=30).get(digest, size, size) == data
        assert server.sent < 3 * MIB

        server.blocks[digest_of(b"the end")] = b"the And"
        (tmp_path / "store" / cid_of(digest, size)).unlink()
        with pytest.raises(StoreError, match="another block"):
            store_of(tmp_path, server, patience=30).get(digest, size, size, seconds=60)
