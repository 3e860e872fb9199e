"""Each intent once: through crashes, lost, stuck and replaced transactions, reorganisations.

Everything runs against a real node. A transfer of test tokens stands for any call: the
receiver's balance tells how often it was carried out.
"""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack

import pytest

from flockllm.chain.abi import interface
from flockllm.chain.deploy import deploy_token
from flockllm.chain.devnet import Devnet
from flockllm.chain.journal import Journal
from flockllm.chain.keys import new_key
from flockllm.chain.rpc import Connection, RpcError
from flockllm.chain.sender import Sender
from flockllm.chain.token import Token
from flockllm.errors import ChainError, InvalidConfig, Reverted

TOKENS = 1_000


class Node:
    """A devnet with a token, and what its operator can do to it."""

    def __init__(self, devnet, folder, stack):
        self.devnet = devnet
        self.folder = folder
        self._stack = stack
        self.connection = self.connect()
        self.token = deploy_token(Sender(self.connection, devnet.keys[0], folder / "owner"))
        self.alice, self.bob = devnet.keys[1], new_key().address
        self.token.mint(self.alice.address, TOKENS)

    def connect(self):
        """Every sender has its own, for several may run at once."""
        return self._stack.enter_context(Connection(self.devnet.rpc_url))

    def sender(self, key=None, **options):
        return Sender(self.connect(), key or self.alice, self.folder / "senders", **options)

    def pay(self, sender, amount, intent=None):
        data = interface("TestToken").encode("transfer", self.bob, amount)
        return sender.send(intent or f"pay {amount}", self.token.address, data)

    def received(self):
        return self.token.balance(self.bob)

    def pause(self):
        """No more blocks, as on a chain too busy for what we offer."""
        self.connection.call("evm_setAutomine", False)
        self.connection.call("evm_setIntervalMining", 0)

    def resume(self):
        self.connection.call("evm_setAutomine", True)
        self.connection.call("evm_mine")

    def pool(self):
        """Alice's transactions that wait for a block."""
        waiting = self.connection.call("txpool_content")["pending"]
        return [
            transaction
            for who, by_nonce in waiting.items()
            for transaction in by_nonce.values()
            if who.lower() == self.alice.address.lower()
        ]

    def nonce(self):
        return int(
            self.connection.call("eth_getTransactionCount", self.alice.address, "latest"), 16
        )


@pytest.fixture
def node(tmp_path):
    """A node of one's own for each test."""
    with Devnet.start(tmp_path / "chain") as devnet, ExitStack() as stack:
        yield Node(devnet, tmp_path, stack)


def in_thread(target):
    """Runs `target` beside the test; `.result()` waits for what it returned or raised."""

    class Call(threading.Thread):
        def run(self):
            try:
                self.value, self.error = target(), None
            except Exception as e:
                self.error = e

        def result(self):
            self.join(60)
            assert not self.is_alive()
            if self.error:
                raise self.error
            return self.value

    call = Call(daemon=True)
    call.start()
    return call


def wait_for(condition):
    """Waits until something is so, but not for ever."""
    end = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return value


def test_a_call_is_carried_out_once_and_paid_for(node):
    """The receipt tells block, gas and fee of what happened."""
    receipt = node.pay(node.sender(), 5)
    assert node.received() == 5
    assert 21_000 < receipt.gas_used < 100_000
    assert receipt.fee >= receipt.gas_used
    assert receipt.block <= node.connection.head().number
    assert interface("TestToken").event(receipt.logs[0]).args["value"] == 5


def test_a_call_that_would_revert_is_not_sent(node):
    """The contract's reason comes at no cost: no nonce is used."""
    before = node.nonce()
    with pytest.raises(Reverted, match=r"^token: too little$"):
        node.pay(node.sender(), TOKENS + 1)
    assert node.nonce() == before


def test_a_call_that_reverts_only_on_chain_tells_why(node):
    """Between the try and the block somebody may be faster; the reason is found out after."""
    owner, token = node.devnet.keys[0].address, interface("TestToken")
    alices = Token(node.connection, node.token.address, node.sender())
    alices.approve(owner, 600)
    node.pause()
    call = in_thread(lambda: node.pay(node.sender(), 700))
    wait_for(node.pool)
    taken = {
        "from": owner,
        "to": node.token.address,
        "data": "0x" + token.encode("transferFrom", node.alice.address, owner, 600).hex(),
        "maxFeePerGas": hex(10**12),
        "maxPriorityFeePerGas": hex(10**11),
        "gas": hex(200_000),
    }
    node.connection.call("eth_sendTransaction", taken)  # pays more, so it goes first
    node.resume()
    with pytest.raises(Reverted, match=r"^token: too little$"):
        call.result()
    assert node.received() == 0
    node.pay(node.sender(), 400)
    assert node.received() == 400


def killed_when(node, moment):
    """A process that pays 7 and is killed (-9) when `moment` says so."""
    context = multiprocessing.get_context("spawn")
    arguments = node.devnet.rpc_url, node.folder / "senders", node.alice, node.token.address
    process = context.Process(target=pay_seven, args=(*arguments, node.bob, moment))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def pay_seven(url, folder, key, token, receiver, moment):
    """Dies just before, or just after, the transaction leaves."""
    connection = Connection(url)
    sender = Sender(connection, key, folder)
    exchange = connection.batch

    def dying(requests):
        methods = [method for method, _ in requests]
        if moment == "journaled" and "eth_sendRawTransaction" in methods:
            os.kill(os.getpid(), signal.SIGKILL)
        answers = exchange(requests)
        if moment == "sent" and "eth_sendRawTransaction" in methods:
            os.kill(os.getpid(), signal.SIGKILL)
        return answers

    connection.batch = dying
    sender.send("pay 7", token, interface("TestToken").encode("transfer", receiver, 7))


@pytest.mark.parametrize("moment", ["journaled", "sent"])
@pytest.mark.parametrize("mined_meanwhile", [True, False])
def test_killed_while_sending_and_started_again(node, moment, mined_meanwhile):
    """After kill -9 between journal and wire, or after the wire, the same intent pays once."""
    if not mined_meanwhile:
        node.pause()
    killed_when(node, moment)

    again = node.sender()
    call = in_thread(lambda: node.pay(again, 7))
    node.resume()
    call.result()
    assert node.received() == 7
    assert again.pending() == []
    node.pay(again, 7)  # asked anew after its end was told, it is a new payment
    assert node.received() == 14


def test_a_dropped_transaction_is_sent_again(node):
    """A node that forgets what it was given is given the same bytes again."""
    node.pause()
    call = in_thread(lambda: node.pay(node.sender(patience=0.2), 3))
    (first,) = wait_for(node.pool)
    node.connection.call("anvil_dropTransaction", first["hash"])
    (second,) = wait_for(node.pool)
    assert second["nonce"] == first["nonce"]
    node.resume()
    call.result()
    assert node.received() == 3


def test_a_stuck_transaction_is_replaced_with_higher_fees(node):
    """Same nonce, both fees at least 12.5 % up; done once, whichever is mined."""
    node.pause()
    call = in_thread(lambda: node.pay(node.sender(patience=0.2), 3))
    (first,) = wait_for(node.pool)

    def replaced():
        (now,) = node.pool()
        return now if now["hash"] != first["hash"] else None

    second = wait_for(replaced)
    node.resume()
    receipt = call.result()
    assert second["nonce"] == first["nonce"]
    for fee in ("maxFeePerGas", "maxPriorityFeePerGas"):
        assert int(second[fee], 16) >= int(first[fee], 16) * 9 / 8
    assert receipt.hash != first["hash"]
    assert node.received() == 3


def test_fees_are_not_raised_above_the_limit(node):
    """A stuck transaction waits rather than costing more than its owner allows."""
    node.pause()
    limit = 3 * 10**9
    call = in_thread(lambda: node.pay(node.sender(patience=0.1, max_fee_per_gas=limit), 3))
    wait_for(node.pool)
    time.sleep(1)
    (last,) = node.pool()
    assert int(last["maxFeePerGas"], 16) <= limit
    node.resume()
    call.result()
    assert node.received() == 3


def test_a_nonce_taken_by_another_wallet_is_not_waited_for(node):
    """Somebody used the same key elsewhere: the intent gets the next nonce, and is done once."""
    node.pause()
    call = in_thread(lambda: node.pay(node.sender(patience=600), 3))
    (mine,) = wait_for(node.pool)
    node.connection.call("anvil_dropTransaction", mine["hash"])
    node.connection.call("anvil_impersonateAccount", node.alice.address)
    foreign = {
        "from": node.alice.address,
        "to": node.bob,
        "value": "0x1",
        "nonce": mine["nonce"],
        "maxFeePerGas": hex(10**12),
        "maxPriorityFeePerGas": hex(10**11),
    }
    node.connection.call("eth_sendTransaction", foreign)
    node.connection.call("evm_mine")
    node.connection.call("evm_setIntervalMining", 1)
    receipt = call.result()
    assert node.received() == 3
    assert receipt.hash != mine["hash"]


def test_processes_that_share_a_key_do_not_collide(node):
    """Four at once with one key: four nonces, all carried out."""
    context = multiprocessing.get_context("spawn")
    arguments = node.devnet.rpc_url, node.folder / "senders", node.alice, node.token.address
    processes = [context.Process(target=pay_one, args=(*arguments, node.bob, i)) for i in range(4)]
    before = node.nonce()
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert node.received() == 4
    assert node.nonce() == before + 4


def pay_one(url, folder, key, token, receiver, number):
    """One of several that send at the same time."""
    data = interface("TestToken").encode("transfer", receiver, 1)
    with Connection(url) as connection:
        Sender(connection, key, folder).send(f"pay {number}", token, data)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_what_a_reorganisation_took_back_is_sent_again(node, depth):
    """Mined, seen, and gone again: the same intents put the same transactions back, once."""
    sender = node.sender()
    node.connection.call("anvil_mine", "0x5")
    for amount in (1, 10, 100):
        node.pay(sender, amount)
    node.connection.call("anvil_reorg", depth, [])

    # Any look at the journal brings back what is missing.
    wait_for(lambda: not sender.pending() and node.received() == 111)
    assert node.nonce() == 3


def test_confirmations_are_waited_for_and_outlast_a_reorganisation(node):
    """With 6 confirmations a transaction taken back meanwhile is sent again, unasked."""
    node.connection.call("anvil_mine", "0x5")
    node.connection.call("evm_setIntervalMining", 1)
    call = in_thread(lambda: node.pay(node.sender(confirmations=6), 9))
    wait_for(lambda: node.received() == 9)
    node.connection.call("anvil_reorg", 5, [])
    for _ in range(12):
        node.connection.call("evm_mine")
        time.sleep(0.1)
    receipt = call.result()
    assert node.received() == 9
    assert node.connection.head().number - receipt.block + 1 >= 6


def test_a_journal_is_of_one_chain(node, tmp_path):
    """A devnet that began anew has the same id; what was pending on the old one stays there."""
    node.pause()
    call = in_thread(lambda: node.pay(node.sender(timeout=0.1), 3))
    with pytest.raises(ChainError, match="still pending"):
        call.result()
    assert node.sender().pending() == ["pay 3"]
    time.sleep(1)  # a genesis block's hash has its time in seconds
    with Devnet.start(tmp_path / "other") as other, Connection(other.rpc_url) as connection:
        assert Sender(connection, node.alice, node.folder / "senders").pending() == []


def test_missing_ether_is_named(node):
    """How much it has, needs and lacks; and nothing stays in the journal."""
    poor = new_key()
    node.token.mint(poor.address, 5)
    sender = node.sender(poor)
    with pytest.raises(ChainError, match=r"has 0\.000000 ether.*send it 0\.\d+ more"):
        node.pay(sender, 5)
    assert sender.pending() == []


def test_a_base_fee_above_the_limit_is_said(node):
    """Nothing is sent that nobody would mine."""
    with pytest.raises(ChainError, match="above your limit"):
        node.pay(node.sender(max_fee_per_gas=1), 5)


def test_a_call_above_the_gas_cap_is_not_sent(node):
    """A node that answers nonsense, or a hostile contract, cannot spend our ether on gas."""
    with pytest.raises(ChainError, match="more than the cap"):
        node.pay(node.sender(gas_cap=30_000), 5)


def test_a_damaged_journal_is_not_ignored(node):
    """Sending without knowing what was sent could do it twice."""
    sender = node.sender()
    node.pay(sender, 1)
    (file,) = (node.folder / "senders").glob("*.json")
    file.write_text(file.read_text()[:-5])
    with pytest.raises(InvalidConfig, match="damaged"):
        node.pay(sender, 2)
    assert node.received() == 1


def test_old_entries_leave_the_journal(node):
    """It holds what a reorganisation could take back, not a history."""
    sender = node.sender()
    for amount in range(1, 4):
        node.pay(sender, amount)
    node.connection.call("anvil_mine", hex(200))
    node.pay(sender, 4)
    (file,) = (node.folder / "senders").glob("*.json")
    with Journal(file).open() as entries:
        assert [entry.intent for entry in entries] == ["pay 4"]


def test_a_refused_transaction_leaves_no_trace(node, monkeypatch):
    """What the node did not take is not waited for, and its nonce is used by the next."""
    sender = node.sender()
    call = sender.connection.call

    def refusing(method, *params):
        if method == "eth_sendRawTransaction":
            raise RpcError("transaction type not supported")
        return call(method, *params)

    monkeypatch.setattr(sender.connection, "call", refusing)
    with pytest.raises(ChainError, match="not supported"):
        node.pay(sender, 5)
    monkeypatch.undo()
    assert sender.pending() == []
    node.pay(sender, 5)
    assert node.received() == 5
