"""`python -m flockllm.simulate.attack`: a participant of a simulation that does harm."""

import argparse
from pathlib import Path

from flockllm.config import find_network
from flockllm.logs import set_up_logging
from flockllm.simulate.attackers import ATTACKS
from flockllm.task import tokens
from flockllm.wiring import Part, participate


def main() -> None:
    """Takes part like `flockllm join`, with a proposer that poisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--key", required=True, type=Path)
    parser.add_argument("--network", required=True)
    parser.add_argument("--top-up", default="0")
    parser.add_argument("--attack", choices=list(ATTACKS), default="sign-flip")
    args = parser.parse_args()
    set_up_logging()
    part = Part(
        network=find_network(args.network),
        task=args.task,
        data=args.data,
        key=args.key,
        top_up=tokens(args.top_up),
    )
    participate(part, bench=ATTACKS[args.attack])


if __name__ == "__main__":
    main()
