"""A participant's key: kept encrypted in a file, and the source of all its secrets.

The file is a Web3 Secret Storage keystore, version 3, as every wallet reads and writes it.
"""

import getpass
import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flockllm.errors import InvalidConfig

log = logging.getLogger(__name__)

SCRYPT_N = 2**18
"""Cost of guessing a password, as geth sets it: about a second and 256 MiB a guess."""

SCRYPT_N_LIGHT = 2**12
"""Geth's light setting: a few milliseconds, so that four processes of a demo start at once.
Only for keys of test networks."""


@dataclass(frozen=True)
class Key:
    """A secp256k1 private key, 32 bytes. It never shows itself when printed."""

    private: bytes = field(repr=False)

    @cached_property
    def address(self) -> str:
        """The checksummed address."""
        from eth_keys.datatypes import PrivateKey

        return PrivateKey(self.private).public_key.to_checksum_address()

    def salt(self, task: str, round_: int, purpose: str) -> bytes:
        """32 bytes that only the key's owner knows, and knows again after losing everything.

        HMAC-SHA256(private key, task ‖ round ‖ purpose): the task's 20 bytes, the round as 32
        bytes big-endian, the purpose in UTF-8.
        """
        message = bytes.fromhex(task.removeprefix("0x")) + round_.to_bytes(32) + purpose.encode()
        return hmac.digest(self.private, message, hashlib.sha256)


def new_key() -> Key:
    """A key from the system's randomness."""
    # The group's order is so close to 2²⁵⁶ that 32 random bytes are a valid key.
    return Key(secrets.token_bytes(32))


def save_key(path: Path, key: Key, password: str, *, scrypt_n: int = SCRYPT_N) -> None:
    """Encrypts a key into a new file that only its owner can read.

    Raises:
        InvalidConfig: the file exists (a key is never overwritten), or cannot be written.
    """
    from eth_account import Account

    content = Account.encrypt(key.private, password, kdf="scrypt", iterations=scrypt_n)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise InvalidConfig(f"{path} exists and is not overwritten: name another file") from None
    except OSError as e:
        raise InvalidConfig(f"cannot write the key file {path}: {e.strerror}") from e


def create_key(path: Path, password: str, *, scrypt_n: int = SCRYPT_N) -> Key:
    """Makes a new key and saves it, see `save_key`."""
    key = new_key()
    save_key(path, key, password, scrypt_n=scrypt_n)
    return key


def load_key(path: Path, password: str | Callable[[], str]) -> Key:
    """Decrypts a key file; `password` may be a function, called once the file was found.

    Raises:
        InvalidConfig: no such file, not a keystore, or the wrong password.
    """
    from eth_account import Account

    content = _read(path)
    secret = password if isinstance(password, str) else password()
    try:
        return Key(bytes(Account.decrypt(content, secret)))
    except ValueError as e:
        if "MAC mismatch" in str(e):
            raise InvalidConfig(f"wrong password for {path}") from None
        raise InvalidConfig(f"{path} is damaged: {e}") from e
    except (KeyError, TypeError) as e:
        raise InvalidConfig(f"{path} is damaged: {e}") from e


def key_address(path: Path) -> str:
    """The checksummed address of a key file, as the file says: no password is needed.

    Raises:
        InvalidConfig: no such file, or not a keystore that names its address.
    """
    from eth_utils.address import to_checksum_address

    try:
        return to_checksum_address(str(_read(path)["address"]))
    except (KeyError, ValueError) as e:
        raise InvalidConfig(f"{path} does not say its address") from e


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if path.stat().st_mode & 0o077:
            log.warning("%s can be read by others: chmod 600 it", path)
    except FileNotFoundError:
        raise InvalidConfig(f"there is no key file {path}: `flockllm key new` makes one") from None
    except (OSError, ValueError) as e:
        raise InvalidConfig(f"{path} is not a readable key file: {e}") from e
    if not isinstance(content, dict) or content.get("version") != 3:
        raise InvalidConfig(f"{path} is not a version 3 keystore")
    return content


def find_password(prompt: str = "Password of the key file: ", *, confirm: bool = False) -> str:
    """The password from FLOCKLLM_PASSWORD, the file FLOCKLLM_PASSWORD_FILE, or the terminal.

    Never from an argument: every user of a machine can read those of all processes.

    Raises:
        InvalidConfig: the file cannot be read, nobody is there to ask, or two entries differ.
    """
    if (password := os.environ.get("FLOCKLLM_PASSWORD")) is not None:
        return password
    if (file := os.environ.get("FLOCKLLM_PASSWORD_FILE")) is not None:
        try:
            return Path(file).read_text().rstrip("\r\n")
        except OSError as e:
            raise InvalidConfig(f"FLOCKLLM_PASSWORD_FILE: {file}: {e.strerror}") from e
    try:
        password = getpass.getpass(prompt)
        if confirm and getpass.getpass("Once more: ") != password:
            raise InvalidConfig("the two passwords differ")
    except (EOFError, OSError) as e:
        raise InvalidConfig(
            "no terminal to ask for the password: set FLOCKLLM_PASSWORD_FILE"
        ) from e
    return password
