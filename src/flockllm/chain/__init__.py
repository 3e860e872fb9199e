"""Everything that speaks JSON-RPC: keys, sending, the contracts, a chain of one's own."""

from flockllm.chain.abi import Event
from flockllm.chain.deploy import (
    Cost,
    create_task,
    deploy_factory,
    deploy_token,
    estimate,
    tasks,
)
from flockllm.chain.devnet import Devnet, find_anvil
from flockllm.chain.keys import (
    SCRYPT_N,
    SCRYPT_N_LIGHT,
    Key,
    create_key,
    find_password,
    key_address,
    load_key,
    new_key,
    save_key,
)
from flockllm.chain.rpc import Connection, Head, RpcError, connect
from flockllm.chain.sender import Receipt, Sender
from flockllm.chain.task import Task
from flockllm.chain.token import Token

__all__ = [
    "SCRYPT_N",
    "SCRYPT_N_LIGHT",
    "Connection",
    "Cost",
    "Devnet",
    "Event",
    "Head",
    "Key",
    "Receipt",
    "RpcError",
    "Sender",
    "Task",
    "Token",
    "connect",
    "create_key",
    "create_task",
    "deploy_factory",
    "deploy_token",
    "estimate",
    "find_anvil",
    "find_password",
    "key_address",
    "load_key",
    "new_key",
    "save_key",
    "tasks",
]
