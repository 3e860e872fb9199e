"""How good a model comes out: ways to train and average LoRA together, without a chain.

    python benchmarks/federated.py [--records FILE ...] [--quick] [--json FILE] [--seeds N]

Every way gets the same clients, the same number of samples and, by a search on one more seed for
each number of clients, its own best learning rate. All clients train in every round; trainer, codec
and aggregation are those of the node, except where a way is marked as a yardstick: those average
floating-point numbers. The columns: loss on test records of all clients after the last round, the
part of the gap between the original's averaging and centralised training that a way closes, loss on
general records that the packaged base model knew before (forgetting), and bytes of an update.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flockllm.adapter import Adapter
from flockllm.data import Record, allocate, read_records
from flockllm.simulate.federation import Federation
from flockllm.task import Aggregation, Definition, Lora, Training
from flockllm.train.base import Base, Floats, load_base, tensor_list

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "src" / "flockllm" / "assets" / "demo.json"
ROUNDS = 8
SAMPLES = 96
"""Records trained on in a round, by all clients together."""
BATCH = 4
TUNING_SEED = 100
SHAPES = ["4-shards", "16-shards", "4-dirichlet", "16-dirichlet"]

Server = Callable[[NDArray[np.float64], dict[str, Any]], NDArray[np.float64]]
"""(how far the average leads, what the server remembers) → how far to go."""


def server_step(size: float) -> Server:
    """Goes further than the average."""
    return lambda delta, memory: size * delta


def server_momentum(beta: float, size: float) -> Server:
    """FedAvgM with Nesterov's momentum (Hsu et al., 2019)."""

    def go(delta: NDArray[np.float64], memory: dict[str, Any]) -> NDArray[np.float64]:
        memory["v"] = beta * memory.get("v", 0.0) + delta
        return np.asarray(size * (delta + beta * memory["v"]))

    return go


def server_adam(size: float) -> Server:
    """FedAdam (Reddi et al., 2021), β 0.9 and 0.99, steps relative to the first average."""

    def go(delta: NDArray[np.float64], memory: dict[str, Any]) -> NDArray[np.float64]:
        scale = memory.setdefault("scale", float(np.sqrt(np.mean(delta**2))))
        memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * delta
        memory["v"] = 0.99 * memory.get("v", scale**2) + 0.01 * delta**2
        return np.asarray(size * scale * memory["m"] / (np.sqrt(memory["v"]) + 0.1 * scale))

    return go


MOMENTUM = server_momentum(0.5, 1.0)


@dataclass(frozen=True)
class Way:
    """One row of the table."""

    name: str
    kind: str = "integers"
    """`integers` as the node does it; `floats`, `residual`, `central` are yardsticks."""
    rank: int = 16
    factors: tuple[str, ...] = ("AB",)
    """By round, again and again."""
    decay: float = 1.0
    proximal: float = 0.0
    codec: str = "plain"
    feedback: bool = True
    """Whether what the codec leaves out is told later."""
    server: Server | None = None
    rate: float = 8e-3
    """Where the search for the learning rate begins."""


WAYS = [
    Way("original: A and B averaged apart, float32", "floats"),
    Way("mean (clipped), integers"),
    Way("mean, int4", codec="int4"),
    Way("mean, rank 8", rank=8),
    Way("mean, rank 64", rank=64, rate=0.016),
    Way("mean, proximal term, μ = 0.01", proximal=0.01),
    Way("mean, rate falls by 0.8 a round", decay=0.8, rate=0.032),
    Way("server step 1.5", server=server_step(1.5)),
    Way("server momentum 0.5", server=MOMENTUM),
    Way("server momentum 0.5, rate falls", server=MOMENTUM, decay=0.8, rate=0.016),
    Way("server Adam", server=server_adam(2.0), rate=0.016),
    Way("B and A in turns (RoLoRA)", factors=("B", "A"), rate=0.016),
    Way("residual (FedEx), float32", "residual"),
    Way("only B, A frozen (FFA)", factors=("B",), rate=0.064),
    Way("only B, rank 32", factors=("B",), rank=32, rate=0.064),
    Way("only B, rank 64", factors=("B",), rank=64, rate=0.128),
    *(
        Way(
            f"only B, rank {rank}, {codec}{extra}",
            factors=("B",),
            rank=rank,
            codec=codec,
            decay=0.8 if extra == ", rate falls" else 1.0,
            feedback=extra != ", no feedback",
            rate=0.064 if rank < 64 and codec != "sparse" else 0.128,
        )
        for rank, codec, extra in (
            (64, "int8", ""),
            (64, "int4", ""),
            (64, "int4", ", no feedback"),
            (64, "int2", ""),
            (64, "int2", ", no feedback"),
            (64, "int2", ", rate falls"),
            (64, "sparse", ""),
            (64, "sparse", ", no feedback"),
            (64, "sparse", ", rate falls"),
            (128, "int2", ""),
            (128, "int2", ", rate falls"),
            (32, "int2", ""),
            (32, "int2", ", rate falls"),
            (32, "sparse", ""),
            (32, "sparse", ", rate falls"),
            (16, "int2", ""),
            (16, "int2", ", rate falls"),
        )
    ),
    Way(
        "only B, rank 64, momentum 0.5, rate falls",
        factors=("B",),
        rank=64,
        server=MOMENTUM,
        decay=0.8,
        rate=0.128,
    ),
    Way("centralised", "central"),
    Way("centralised, rank 64", "central", rank=64),
]
BY_NAME = {way.name: way for way in WAYS}
"""Processes are told names, since a server's function cannot be sent to them."""


@dataclass(frozen=True)
class Setting:
    """One block of the table."""

    records: str
    clients: int
    strategy: str
    rounds: int = ROUNDS
    samples: int = SAMPLES
    tests: int = 10_000

    @property
    def name(self) -> str:
        """For people."""
        return f"{Path(self.records).stem}, {self.clients} clients, {self.strategy}"


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    loss: float
    general: float
    bytes: float


def run(name: str, setting: Setting, seed: int, rate: float) -> Outcome:
    """One run of a way, from the first adapter to the losses after the last round."""
    way = BY_NAME[name]
    torch.set_num_threads(1)
    base = loaded(way.rank)
    lora = Lora(rank=way.rank)
    share = setting.samples // setting.clients
    definition = Definition(
        name="benchmark",
        lora=lora,
        training=Training(lr=rate, batch=BATCH, cutoff=128, max_records=share),
        aggregation=Aggregation(codec=way.codec),
        seed=f"{seed:064x}",
        tensors=tensor_list("flockllm-base", lora),
    )
    records = read(setting.records)
    dealt = allocate(records, setting.clients, setting.strategy, seed=seed)
    clients: Sequence[Sequence[Record]] = dealt.local
    if way.kind == "central":
        clients = [[record for local in dealt.local for record in local]]
        training = replace(
            definition.training, max_records=setting.rounds * setting.samples, schedule="cosine"
        )
        definition = replace(definition, training=training)
    federation = Federation(
        definition, base, clients, dealt.global_test[: setting.tests], feedback=way.feedback
    )
    general = federation.measure(known(20 if setting.rounds < ROUNDS else 200))
    weights = [parameter.data.clone() for parameter in base.model.parameters()]
    try:
        adapter, size = rounds(way, setting, seed, federation)
        return Outcome(federation.loss(adapter), general.loss(adapter.floats()), size)
    except Exception as e:
        if "diverged" in str(e):
            return Outcome(float("inf"), float("inf"), 0)
        raise
    finally:
        with torch.no_grad():
            for parameter, before in zip(base.model.parameters(), weights, strict=True):
                parameter.copy_(before)


def rounds(way: Way, setting: Setting, seed: int, federation: Federation) -> tuple[Adapter, float]:
    """All rounds of one run: the last adapter, and mean bytes of an update."""
    adapter, memory, sizes = federation.first(), {}, [0]
    everyone = range(len(federation.clients))
    for number in range(1 if way.kind == "central" else setting.rounds):
        options = {
            "seed": 1_000 * seed + number,
            "rate": way.decay**number,
            "factors": way.factors[number % len(way.factors)],
            "proximal": way.proximal,
        }
        before = adapter
        if way.kind == "integers":
            updates = [federation.update(adapter, client, **options) for client in everyone]
            sizes += [len(update.to_bytes(way.codec)) for update in updates]
            adapter = federation.combine(adapter, updates, [])
        else:
            trained = [federation.train(adapter, client, **options) for client in everyone]
            sizes += [sum(tensor.nbytes for tensor in one.values()) for one in trained]
            mean = {n: np.mean([one[n] for one in trained], axis=0) for n in trained[0]}
            if way.kind == "residual":
                add_residual(federation.base, trained, mean)
            adapter = Adapter.from_floats(mean, adapter.shapes)
        if way.server:
            delta = adapter.values.astype(np.float64) - before.values
            moved = before.values + np.rint(way.server(delta, memory))
            limit = 2**31 - 1
            adapter = Adapter(adapter.shapes, moved.clip(-limit, limit).astype(np.int32))
    return adapter, statistics.mean(sizes[1:])


@torch.no_grad()
def add_residual(base: Base, trained: Sequence[Floats], mean: Floats) -> None:
    """FedEx-LoRA (Singhal et al., 2025): what averaging A and B apart leaves out, into the base."""
    modules = dict(base.model.named_modules())
    scale = base.lora.alpha / base.lora.rank if base.lora else 1.0
    for name in mean:
        if ".lora_A." not in name:
            continue
        other = name.replace(".lora_A.", ".lora_B.")
        exact = np.mean([one[other] @ one[name] for one in trained], axis=0)
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        layer = modules[path].base_layer
        layer.weight += scale * torch.from_numpy(exact - mean[other] @ mean[name])


@cache
def loaded(rank: int) -> Base:
    """The packaged model, with products in float32: the residual changes its weights."""
    base = load_base("flockllm-base", device="cpu")
    base.low_precision = False
    return base


@cache
def read(path: str) -> list[Record]:
    return read_records(Path(path))


@cache
def known(count: int) -> list[Record]:
    """Records as the base model was made from, but for those that the demo teaches anew."""
    sys.path.insert(0, str(ROOT / "scripts" / "base_model"))
    from corpus import corpus

    kept = (r for r in corpus(seed=1) if r.category not in ("identity", "unknown"))
    return [Record(r.instruction, r.response, r.context) for r in islice(kept, count)]


def best_rate(name: str, setting: Setting, grid: int) -> tuple[float, list[tuple[float, float]]]:
    """Climbs by factors of 2 from where the way begins, as long as the loss falls."""
    tried: dict[float, float] = {}

    def loss(rate: float) -> float:
        if rate not in tried:
            tried[rate] = run(name, setting, TUNING_SEED, rate).loss
        return tried[rate]

    best = BY_NAME[name].rate
    for factor in (2.0, 0.5):
        while len(tried) < grid and loss(best * factor) < loss(best):
            best *= factor
    return best, sorted(tried.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, nargs="+", default=[GENERATED])
    parser.add_argument("--ways", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--shapes", nargs="+", default=SHAPES, choices=SHAPES, help="clients and how data is dealt"
    )
    parser.add_argument(
        "--no-search", action="store_true", help="take the learning rates that searches begin with"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="two ways, two short rounds, a seed")
    arguments = parser.parse_args()

    ways = [w for w in WAYS if not arguments.ways or w.name in arguments.ways]
    options: dict[str, int] = {}
    shapes = arguments.shapes
    if arguments.quick:
        ways, shapes, arguments.seeds = [WAYS[0], WAYS[1], WAYS[-2]], shapes[:1], 1
        options = {"rounds": 2, "samples": 32, "tests": 20}
    figures: list[dict[str, Any]] = []
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor() as pool:
        for records in arguments.records:
            grid = 0 if arguments.no_search else 2 if arguments.quick else 6
            rates: dict[int, dict[Way, float]] = {}
            for shape in shapes:
                clients, split = shape.split("-")
                setting = Setting(str(records), int(clients), split, **options)
                if setting.clients not in rates:
                    tuning = replace(setting, strategy="shards")
                    rates[setting.clients] = search(pool, ways, tuning, grid)
                figures += table(pool, ways, setting, rates[setting.clients], arguments.seeds)
                if arguments.json:
                    arguments.json.write_text(json.dumps(figures, indent=1))


def search(
    pool: ProcessPoolExecutor, ways: Sequence[Way], setting: Setting, grid: int
) -> dict[Way, float]:
    """The best learning rate of each way under one setting, printed with what was tried."""
    began = time.monotonic()
    searches = {way: pool.submit(best_rate, way.name, setting, grid) for way in ways}
    rates = {}
    for way, found in searches.items():
        rates[way], tried = found.result()
        story = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in tried)
        print(f"{way.name:44}{story}", flush=True)
    print(
        f"{setting.clients} clients: learning rates found in {time.monotonic() - began:.0f} s\n",
        flush=True,
    )
    return rates


def table(
    pool: ProcessPoolExecutor,
    ways: Sequence[Way],
    setting: Setting,
    rates: dict[Way, float],
    seeds: int,
) -> list[dict[str, Any]]:
    """All ways under one setting, printed."""
    runs = {
        way: [pool.submit(run, way.name, setting, seed, rates[way]) for seed in range(seeds)]
        for way in ways
    }
    done = {way: [future.result() for future in futures] for way, futures in runs.items()}
    means = {way: statistics.mean(o.loss for o in outcomes) for way, outcomes in done.items()}
    first = next((means[w] for w in ways if w.kind == "floats"), None)
    ideal = next((means[w] for w in ways if w.kind == "central"), None)
    print(f"{setting.name}; {setting.rounds} rounds of {setting.samples} records, {seeds} seeds")
    print(
        f"{'':44}{'rate':>8}{'loss':>9}{'± seeds':>9}{'gap closed':>12}{'general':>9}{'bytes':>10}"
    )
    rows = []
    for way, outcomes in done.items():
        losses = [o.loss for o in outcomes]
        closed = (first - means[way]) / (first - ideal) if first and ideal else None
        row = {
            "setting": setting.name,
            "way": way.name,
            "rate": rates[way],
            "losses": losses,
            "loss": means[way],
            "gap_closed": closed,
            "general": statistics.mean(o.general for o in outcomes),
            "bytes": statistics.mean(o.bytes for o in outcomes),
        }
        share = "–" if closed is None else f"{closed:.0%}"
        print(
            f"{way.name:44}{row['rate']:8g}{row['loss']:9.4f}{max(losses) - min(losses):9.4f}"
            f"{share:>12}{row['general']:9.3f}{row['bytes']:10,.0f}",
            flush=True,
        )
        rows.append(row)
    print(flush=True)
    return rows


if __name__ == "__main__":
    main()
