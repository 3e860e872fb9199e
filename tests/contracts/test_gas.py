"""What calls cost does not creep up unseen."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_gas_is_as_in_the_snapshot():
    """Small committees, measured again, cost what benchmarks/gas.json says, within 1 %."""
    command = [sys.executable, "-m", "benchmarks.gas", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_gas_does_not_depend_on_the_crowd():
    """I6: with 10 000 registered every call costs what it costs with 100, within 1 %.

    Retiring a whole committee is the exception: the more people there are, the fewer of those that
    fill the holes retire themselves. It is bounded all the same.
    """
    kept = json.loads((ROOT / "benchmarks/gas.json").read_text())
    for size, figures in kept.items():
        committee, crowd = size.split(", ")
        if crowd == "10000":
            for name, gas in figures.items():
                few = kept[f"{committee}, 100"][name]
                spread = 0.2 if name == "advance, no-shows" else 0.01
                assert abs(gas - few) <= spread * few, (committee, name)


def test_no_call_is_larger_than_half_a_transaction():
    """8 M gas at most, at the largest committee too; EIP-7825 allows 16.7 M."""
    kept = json.loads((ROOT / "benchmarks/gas.json").read_text())
    assert max(max(figures.values()) for figures in kept.values()) < 8_000_000
