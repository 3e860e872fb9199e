"""Protocol overhead of a round: its wall time minus training and evaluation on the critical path.

    python benchmarks/protocol.py [--rounds 8] [--json FILE] [--quick]

Runs the demo's four processes, chain and store on this machine. What remains is transactions,
waiting for blocks, fetching, hashing, and processes that get in each other's way. Below the table:
what it costs to begin, by the slowest participant; the first role finds nothing warm.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from flockllm.simulate.demo import Demo, run_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    args = parser.parse_args()
    rounds = 2 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as folder:
        result = run_demo(Demo(out=Path(folder), rounds=rounds))
    print(f"{'round':>5} {'train s':>8} {'evaluate s':>10} {'other s':>8} {'gas':>10} {'bytes':>9}")
    for r in result["rounds"]:
        seconds = r["seconds"]
        print(
            f"{r['number']:>5} {seconds['train']:>8.2f} {seconds['evaluate']:>10.2f} "
            f"{seconds['other']:>8.2f} {r['gas']:>10,} {r['bytes_published']:>9,}"
        )
    other = [r["seconds"]["other"] for r in result["rounds"]]
    print(f"other: median {statistics.median(other):.2f} s, most {max(other):.2f} s")
    first, *later = (r["seconds"]["first_step"] for r in result["rounds"])
    print(f"from the start of a process until it can stake: {result['ready_seconds']:.2f} s")
    print(f"from a role to the first training step: {first:.2f} s, later {max(later):.2f} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
