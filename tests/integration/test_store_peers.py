"""Our CIDs, blocks and trees, held against Kubo and Helia as they run."""

import hashlib
import json
import random
import urllib.request
from urllib.parse import quote

import pytest
from peers import helia, js_ipfs, kubo

from flockllm.cid import codec_of
from flockllm.dag import UNIXFS
from flockllm.store import LocalStore, cid_of, digest_of
from flockllm.store.car import write_car
from flockllm.store.ipfs import Gateway
from flockllm.store.remote import RemoteStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MIB = 1 << 20
SIZES = [0, 1, MIB, MIB + 1, 70_000_000]


@pytest.fixture(scope="module", params=SIZES, ids="{} bytes".format)
def data(request):
    """The sizes where the tree changes its shape, and that of a large adapter."""
    return random.Random(request.param).randbytes(request.param)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    """A Helia that can be asked for anything."""
    with helia(tmp_path_factory.mktemp("helia")) as peer:
        yield peer


@pytest.fixture(scope="module")
def node(tmp_path_factory, bridge):
    """A Kubo that is connected with Helia, and with nobody else."""
    with kubo(tmp_path_factory.mktemp("kubo")) as peer:
        post(bridge, f"/connect?peer={quote(peer.says)}")
        yield peer


def legacy_cid(data: bytes) -> str:
    """The CID of a file in the profile unixfs-v0-2015, built as the specifications describe.

    Leaves of 256 KiB are UnixFS nodes themselves, a node has 174 links, a CID is a multihash.
    """

    def varint(n):
        return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + varint(n // 128)

    def field(tag, payload):
        return bytes([tag]) + varint(len(payload)) + payload

    def leaf(chunk):
        content = field(0x12, chunk) if chunk else b""
        block = field(0x0A, b"\x08\x02" + content + b"\x18" + varint(len(chunk)))
        return hashlib.sha256(block).digest(), len(chunk), len(block)

    def parent(children):
        links, sizes = b"", b""
        for digest, size, total in children:
            link = field(0x0A, b"\x12\x20" + digest) + b"\x12\x00\x18" + varint(total)
            links += field(0x12, link)
            sizes += b"\x20" + varint(size)
        whole = sum(size for _, size, _ in children)
        block = links + field(0x0A, b"\x08\x02\x18" + varint(whole) + sizes)
        total = len(block) + sum(total for *_, total in children)
        return hashlib.sha256(block).digest(), whole, total

    level = [leaf(data[i : i + (1 << 18)]) for i in range(0, len(data) or 1, 1 << 18)]
    while len(level) > 1:
        level = [parent(level[i : i + 174]) for i in range(0, len(level), 174)]
    number = int.from_bytes(b"\x12\x20" + level[0][0])
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + text
    return text


def post(peer, path, body=b""):
    """What a peer answers over HTTP."""
    with urllib.request.urlopen(f"http://{peer.address}{path}", body, timeout=300) as answer:
        return answer.read()


def test_helia_cuts_a_file_as_we_do(bridge, data):
    """Its importer with the profile's name, on the file alone."""
    assert post(bridge, "/add", data).decode() == cid_of(digest_of(data), len(data))


def test_js_ipfs_cuts_a_file_as_we_do(tmp_path, data):
    """`ipfs add` with the profile's parameters, on the file alone."""
    options = "cid-version=1&raw-leaves=true&chunker=size-1048576&cid-base=base32&progress=false"
    form = b"--x\r\nContent-Disposition: form-data; name=file; filename=f\r\n"
    form += b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--x--\r\n"
    with js_ipfs(tmp_path) as peer:
        request = urllib.request.Request(
            f"http://{peer.address}/api/v0/add?{options}",
            form,
            {"Content-Type": "multipart/form-data; boundary=x"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            assert json.load(answer)["Hash"] == cid_of(digest_of(data), len(data))


def test_kubo_balances_trees_as_specified(tmp_path, data):
    """As a library it adds in the older profile only, whose trees are balanced as ours are."""
    (tmp_path / "file").write_bytes(data)
    with kubo(tmp_path) as peer:
        assert peer.ask("add", str(tmp_path / "file")) == legacy_cid(data)


@pytest.fixture
def got(bridge, node, data, tmp_path):
    """What Kubo wrote into a file, having fetched our blocks from Helia."""
    digest, size = digest_of(data), len(data)
    post(bridge, "/import", b"".join(write_car(codec_of(size), digest, UNIXFS.blocks(data))))
    assert node.ask("get", cid_of(digest, size), str(tmp_path / "got")) == "0"
    return (tmp_path / "got").read_bytes()


def test_kubo_reads_what_we_put_over_bitswap(got, data):
    """Blocks of ours reach Kubo over its own protocol as the same file."""
    assert got == data


@pytest.mark.usefixtures("got")
def test_we_read_what_kubo_has_over_bitswap(node, data, tmp_path):
    """A Helia that has nothing, as our gateway, gets it from Kubo over Kubo's own protocol."""
    digest, size = digest_of(data), len(data)
    with helia(tmp_path) as gateway:
        post(gateway, f"/connect?peer={quote(node.says)}")
        store = RemoteStore(LocalStore(tmp_path / "store"), [Gateway(f"http://{gateway.address}")])
        assert store.get(digest, size, size) == data
