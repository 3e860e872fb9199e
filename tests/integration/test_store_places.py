"""Every kind of store keeps the same promises: one suite, a line for each place."""

import random
import socket
import subprocess
import sys
from contextlib import ExitStack, closing

import pytest
from blockserver import MIB, Server
from peers import js_ipfs

from flockllm.errors import InvalidConfig, NotFound, StoreError
from flockllm.store import cid_of, digest_of, open_store

SIZES = [0, 1, MIB, MIB + 1, 3 * MIB + 7]


@pytest.fixture(scope="module")
def running():
    """Keeps servers running until the module is done."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def s3_server(running):
    """moto's S3, empty, and the environment that boto3 needs to find it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    running.callback(server.wait)
    running.callback(server.kill)
    running.callback(server.stderr.close)
    while "Running on" not in server.stderr.readline():
        assert server.poll() is None
    env = running.enter_context(pytest.MonkeyPatch.context())
    env.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    env.setenv("AWS_ACCESS_KEY_ID", "toy")
    env.setenv("AWS_SECRET_ACCESS_KEY", "toy")
    env.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import boto3

    boto3.client("s3").create_bucket(Bucket="adapters")
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def location(request, running, tmp_path_factory):
    """Where content is put: each place once, for all tests of this module."""
    match request.param:
        case "folder":
            return str(tmp_path_factory.mktemp("place"))
        case "rpc":
            server = running.enter_context(Server())
            server.authorization = "Basic bmFtZTpzZWNyZXQ="
            return f"ipfs://name:secret@{server.address}"
        case "s3":
            request.getfixturevalue("s3_server")
            return "s3://adapters/tasks/one"
        case "js-ipfs":
            repo = tmp_path_factory.mktemp("js-ipfs")
            return f"ipfs://{running.enter_context(js_ipfs(repo)).address}"


PLACES = ["folder", "rpc", "s3", pytest.param("js-ipfs", marks=pytest.mark.slow)]
every_place = pytest.mark.parametrize("location", PLACES, indirect=True)


@pytest.fixture
def store(location, tmp_path):
    """A participant with a cache of its own."""
    return open_store(location, cache=tmp_path / "mine")


@pytest.fixture
def other(location, tmp_path):
    """Another participant, who has fetched nothing yet."""
    return open_store(location, cache=tmp_path / "theirs")


@every_place
@pytest.mark.parametrize("size", SIZES)
def test_what_one_puts_another_gets(store, other, size):
    """Under the same digest everywhere, with its size and without."""
    data = random.Random(size).randbytes(size)
    digest = store.put(data)

    assert digest == digest_of(data)
    assert other.has(digest, size)
    assert other.has(digest)
    assert other.get(digest, size, size) == data
    assert other.get(digest, None, size) == data


@every_place
def test_putting_twice_is_putting_once(store, other):
    """A node that starts again repeats itself without harm."""
    data = random.Random(7).randbytes(MIB + 7)

    assert store.put(data) == store.put(data) == other.put(data)
    assert other.get(digest_of(data), len(data), len(data)) == data


@every_place
def test_what_nobody_put_is_not_there(store):
    """Neither small nor large."""
    missing = digest_of(b"nobody put this")

    assert not store.has(missing)
    assert not store.has(missing, 3 * MIB)
    with pytest.raises(StoreError):
        store.get(missing, 3 * MIB, 3 * MIB, seconds=2)


@every_place
def test_more_than_the_limit_is_refused(store, other):
    """By the size that the chain says, and by the one that the content says."""
    data = random.Random(8).randbytes(2 * MIB)
    digest = store.put(data)

    for size in (len(data), None):
        with pytest.raises(StoreError, match="at most"):
            other.get(digest, size, MIB)


@every_place
def test_unpinned_content_can_be_pinned_again(store):
    """Unpinning twice is fine; content stays until a garbage collection."""
    digest = store.put(b"pinned")

    store.unpin(digest, 6)
    store.unpin(digest, 6)
    store.pin(digest, 6)
    assert store.has(digest, 6)
    assert store.get(digest, 6, 6) == b"pinned"


def test_a_bucket_holds_one_object_for_each_block(s3_server, tmp_path):
    """The root last, so that who finds it finds the rest; other keys are left alone."""
    data = random.Random(3).randbytes(2 * MIB)
    digest = open_store("s3://adapters/some/where", cache=tmp_path / "mine").put(data)

    import boto3

    client = boto3.client("s3")
    objects = client.list_objects_v2(Bucket="adapters", Prefix="some/where/")["Contents"]
    assert len(objects) == 3
    assert f"some/where/{cid_of(digest, len(data))}" in {o["Key"] for o in objects}

    leaf = next(o["Key"] for o in objects if o["Size"] == MIB)
    client.put_object(Bucket="adapters", Key=leaf, Body=bytes(MIB))
    with pytest.raises(StoreError, match="another block"):
        open_store("s3://adapters/some/where", cache=tmp_path / "theirs").get(
            digest, len(data), len(data), seconds=1
        )


def test_a_bucket_on_the_web_is_a_gateway(s3_server, tmp_path):
    """Under a prefix that ends in /ipfs, for those who have no key to it."""
    data = random.Random(4).randbytes(2 * MIB)
    digest = open_store("s3://adapters/web/ipfs", cache=tmp_path / "mine").put(data)

    import boto3

    client = boto3.client("s3")
    for found in client.list_objects_v2(Bucket="adapters", Prefix="web/")["Contents"]:
        client.put_object_acl(Bucket="adapters", Key=found["Key"], ACL="public-read")
    store = open_store(str(tmp_path / "theirs"), [f"{s3_server}/adapters/web"])
    assert store.get(digest, len(data), len(data)) == data


def test_a_bucket_that_is_not_there_is_said_so(s3_server, tmp_path):
    """Not as content that is not found."""
    store = open_store("s3://elsewhere", cache=tmp_path)
    with pytest.raises(StoreError, match="bucket does not exist") as refused:
        store.put(b"adapter")
    assert not isinstance(refused.value, NotFound)


def test_a_node_that_names_another_root_is_refused(tmp_path):
    """It may be broken or hostile: what it has is not what we put."""
    with Server() as server:
        server.renames = True
        store = open_store(f"ipfs://{server.address}", cache=tmp_path)
        with pytest.raises(StoreError, match="did not take bafk"):
            store.put(b"adapter")


def test_a_node_that_is_not_there_is_said_so(tmp_path):
    """With the address, and without its password."""
    with Server() as server:
        address = server.address
    store = open_store(f"ipfs://name:secret@{address}", cache=tmp_path)
    with pytest.raises(StoreError, match="Connect") as refused:
        store.put(b"adapter")
    assert "secret" not in str(refused.value)


def test_what_was_put_elsewhere_is_here_as_well(tmp_path):
    """A participant never fetches what it made, even when its node is gone."""
    data = random.Random(5).randbytes(2 * MIB)
    with Server() as server:
        store = open_store(f"ipfs://{server.address}", cache=tmp_path)
        digest = store.put(data)
    assert store.get(digest, len(data), len(data)) == data


def test_a_gateway_stands_in_for_a_store_that_lost_content(tmp_path):
    """A folder with gateways is both a store and a cache."""
    data = random.Random(9).randbytes(2 * MIB)
    with Server(data) as server:
        store = open_store(str(tmp_path / "folder"), [f"http://{server.address}"])
        assert not store.has(digest_of(data))
        assert store.get(digest_of(data), len(data), len(data)) == data
    assert store.get(digest_of(data), len(data), len(data)) == data


@pytest.mark.parametrize(
    "location", ["ftp://host/x", "ipfs://", "s3:///x", "ipfs:///ip4/1.2.3.4", "http://host"]
)
def test_a_location_that_is_none_is_refused(location):
    """With the forms that there are."""
    with pytest.raises(InvalidConfig, match="ipfs://host:5001"):
        open_store(location)


@pytest.mark.parametrize("location", ["ipfs://host:port", "ipfs://host:99999", "ipfs://[::1"])
def test_a_location_that_is_no_url_is_refused(location):
    """In our words, not in those of a parser."""
    with pytest.raises(InvalidConfig, match="is no store"):
        open_store(location)


def test_a_bucket_at_no_address_is_refused(monkeypatch, tmp_path):
    """What boto3 finds in the environment is a setting as others are."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(InvalidConfig, match="s3://adapters"):
        open_store("s3://adapters", cache=tmp_path).put(b"adapter")


@pytest.mark.parametrize(
    "url", ["gateway.example", "file:///etc/passwd", "https://", "http://[::1", "http://host:99999"]
)
def test_a_gateway_that_is_no_url_is_refused(url, tmp_path):
    """Before anything is asked of it."""
    with pytest.raises(InvalidConfig, match="gateway"):
        open_store(str(tmp_path), [url])
