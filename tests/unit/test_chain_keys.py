"""Keys: files that every wallet reads, secrets that only the key gives."""

import hashlib
import hmac
import json
import stat

import pytest

from flockllm.chain.keys import (
    SCRYPT_N_LIGHT,
    Key,
    create_key,
    find_password,
    key_address,
    load_key,
    save_key,
)
from flockllm.errors import InvalidConfig

KEY = Key(bytes.fromhex("7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"))

STANDARD = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
        "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
        "kdf": "scrypt",
        "kdfparams": {
            "dklen": 32,
            "n": 262144,
            "p": 8,
            "r": 1,
            "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
        },
        "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}
"""The scrypt test vector of the Web3 Secret Storage definition."""


def test_reads_the_standards_own_example(tmp_path):
    """A keystore that another wallet wrote opens here."""
    path = tmp_path / "key.json"
    path.write_text(json.dumps(STANDARD))
    path.chmod(0o600)
    assert load_key(path, "testpassword") == KEY


def test_what_was_saved_is_loaded_and_nobody_else_reads_it(tmp_path):
    """A key survives its file; the file has mode 600 and never the key itself."""
    path = tmp_path / "deep" / "key.json"
    key = create_key(path, "secret", scrypt_n=SCRYPT_N_LIGHT)
    assert load_key(path, lambda: "secret") == key
    assert key_address(path) == key.address
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.private.hex() not in path.read_text()


def test_a_key_file_is_never_overwritten(tmp_path):
    """A second key under the same name is refused, and the first one is still there."""
    path = tmp_path / "key.json"
    key = create_key(path, "secret", scrypt_n=SCRYPT_N_LIGHT)
    with pytest.raises(InvalidConfig, match="not overwritten"):
        save_key(path, KEY, "secret", scrypt_n=SCRYPT_N_LIGHT)
    assert load_key(path, "secret") == key


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no key file"),
        ("{", "not a readable key file"),
        ("[]", "not a version 3 keystore"),
        ('{"version": 3}', "is damaged"),
    ],
)
def test_an_unusable_file_is_named(tmp_path, content, said):
    """Whatever is wrong with a key file, the message has its path and the reason."""
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    with pytest.raises(InvalidConfig, match=said) as error:
        load_key(path, "secret")
    assert str(path) in str(error.value)


def test_a_wrong_password_is_said_to_be_wrong(tmp_path):
    """Not "MAC mismatch": people do not know what that is."""
    path = tmp_path / "key.json"
    save_key(path, KEY, "secret", scrypt_n=SCRYPT_N_LIGHT)
    with pytest.raises(InvalidConfig, match="wrong password"):
        load_key(path, "guess")


def test_a_file_that_others_can_read_is_warned_of(tmp_path, caplog):
    """The key still loads: its owner decides."""
    path = tmp_path / "key.json"
    save_key(path, KEY, "secret", scrypt_n=SCRYPT_N_LIGHT)
    path.chmod(0o644)
    load_key(path, "secret")
    assert "chmod 600" in caplog.text


def test_passwords_come_from_the_environment_or_a_file(tmp_path, monkeypatch):
    """The variable wins over the file; a line's end is no part of a password."""
    file = tmp_path / "password"
    file.write_text("from file\n")
    monkeypatch.delenv("FLOCKLLM_PASSWORD", raising=False)
    monkeypatch.setenv("FLOCKLLM_PASSWORD_FILE", str(file))
    assert find_password() == "from file"
    monkeypatch.setenv("FLOCKLLM_PASSWORD", "from variable")
    assert find_password() == "from variable"


def test_a_missing_password_file_is_named(tmp_path, monkeypatch):
    """A typing error in the variable does not end in a prompt."""
    monkeypatch.delenv("FLOCKLLM_PASSWORD", raising=False)
    monkeypatch.setenv("FLOCKLLM_PASSWORD_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidConfig, match="nowhere"):
        find_password()


def test_a_key_does_not_print_itself():
    """Logs and tracebacks show the address at most."""
    assert KEY.private.hex() not in repr(KEY)
    assert str(KEY.private) not in repr(KEY)


def test_salts_are_the_protocols_hmac():
    """HMAC-SHA256(private key, task ‖ round ‖ purpose), and another for each of the three."""
    task = "0x" + "Ab" * 20
    message = b"\xab" * 20 + (7).to_bytes(32) + b"update"
    expected = hmac.new(KEY.private, message, hashlib.sha256).digest()
    assert KEY.salt(task, 7, "update") == expected
    others = {
        KEY.salt(task, 8, "update"),
        KEY.salt(task, 7, "vote"),
        KEY.salt("0x" + "1" * 40, 7, "update"),
    }
    assert len(others | {expected}) == 4
