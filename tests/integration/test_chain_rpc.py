"""Talking to nodes that are slow, busy, gone, or follow the standard in their own way."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flockllm.chain import rpc
from flockllm.chain.abi import revert_reason
from flockllm.chain.devnet import Devnet
from flockllm.chain.rpc import Connection, RpcError, connect
from flockllm.errors import ChainError, InvalidConfig


@contextmanager
def node(answer):
    """A node whose answers to HTTP POST are `answer(request) -> (status, headers, body)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, body = answer(request)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.send_error(404)  # no WebSocket here

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def result(request, value):
    """The answer of a node to one request."""
    return {"jsonrpc": "2.0", "id": request["id"], "result": value}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Repeats at once; how long the pauses are is no promise."""
    monkeypatch.setattr(rpc, "RETRIES", (0, 0, 0, 0))
    monkeypatch.setattr(rpc, "POLL", 0.01)


@pytest.mark.parametrize(
    "trouble",
    [
        (503, {}, b"overloaded"),
        (429, {"Retry-After": "0"}, b"slow down"),
        (200, {}, b"<html>maintenance</html>"),
    ],
    ids=["503", "429", "html"],
)
def test_a_busy_node_is_asked_again(trouble):
    """Twice busy, then well: the caller does not notice."""
    answers = [trouble, trouble]

    def answer(request):
        return answers.pop() if answers else (200, {}, result(request, "0x7a69"))

    with node(answer) as url, Connection(url) as connection:
        assert connection.chain_id == 31_337
        assert answers == []


def test_a_node_that_is_gone_is_named():
    """The message has the URL and what to do."""
    with (
        node(lambda request: (503, {}, b"")) as url,
        Connection(url) as connection,
        pytest.raises(ChainError, match=f"{url} is out of reach.*HTTP 503.*another URL"),
    ):
        connection.call("eth_chainId")
    with Connection(url) as connection, pytest.raises(ChainError, match="out of reach"):
        connection.call("eth_chainId")


def test_another_chain_is_refused():
    """A key's money is not put on the wrong chain."""
    with (
        node(lambda request: (200, {}, result(request, "0x1"))) as url,
        pytest.raises(ChainError, match="serves chain 1, not 31337"),
    ):
        connect(url, 31_337)


def test_a_wrong_url_is_said_to_be_wrong():
    """Before anything is asked."""
    with pytest.raises(InvalidConfig, match="is no URL of a node"):
        Connection("localhost:8545")


def test_answers_of_a_batch_may_come_in_any_order():
    """As the standard says; each finds its request."""

    def answer(requests):
        return 200, {}, [result(r, r["params"][0]) for r in reversed(requests)]

    with node(answer) as url, Connection(url) as connection:
        assert connection.batch([("echo", [i]) for i in range(5)]) == list(range(5))


def test_one_error_in_a_batch_leaves_the_others():
    """It stands where its answer would."""

    def answer(requests):
        good, bad = requests
        error = {"jsonrpc": "2.0", "id": bad["id"], "error": {"code": 3, "message": "no"}}
        return 200, {}, [result(good, 1), error]

    with node(answer) as url, Connection(url) as connection:
        good, bad = connection.batch([("a", []), ("b", [])])
    assert good == 1
    assert isinstance(bad, RpcError)
    assert bad.code == 3


def test_a_batch_refused_as_a_whole_is_refused_in_each_part():
    """Some providers limit batches and answer with a single error."""

    def answer(requests):
        return 200, {}, {"jsonrpc": "2.0", "id": None, "error": {"message": "batch too large"}}

    with node(answer) as url, Connection(url) as connection:
        answers = connection.batch([("a", []), ("b", [])])
    assert [str(a) for a in answers] == ["batch too large"] * 2


def test_heads_are_polled_where_there_is_no_subscription():
    """A node without WebSocket tells of its blocks all the same, each once."""
    number = iter(range(100, 200))

    def answer(request):
        block = {"number": hex(next(number)), "hash": "0x" + "ab" * 32, "timestamp": "0x1"}
        return 200, {}, result(request, block)

    with node(answer) as url, Connection(url) as connection:
        assert [connection.heads(5).number for _ in range(3)] == [100, 101, 102]


def test_no_news_is_the_same_head_again():
    """The wait ends with its timeout."""
    block = {"number": "0x5", "hash": "0x" + "ab" * 32, "timestamp": "0x1"}
    with (
        node(lambda request: (200, {}, result(request, block))) as url,
        Connection(url) as connection,
    ):
        assert connection.heads(5) == connection.heads(0.05)


@pytest.fixture
def devnet(tmp_path):
    """A real node, with both of its ways to talk."""
    with Devnet.start(tmp_path, block_time=0.1) as devnet:
        yield devnet


def test_a_websocket_alone_is_enough(devnet):
    """Requests and heads over one kind of URL."""
    with connect(devnet.ws_url, devnet.chain_id) as connection:
        first = connection.heads(5)
        assert connection.heads(5).number > first.number
        chain, number = connection.batch([("eth_chainId", []), ("eth_blockNumber", [])])
        assert int(chain, 16) == devnet.chain_id
        assert int(number, 16) >= first.number


def test_a_lost_subscription_is_not_a_lost_head(devnet):
    """The node drops us; the next wait looks, and subscribes again."""
    with connect(devnet.rpc_url) as connection:
        first = connection.heads(5)
        connection._subscription.socket.shutdown(socket.SHUT_RDWR)
        second = connection.heads(5)
        third = connection.heads(5)
        assert first.number < second.number < third.number


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            "0x08c379a0"
            + (32).to_bytes(32).hex()
            + (8).to_bytes(32).hex()
            + b"too late".ljust(32, b"\0").hex(),
            "too late",
        ),
        ("0x4e487b71" + (17).to_bytes(32).hex(), "panic 17"),
        ("0x", "no reason given"),
        (None, "no reason given"),
        ("0x08c379a0" + "ff" * 7, "no reason given"),
        ("0xdeadbeef", "no reason given"),
    ],
    ids=["string", "panic", "empty", "absent", "garbled", "other"],
)
def test_a_reverts_reason_is_read_from_whatever_came(data, reason):
    """A hostile contract cannot make us fail while reading why it failed."""
    assert revert_reason(data) == reason
