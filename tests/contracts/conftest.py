"""Every test starts from the same chain."""

import boa
import pytest

from tests.contracts.play import factory, plain_token


@pytest.fixture(scope="session")
def _deployed():
    """Factory, blueprint and token, once: they have no state that a test's end does not undo."""
    factory()
    plain_token()


@pytest.fixture(autouse=True)
def _isolated(_deployed):
    """Undoes what a test did to the chain, and gives its blocks hashes."""
    with boa.env.anchor():
        boa.env.evm.patch.prev_hashes = [bytes([i]) * 32 for i in range(256)]
        yield
