"""The strategies' table is made by the real contract and tells honest from dishonest."""

from dataclasses import replace

import pytest

from flockllm.simulate.economics import STRATEGIES, TERMS, Scenario

BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}


def played(name: str):
    """A short task in which a fifth follows a strategy."""
    return Scenario(BY_NAME[name], replace(TERMS, rounds=15), crowd=20, seed=3).play()


@pytest.mark.parametrize("name", ["sign flip", "no reveal", "no show"])
def test_what_harms_others_loses_money(name):
    """And honest participants in the same seats earn, unslashed."""
    ledger, role = played(name), BY_NAME[name].role
    assert ledger.mean(True, role) < 0 < ledger.mean(False, role)
    assert ledger.honest_slashed == 0
    assert not any(ledger.poison)


def test_good_updates_are_accepted():
    """Among the honest, nearly all of them, and rounds end with a new adapter."""
    ledger = played("honest")
    assert sum(ledger.good) >= 0.9 * len(ledger.good)
    assert ledger.adopted >= 13
