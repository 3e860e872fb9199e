"""A long campaign: contract and model side by side, after every call equal, for millions of calls.

    python -m fuzz.campaign --calls 1000000 --seed 1

Prints calls, refusals, violations and how often each function succeeded and was refused; ends
with 1 at the first difference, with the seed that repeats it. The game is the one of
tests/properties/test_round_model.py, in one process per core.
"""

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from random import Random

from tests.properties.game import Game
from tests.properties.test_round_model import small_terms

from flockllm.rounds import Phase

STEPS = 600
BATCH = 20
"""Games per task of a worker."""


def play(seed: int, blueprint: bytes | None = None) -> Game:
    """One game to its end, or `STEPS` steps; raises AssertionError where the two differ."""
    random = Random(seed)
    big = random.random() < 0.05
    terms = small_terms(
        random.randint(1, 16 if big else 4),
        random.randint(1, 31 if big else 7),
        random.randint(1, 12),
        random.choice([0, 1, 1_000]),
        random,
    )
    spare = random.randint(0, 4)
    pool = random.choice([0, 1, 999_999, 10**21])
    game = Game(terms, pool, terms.committee + spare, blueprint=blueprint)
    for who in game.people[: terms.committee + spare // 2]:
        game.call(who, "register", terms.bond)
    diligence = random.choice([0.6, 0.8, 0.97])
    left = 12  # calls after the end of the task
    for step in range(STEPS):
        chance = random.random()
        if chance < diligence:
            game.obey(random)
        elif chance < 0.3 + 0.7 * diligence:
            game.defy(random)
        else:
            game.hurry(random)
        if step % 40 == 0:
            game.compare_all()
        left -= game.model.phase >= Phase.FINISHED
        if not left:
            break
    game.compare_all()
    return game


def batch(first: int) -> tuple[Counter[str], list[str]]:
    """`BATCH` games: what was called, and what went wrong."""
    counts: Counter[str] = Counter()
    for seed in range(first, first + BATCH):
        try:
            game = play(seed)
        except AssertionError as e:
            return counts, [f"seed {seed}: {e}"]
        counts += game.counts
        counts.update(f"round {r.outcome.name}" for r in game.model.played.values())
    return counts, []


def main() -> None:
    """Plays until there are enough calls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="the first game's")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    violations: list[str] = []
    started, seed = time.monotonic(), options.seed
    with ProcessPoolExecutor() as pool:
        running = set()
        while counts["calls"] < options.calls and not violations:
            while len(running) < 2 * (os.cpu_count() or 1):
                running.add(pool.submit(batch, seed))
                seed += BATCH
            done = next(as_completed(running))
            running.remove(done)
            found, wrong = done.result()
            counts += found
            violations += wrong
        for future in running:
            future.cancel()
    seconds = time.monotonic() - started
    report(counts, seconds)
    print(f"violations: {len(violations)}")
    sys.exit("\n".join(violations) or None)


def report(counts: Counter[str], seconds: float) -> None:
    """Prints what was called."""
    total = counts["calls"]
    print(f"calls: {total:,} ({counts['refused']:,} refused) in {seconds:.0f} s")
    print("rounds: " + ", ".join(f"{n:,} {k[6:]}" for k, n in counts.items() if k[:6] == "round "))
    print(f"{'function':<16}{'done':>10}{'refused':>10}")
    for name in sorted({key.split(":")[1] for key in counts if ":" in key}):
        print(f"{name:<16}{counts[f'done:{name}']:>10,}{counts[f'refused:{name}']:>10,}")


if __name__ == "__main__":
    main()
