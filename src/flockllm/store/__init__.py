"""Content by CID: a directory, IPFS, S3, and gateways that need not be trusted."""

from pathlib import Path

from flockllm.store.base import Store
from flockllm.store.cid import cid_of, digest_of, parse_cid
from flockllm.store.local import LocalStore

__all__ = ["LocalStore", "Store", "cid_of", "digest_of", "open_store", "parse_cid"]


def open_store(location: str) -> Store:
    """Opens the store at `location`: a directory."""
    return LocalStore(Path(location).expanduser())
