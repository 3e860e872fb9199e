"""The local store: what it promises to several processes, to crashes, and about strangers."""

import os
import random
import resource
import time

import pytest

from flockllm.dag import UNIXFS
from flockllm.errors import NotFound, StoreError
from flockllm.store import LocalStore, cid_of, digest_of

MIB = 1 << 20
DAY = 86_400


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    return LocalStore(tmp_path / "store")


def content(size: int) -> bytes:
    """The same bytes for the same size."""
    return random.Random(size).randbytes(size)


def file_of(store: LocalStore, data: bytes):
    """Where `data` lies."""
    return store.folder / cid_of(digest_of(data), len(data))


def age(path, seconds):
    """Makes a file so many seconds old."""
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
def test_what_was_put_is_got(store, size):
    """With the size, as for an update, and without it, as for a definition."""
    data = content(size)
    digest = store.put(data)

    assert digest == digest_of(data)
    assert store.has(digest, size)
    assert store.has(digest)
    assert store.get(digest, size, limit=size) == data
    assert store.get(digest, None, limit=size) == data


def test_content_is_a_file_named_by_its_cid(store):
    """A person finds it with `ls`, and nothing else is left in the folder."""
    digest = store.put(b"adapter")

    assert [p.read_bytes() for p in store.folder.iterdir() if p.is_file()] == [b"adapter"]
    assert (store.folder / cid_of(digest, 7)).is_file()
    assert not list((store.folder / "unfinished").iterdir())


def test_putting_twice_writes_once(store):
    """The second time the same file stays, so nobody who reads it is disturbed."""
    store.put(b"adapter")
    before = file_of(store, b"adapter").stat().st_ino

    store.put(b"adapter")
    assert file_of(store, b"adapter").stat().st_ino == before


def test_two_stores_on_one_folder_see_each_other(store):
    """Participants on one machine share a directory."""
    digest = store.put(b"adapter")

    assert LocalStore(store.folder).get(digest, 7, limit=7) == b"adapter"


def test_what_nobody_put_is_not_found(store):
    """With and without a size, and with the wrong one."""
    digest = store.put(b"adapter")

    for size in (MIB + 1, 7, None):
        assert not store.has(digest_of(b"other"), size)
        with pytest.raises(NotFound):
            store.get(digest_of(b"other"), size, limit=2 * MIB)
    assert not store.has(digest, 8)
    with pytest.raises(StoreError):
        store.get(digest, 8, limit=8)


@pytest.mark.parametrize("size", [1, MIB, 2 * MIB + 5])
def test_an_altered_byte_is_refused_wherever_it_is(store, size):
    """Nothing is handed out that is not what was put; putting it again heals the file."""
    data = content(size)
    digest = store.put(data)
    for at in {0, size // 2, size - 1}:
        altered = bytearray(data)
        altered[at] ^= 1
        file_of(store, data).write_bytes(altered)

        with pytest.raises(StoreError, match="altered"):
            store.get(digest, size, limit=size)

    store.put(data)
    assert store.get(digest, size, limit=size) == data


@pytest.mark.parametrize("found", [b"", b"adapte", b"adapter "])
def test_a_file_of_another_length_is_refused(store, found):
    """Cut off or added to: without reading it."""
    digest = store.put(b"adapter")
    file_of(store, b"adapter").write_bytes(found)

    with pytest.raises(StoreError, match="altered"):
        store.get(digest, 7, limit=100)


def test_more_than_the_limit_is_refused_unread(store):
    """A size that is declared, and one that is found, are both held against the limit."""
    digest = store.put(b"adapter")

    for size in (7, None, 2**62, -1):
        with pytest.raises(StoreError, match="at most 6 allowed"):
            store.get(digest, size, limit=6)

    huge = file_of(store, b"adapter")
    with huge.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: reading it would fill the memory
    with pytest.raises(StoreError, match="at most 100 allowed"):
        store.get(digest, None, limit=100)


def test_a_root_is_not_content_unless_its_size_says_so(store):
    """The same digest names a tree and the bytes of its root; every store answers alike."""
    data = content(MIB + 1)
    *_, (_, digest, root) = UNIXFS.blocks(data)
    assert store.put(root) == digest

    assert store.get(digest, len(root), limit=MIB) == root
    with pytest.raises(NotFound):
        store.get(digest, None, limit=2 * MIB)

    store.put(data)
    assert store.get(digest, None, limit=2 * MIB) == data
    assert store.get(digest, len(root), limit=MIB) == root


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_refused(store, tmp_path, kind):
    """A link out of the store, or a pipe that would block, is neither read nor followed."""
    digest, path = store.put(b"adapter"), file_of(store, b"adapter")
    path.unlink()
    if kind == "link":
        (tmp_path / "secret").write_bytes(b"adapter")
        path.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(StoreError, match=path.name):
        store.get(digest, 7, limit=7)
    if kind != "folder":
        store.put(b"adapter")
        assert store.get(digest, 7, limit=7) == b"adapter"
        assert not path.is_symlink()


def test_collect_removes_only_what_nobody_names(store):
    """Pinned, named and new content stays, and so does what is not ours."""
    named, pinned, both, old, new = (store.put(x) for x in (b"a", b"b", b"c", b"d", b"e"))
    store.pin(pinned, 1)
    store.pin(both, 1)
    for path in store.folder.glob("bafk*"):
        age(path, DAY)
    age(file_of(store, b"e"), 0)
    note = store.folder / "README"
    note.write_text("ours")
    age(note, DAY)

    assert store.collect({named, both}) == [cid_of(old, 1)]
    assert all(store.has(digest, 1) for digest in (named, pinned, both, new))
    assert note.exists()

    store.unpin(pinned, 1)
    store.unpin(both, 1)
    assert store.collect(set(), younger=0) != []
    assert list(store.folder.glob("baf*")) == []


def test_content_put_again_is_new_again(store):
    """Between a put and the transaction that names it, `collect` leaves it alone."""
    digest = store.put(b"adapter")
    age(file_of(store, b"adapter"), DAY)

    store.put(b"adapter")
    assert store.collect(set()) == []
    assert store.has(digest, 7)


def test_old_unfinished_files_are_swept_and_young_ones_stay(store):
    """What a killed process left goes after a day; what another one is writing is not touched."""
    young, old = (store.folder / "unfinished" / name for name in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"half")
    age(old, 2 * DAY)

    LocalStore(store.folder)
    assert young.exists()
    assert not old.exists()


def test_a_disk_that_takes_no_more_is_said_in_one_line_and_leaves_nothing(store):
    """The message names the folder and the reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match=f"cannot write to {store.folder}: File too large"):
            store.put(bytes(1001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert not store.has(digest_of(bytes(1001)), 1001)
    assert not list((store.folder / "unfinished").iterdir())


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    """At the start, not in the middle of a round."""
    (tmp_path / "file").write_text("here")

    with pytest.raises(StoreError, match=r"cannot use .*file as a store"):
        LocalStore(tmp_path / "file")
