"""Size, speed and cost in loss of the ways to write an update down.

    python benchmarks/codecs.py [RECORDS.json] [--quick] [--json FILE] [--seeds N]

First table: bytes, seconds and MB/s of one update of a 7B model's adapter (16.8 M values, q, k, v,
o at rank 16; Gaussian numbers with another spread in each tensor), against what the original
publishes, `torch.save` of float32, and against general compressors of the levels. Second table:
loss after federated training as in `federated.py`, by codec, with error feedback and without.
"""

import argparse
import io
import json
import lzma
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from federated import BY_NAME, GENERATED, Setting, table
from flockllm.adapter import CODECS, Adapter, Shapes, Update, quantise
from flockllm.train.base import Floats

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?", default=GENERATED)
    parser.add_argument(
        "--quick", action="store_true", help="a small adapter, two short rounds, a few codecs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = 1

    sizes = speed(layers=2 if arguments.quick else 32)
    print()
    trained = losses(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"speed": sizes, "federated": trained}, indent=1))


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


WAYS = [
    "original: A and B averaged apart, float32",
    "only B, rank 64",
    *(
        f"only B, rank 64, {codec}{feedback}"
        for codec in ("int8", "int4", "int2", "sparse")
        for feedback in ("", ", no feedback")
        if codec != "int8" or not feedback
    ),
]
"""Of `federated.py`: the original, and the default recipe written by each codec."""


def losses(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Final loss of every way over seeds, each with the rate that `federated.py` found for it."""
    ways = [BY_NAME[name] for name in WAYS[:: 4 if arguments.quick else 1]]
    short = {"rounds": 2, "samples": 32, "tests": 20} if arguments.quick else {}
    setting = Setting(str(arguments.records), 4, "shards", **short)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor() as pool:
        return table(pool, ways, setting, {way: way.rate for way in ways}, arguments.seeds)


if __name__ == "__main__":
    main()
