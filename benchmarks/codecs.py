"""Size, speed and cost in loss of the ways to write an update down.

    python benchmarks/codecs.py [RECORDS.json] [--quick] [--json FILE] [--rounds N] [--seeds N]

First table: bytes, seconds and MB/s of one update of a 7B model's adapter (16.8 M values, q, k, v,
o at rank 16; Gaussian numbers with another spread in each tensor), against what the original
publishes, `torch.save` of float32, and against general compressors of the levels. Second table:
federated training of the packaged model, 4 clients with two categories of the records each, with
the node's own trainer and aggregation: final loss on held-out records of all clients, and bytes per
update. `float32` is the original: unrounded tensors, plainly averaged. Codecs of few levels run
with error feedback and without.
"""

import argparse
import io
import json
import lzma
import statistics
import time
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from flockllm.adapter import CODECS, Adapter, Shapes, Update, quantise
from flockllm.aggregate import mean
from flockllm.data import Record, allocate, read_records
from flockllm.task import Lora, Training
from flockllm.train.base import Base, Floats, load_base, tensor_list
from flockllm.train.data import tokenize
from flockllm.train.loop import Trainer

T = TypeVar("T")

CLIENTS = 4
RATE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    demo = Path(str(resources.files("flockllm") / "assets" / "demo.json"))
    parser.add_argument("records", type=Path, nargs="?", default=demo)
    parser.add_argument(
        "--quick", action="store_true", help="a small adapter, two short rounds, a few codecs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-records", type=int, default=128, help="per client and round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seeds, arguments.max_records = 2, 1, 32

    sizes = speed(layers=2 if arguments.quick else 32)
    losses = federated(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"speed": sizes, "federated": losses}, indent=1))


def speed(layers: int) -> list[dict[str, object]]:
    """Bytes and MB/s of encoding and decoding, in MB of the float32 tensors."""
    shapes: Shapes = {
        f"layers.{layer}.{p}.lora_{ab}.weight": shape
        for layer in range(layers)
        for p in "qkvo"
        for ab, shape in (("A", (16, 4096)), ("B", (4096, 16)))
    }
    current = Adapter.initial(shapes, b"benchmark")
    rng = np.random.default_rng(0)
    trained = {
        name: tensor + rng.normal(0, 10 ** rng.uniform(-4, -3), tensor.shape).astype(np.float32)
        for name, tensor in current.floats().items()
    }
    original = pickled(trained)
    megabytes = 4 * len(current.values) / 1e6
    print(f"{len(current.values):,} values, the original publishes {original:,} bytes\n")
    print(
        f"{'':12}{'bytes':>12}{'smaller':>9}{'bits':>7}{'round':>8}{'encode':>8}{'decode':>8} MB/s"
    )
    rows: list[dict[str, object]] = []
    for codec in CODECS:
        quantise(current, trained, codec)
        update, round_s = timed(lambda c=codec: quantise(current, trained, c)[0])
        data, encode_s = timed(lambda u=update, c=codec: u.to_bytes(c))
        read, decode_s = timed(lambda d=data, c=codec: Update.from_bytes(d, shapes, c))
        assert (read.delta(slice(0, 1000)) == update.delta(slice(0, 1000))).all()
        rows.append(
            row(codec, len(data), original, current, megabytes, round_s, encode_s, decode_s)
        )
        if codec in ("int4", "int2", "sparse"):
            levels = update.values[:].astype(np.int8).tobytes()
            for name, pack in COMPRESSORS.items():
                packed, encode_s = timed(lambda p=pack, b=levels: p[0](b))
                _, decode_s = timed(lambda p=pack, b=packed: p[1](b))
                name = f"  {name}"
                rows.append(
                    row(name, len(packed), original, current, megabytes, 0, encode_s, decode_s)
                )
    return rows


COMPRESSORS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "zlib": (lambda data: zlib.compress(data, 6), zlib.decompress),
    "lzma": (lambda data: lzma.compress(data, preset=1), lzma.decompress),
}


def row(name, size, original, current, megabytes, round_s, encode_s, decode_s) -> dict[str, object]:
    figures = {
        "name": name.strip(),
        "bytes": size,
        "smaller": original / size,
        "bits_per_value": 8 * size / len(current.values),
        "round_mb_per_second": megabytes / round_s if round_s else None,
        "encode_mb_per_second": megabytes / encode_s,
        "decode_mb_per_second": megabytes / decode_s,
    }
    rounding = f"{megabytes / round_s:8.0f}" if round_s else " " * 8
    print(
        f"{name:12}{size:12,}{original / size:8.1f}×{figures['bits_per_value']:7.2f}{rounding}"
        f"{megabytes / encode_s:8.0f}{megabytes / decode_s:8.0f}",
        flush=True,
    )
    return figures


def timed(job: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    return job(), time.process_time() - started


def pickled(tensors: Floats) -> int:
    """What the original publishes."""
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, file)
    return file.getbuffer().nbytes


WAYS: list[tuple[str, str, bool]] = [
    ("float32", "", False),
    ("plain", "plain", False),
    ("int8", "int8", False),
    ("int4", "int4", False),
    ("int4 + feedback", "int4", True),
    ("int2", "int2", False),
    ("int2 + feedback", "int2", True),
    ("sparse", "sparse", False),
    ("sparse + feedback", "sparse", True),
]
"""Name, codec, error feedback."""


def federated(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Final loss of every way, over seeds."""
    records = read_records(arguments.records)
    figures = []
    print(
        f"\n{len(records)} records, {CLIENTS} clients, {arguments.rounds} rounds of "
        f"{arguments.max_records} records each, {arguments.seeds} seeds\n"
    )
    print(f"{'':20}{'loss':>8}{'± seeds':>9}{'bytes':>10}{'smaller':>9}")
    base = load_base("flockllm-base", device="cpu")
    for name, codec, feedback in WAYS[:: 4 if arguments.quick else 1]:
        runs = [
            train(base, records, (codec, feedback), seed, arguments)
            for seed in range(arguments.seeds)
        ]
        losses = [loss for loss, _ in runs]
        size = statistics.mean(size for _, size in runs)
        original = figures[0]["bytes"] if figures else size
        figures.append(
            {"name": name, "losses": losses, "loss": statistics.mean(losses), "bytes": size}
        )
        print(
            f"{name:20}{statistics.mean(losses):8.4f}{max(losses) - min(losses):9.4f}"
            f"{size:10,.0f}{original / size:8.1f}×",
            flush=True,
        )
    return figures


def train(
    base: Base,
    records: list[Record],
    way: tuple[str, bool],
    seed: int,
    arguments: argparse.Namespace,
) -> tuple[float, float]:
    """Loss after the last round, and mean bytes of an update."""
    codec, feedback = way
    lora = Lora(rank=16)
    shapes = tensor_list("flockllm-base", lora)
    recipe = Training(lr=RATE, max_records=arguments.max_records)
    allocation = allocate(records, CLIENTS, "shards", seed=seed)
    heldout = tokenize(allocation.global_test, base.tokenizer)
    trainers = [
        Trainer(base, lora, recipe, tokenize(local, base.tokenizer), heldout)
        for local in allocation.local
    ]
    current = Adapter.initial(shapes, seed.to_bytes(4, "big"))
    residuals: list[np.ndarray | None] = [None] * CLIENTS
    sizes = []
    for round_ in range(arguments.rounds):
        updates = []
        trained = [
            trainer.train(current.floats(), seed=1_000 * seed + CLIENTS * round_ + client)
            for client, trainer in enumerate(trainers)
        ]
        if not codec:
            sizes += [pickled(tensors) for tensors in trained]
            averaged = {name: np.mean([t[name] for t in trained], axis=0) for name in shapes}
            current = Adapter.from_floats(averaged, shapes)
            continue
        for client, tensors in enumerate(trained):
            update, left = quantise(current, tensors, codec, residuals[client])
            residuals[client] = left if feedback else None
            sizes.append(len(update.to_bytes(codec)))
            updates.append(update)
        current = mean(current, updates)
    return trainers[0].loss(current.floats()), statistics.mean(sizes)


if __name__ == "__main__":
    main()
