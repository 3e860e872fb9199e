"""Puts the real parts together, for the commands and for simulations.

Everything else takes its parts as arguments; here they are chosen.
"""

import gc
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from flockllm.adapter import Adapter
from flockllm.adapter.peft import to_peft
from flockllm.chain.deploy import create_task
from flockllm.chain.keys import Key, find_password, load_key
from flockllm.chain.rpc import Connection, connect
from flockllm.chain.sender import Sender
from flockllm.chain.task import Task
from flockllm.config import Network, sent_folder, state_folder
from flockllm.data import Record, read_records, write_records
from flockllm.errors import InvalidConfig, ModelError
from flockllm.node import Journal, Node, Workbench
from flockllm.node.outside import Bench, Progress
from flockllm.node.own import OwnBench
from flockllm.rounds import Outcome
from flockllm.store import Store, cid_of, open_store, parse_cid
from flockllm.task import (
    MAX_DEFINITION_BYTES,
    Definition,
    TaskFile,
    folder_digest,
    in_tokens,
)

if TYPE_CHECKING:
    from flockllm.train.base import Base

log = logging.getLogger(__name__)

NOBODY = "0x" + "00" * 20
"""An address to look at a task with when it does not matter who looks."""


@contextmanager
def loading() -> Iterator[None]:
    """For imports of many modules: looking for garbage takes a fifth of the time, in vain."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def open_key(path: Path, network: Network) -> Key:
    """The key in a file; the password of a test network is in its file, others are asked for."""
    if network.password_file:
        try:
            return load_key(path, Path(network.password_file).read_text().strip())
        except OSError as e:
            raise InvalidConfig(f"password file {network.password_file}: {e.strerror}") from e
    return load_key(path, find_password)


def open_connection(network: Network) -> Connection:
    """The network's chain."""
    return connect(network.rpc, network.chain_id or None)


def open_content(network: Network) -> Store:
    """The network's store."""
    return open_store(network.store, network.gateways)


def open_task(
    connection: Connection, address: str, key: Key | None = None, network: Network | None = None
) -> Task:
    """A task's contract; with a key, one can act on it as the network's file says."""
    return Task(connection, address, open_sender(connection, key, network) if key else None)


def open_sender(connection: Connection, key: Key, network: Network | None = None) -> Sender:
    """Who signs for a key, as patient and as generous as the network's file says."""
    limit = network.max_fee_gwei * 10**9 if network else 0
    return Sender(
        connection,
        key,
        sent_folder(),
        confirmations=network.confirmations if network else 1,
        max_fee_per_gas=limit or None,
    )


def new_task(connection: Connection, network: Network, key: Key, file: TaskFile) -> tuple[str, str]:
    """Checks a task file, publishes what it defines, and has the contract made and funded.

    Returns:
        The task's address, and the CID of its definition.

    Raises:
        InvalidSpec, ModelError: the task cannot be trained; nothing was sent.
    """
    if not network.factory or not network.token:
        raise InvalidConfig("the network file names no factory and token: `flockllm deploy`")
    definition = complete(file.definition)
    store = open_content(network)
    spec, adapter = store.put(definition.to_bytes()), store.put(first_adapter(definition))
    sender = open_sender(connection, key, network)
    address = create_task(
        sender, network.factory, file.terms, network.token, spec, adapter, file.pool
    )
    return address, cid_of(spec, len(definition.to_bytes()))


def first_adapter(definition: Definition) -> bytes:
    """The global adapter before the first round; of own model code, the empty file."""
    if definition.code.image:
        return b""
    return Adapter.initial(definition.tensors, bytes.fromhex(definition.seed)).to_bytes()


def complete(definition: Definition) -> Definition:
    """Adds what follows from a creator's choices: base digest, tensor list, seed."""
    with loading():
        from flockllm.train.base import locate, tensor_list

    seed = definition.seed if int(definition.seed, 16) else secrets.token_hex(32)
    if definition.code.image:
        parse_cid(definition.code.image)
        return replace(definition, seed=seed)
    model = definition.model
    if not model.revision:
        model = replace(model, digest=folder_digest(Path(locate(model.base))))
    return replace(
        definition,
        model=model,
        tensors=tensor_list(model.base, definition.lora),
        seed=seed,
    )


def pull_adapter(task: Task, store: Store, out: Path, round_: int | None = None) -> str:
    """Writes a task's global adapter as PEFT loads it; returns its CID.

    Parameters of own model code are written as they are, to `parameters.bin`.

    Raises:
        InvalidConfig: there is no such round yet.
        NotFound: the store does not have it.
    """
    definition = read_definition(task, store)
    if round_ is None:
        digest = task.look(NOBODY).state.adapter
    else:
        result = task.result(round_)
        if result.outcome == Outcome.OPEN:
            raise InvalidConfig(f"round {round_} is not closed")
        digest = result.adapter_after
    if definition.code.image:
        data = store.get(digest, None, definition.code.parameters)
        out.mkdir(parents=True, exist_ok=True)
        (out / "parameters.bin").write_bytes(data)
        return cid_of(digest, len(data))
    adapter = read_adapter(definition, store, digest)
    to_peft(adapter, peft_config(definition), out)
    return cid_of(digest, len(adapter.to_bytes()))


def read_adapter(definition: Definition, store: Store, digest: bytes) -> Adapter:
    """A global adapter from the store, checked against its digest and the tensor list."""
    size = len(Adapter.zeros(definition.tensors).to_bytes())
    return Adapter.from_bytes(store.get(digest, size, size), definition.tensors)


def peft_config(definition: Definition) -> dict[str, Any]:
    """What `adapter_config.json` says of the task's LoRA."""
    lora, model = definition.lora, definition.model
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "base_model_name_or_path": model.base,
        "revision": model.revision or None,
    }


def read_definition(task: Task, store: Store) -> Definition:
    """What the task trains, as its digest on chain says.

    Raises:
        NotFound: the store does not have it.
        InvalidSpec: it is not a definition that this version understands.
    """
    data = store.get(task.spec_digest, None, MAX_DEFINITION_BYTES)
    return Definition.from_bytes(data)


def named_by(task: Task, store: Store) -> set[bytes]:
    """Digests of all that a task names: definition and its code, adapters, published updates."""
    state = task.look(NOBODY).state
    named = {task.spec_digest, task.initial_adapter, state.adapter}
    for number in range(1, state.round + 1):
        named |= {task.result(number).adapter_after}
        named |= {seat.digest for seat in task.seats(number)}
    if image := read_definition(task, store).code.image:
        named.add(parse_cid(image)[1])
    return {digest for digest in named if any(digest)}


def open_base(
    definition: Definition,
    where: str = "",
    *,
    device: str = "auto",
    load_8bit: bool = False,
    load_4bit: bool = False,
) -> "Base":
    """The task's base model, checked to be the one that everybody else uses.

    Args:
        definition: of the task.
        where: a folder that holds it on this machine; empty for where the definition says.
        device: `auto`, `cpu`, `cuda`, `cuda:1` …
        load_8bit, load_4bit: for hosting; not for taking part.

    Raises:
        ModelError: it cannot be loaded, or is another one.
    """
    with loading():
        from flockllm.train.base import load_base, locate

    model = definition.model
    if model.digest:
        folder = Path(locate(where or model.base))
        if (found := folder_digest(folder)) != model.digest:
            raise ModelError(
                f"{folder} is not the task's base model: its files have digest {found[:16]}…, "
                f"the task says {model.digest[:16]}…; pass its folder with --base-model"
            )
    return load_base(
        where or model.base,
        revision=model.revision,
        load_8bit=load_8bit,
        load_4bit=load_4bit,
        device=device,
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """How one participant takes part: what `flockllm join` is told."""

    network: Network
    task: str
    data: str
    """A file of records, or the name of a data set on the hub."""
    key: Path
    base_model: str = ""
    device: str = "auto"
    stake: int = 0
    """What to stake when registering; 0 for exactly the bond."""
    top_up: int = 0
    """The most to add after slashes."""
    sandbox: Literal["", "bubblewrap", "podman", "bare"] = ""
    """What holds own model code; empty for what is installed."""
    leave: bool = False
    """Whether to exit when the task is done."""


def participate(
    part: Part, *, bench: type[Workbench] = Workbench, progress: Progress | None = None
) -> None:
    """Takes part in a task until it is over, then claims what was earned.

    Everything is checked before any stake moves: task, data, base model, balance.
    """
    key = open_key(part.key, part.network)
    with ExitStack() as stack:
        connection = stack.enter_context(open_connection(part.network))
        task = open_task(connection, part.task, key, part.network)
        journal = Journal(state_folder(task.chain_id, task.address, key.address))
        stack.enter_context(journal)
        store = open_content(part.network)
        definition = read_definition(task, store)
        log.info("task %s at %s, by %s", definition.name, task.address, task.creator)

        def secret(round_: int, purpose: str) -> bytes:
            return key.salt(task.address, round_, purpose)

        work: Bench
        if definition.code.image:
            models = _sandboxes(stack, definition, part, key, store, journal.folder)
            work = OwnBench(task, store, *models, journal, secret, definition.code.parameters)
        else:
            trainer = _trainer(definition, part, key)
            work = bench(definition, task, store, trainer, journal, secret, progress)
        me = psutil.Process()
        seconds = time.time() - me.create_time()
        journal.record("ready", address=key.address, pid=me.pid, seconds=seconds)
        stake(task, key.address, part.stake)
        Node(key.address, task, connection, work, journal, part.top_up).run()
        take_out(task, key.address, leave=part.leave)


def stake(task: Task, me: str, amount: int = 0) -> None:
    """Registers with a stake, unless that was done before."""
    mine = task.look(me).me
    token = task.token
    if mine.registered:
        log.info("already staked %s", in_tokens(mine.stake))
        return
    amount = amount or task.terms.bond
    balance = token.balance(me)
    if balance < amount:
        raise InvalidConfig(
            f"{me} holds {in_tokens(balance)} {token.symbol}, the stake is {in_tokens(amount)}: "
            f"send it {in_tokens(amount - balance)} more"
        )
    task.register(amount)
    log.info("staked %s; balance %s", in_tokens(amount), in_tokens(balance - amount))


def take_out(task: Task, me: str, *, leave: bool) -> int:
    """Claims what was earned, and with `leave` the stake too; returns what was taken out."""
    if leave and task.look(me).me.registered:
        task.exit()
    amount = task.look(me).me.claimable
    if amount:
        task.claim()
    log.info("took out %s; balance %s", in_tokens(amount), in_tokens(task.token.balance(me)))
    return amount


def _split(
    definition: Definition, part: Part, key: Key
) -> tuple[Sequence[Record], Sequence[Record]]:
    """The participant's records: what is trained on, and what is held out for the whole task."""
    from flockllm.train.data import split

    records, evaluation = read_records(part.data), definition.evaluation
    wanted = round(len(records) * evaluation.heldout)
    heldout = min(evaluation.most, max(evaluation.least, wanted))
    if heldout >= len(records):
        raise InvalidConfig(
            f"{part.data} has {len(records)} records; the task holds out {heldout} of them, "
            "so that nothing is left to train on: bring more"
        )
    return split(records, heldout, key.salt(part.task, 0, "held-out"))


def _sandboxes(
    stack: ExitStack, definition: Definition, part: Part, key: Key, store: Store, folder: Path
) -> tuple[Any, Any]:
    """Two sandboxes of the task's image: one sees the training records, one the held-out ones."""
    from flockllm.sandbox import Limits, SandboxedModel

    code = definition.code
    image = folder / "image.tar"
    _, digest = parse_cid(code.image)
    image.write_bytes(store.get(digest, code.size, code.size))
    limits = Limits(memory=code.memory, output=code.parameters, call_seconds=code.call_seconds)
    models = []
    for name, records in zip(("train", "heldout"), _split(definition, part, key), strict=True):
        data = folder / f"{name}.json"
        write_records(records, data)
        model = SandboxedModel(
            image, data, limits, engine=part.sandbox or None, warm=name == "train"
        )
        models.append(stack.enter_context(model))
        log.info("own model code in %s: %d records to %s", model.engine, len(records), name)
    return models[0], models[1]


def _trainer(definition: Definition, part: Part, key: Key) -> Any:
    """Reads and checks the data, loads the base, and keeps both warm."""
    from flockllm.train.data import describe, tokenize
    from flockllm.train.loop import Trainer

    training = definition.training
    base = open_base(definition, part.base_model, device=part.device)
    examples = [
        tokenize(
            part_,
            base.tokenizer,
            definition.model.template,
            training.cutoff,
            training.loss_on,
        )
        for part_ in _split(definition, part, key)
    ]
    log.info("data: train %s; held out %s", describe(examples[0]), describe(examples[1]))
    return Trainer(base, definition.lora, training, *examples)
