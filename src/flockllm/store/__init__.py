"""Content by CID: a directory, IPFS, S3, and gateways that need not be trusted."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from flockllm.cid import cid_of, digest_of, parse_cid
from flockllm.errors import InvalidConfig
from flockllm.store.base import Progress, Store
from flockllm.store.local import LocalStore

__all__ = ["LocalStore", "Progress", "Store", "cid_of", "digest_of", "open_store", "parse_cid"]


def open_store(location: str, gateways: Sequence[str] = (), cache: Path | None = None) -> Store:
    """Opens the store at `location`.

    Args:
        location: `DIR`, `ipfs://host:5001` (`ipfs+https://` behind TLS), or `s3://bucket/prefix`.
        gateways: URLs of trustless gateways, asked in turn for what is not at `location`.
        cache: directory for what was fetched, where `location` is none; else `cache_folder()`.

    Raises:
        InvalidConfig: no such kind of location.
        StoreError: the directory cannot be used.
    """
    if "://" not in location and not gateways:
        return LocalStore(Path(location).expanduser())

    from flockllm.store.ipfs import Gateway, Kubo  # what follows takes 0.1 s to import
    from flockllm.store.remote import RemoteStore
    from flockllm.store.s3 import S3

    for url in gateways:
        if not _is_web(url):
            raise InvalidConfig(f"a gateway is an http:// or https:// URL, got {url!r}")
    fallbacks = [Gateway(url) for url in gateways]

    if "://" not in location:
        return RemoteStore(LocalStore(Path(location).expanduser()), fallbacks)

    try:
        parts = urlsplit(location)
        port = parts.port
    except ValueError as e:
        raise InvalidConfig(f"{location!r} is no store: {e}") from e
    home: Kubo | S3
    match parts.scheme:
        case "ipfs" if parts.hostname:
            home = Kubo(f"http://{parts.netloc}" + ("" if port else ":5001"))
        case "ipfs+https" if parts.hostname:
            home = Kubo(f"https://{parts.netloc}")
        case "s3" if parts.netloc:
            home = S3(parts.netloc, parts.path)
        case _:
            raise InvalidConfig(
                f"a store is a folder, ipfs://host:5001 or s3://bucket/prefix, got {location!r}"
            )
    return RemoteStore(LocalStore(cache or cache_folder()), [home, *fallbacks], home)


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def cache_folder() -> Path:
    """Where fetched content is kept unless said otherwise, as the XDG specification has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flockllm" / "store"
