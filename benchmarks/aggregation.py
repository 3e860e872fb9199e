"""Seconds, bandwidth and memory of making one adapter of many updates.

    python benchmarks/aggregation.py [--quick] [--json FILE]

The adapter of a 7B model: q, k, v, o of 32 layers at rank 16, 16.8 M values. Updates are mapped
files in the codec `plain` (16 different ones, 0.5 GB, taken in turn), as a voter has them after
checking. A mean is two passes, the norms and the sum; a voter has the norms already, from comparing
the updates, so both are shown. GB/s counts the bytes of the updates once. It is held against
`memcpy` with the same threads in the same minute, in bytes copied, per second and, because machines
are shared, per CPU second. Where `flwr` is installed its weighted average of the same numbers, as
float32, runs in turn with ours.
"""

import argparse
import json
import mmap
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from flockllm import aggregate
from flockllm.adapter import Adapter, Update
from flockllm.adapter.tensors import size

DIFFERENT = 16
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 layers, up to 16 updates")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    shapes = seven_b(layers=4 if arguments.quick else 32)
    counts = (4, 16) if arguments.quick else (4, 16, 64, 256)

    print(f"{size(shapes):,} values, {aggregate.THREADS} threads, best of {REPEATS}")
    print(
        f"{'':26}{'updates':>8}{'seconds':>9}{'GB/s':>7}{'memcpy':>8}{'ratio':>7}"
        f"{'CPU s':>8}{'ratio':>7}{'memory':>10}{'adapters':>10}"
    )
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        files = [write(shapes, seed, Path(folder)) for seed in range(DIFFERENT)]
        current = Adapter.initial(shapes, b"benchmark")
        flower = Flower(shapes, files)
        for count in counts:
            for name, job in jobs(current, files, count, flower):
                figures.append(measure(name, job, count, shapes))
                print_row(figures[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def seven_b(layers: int) -> dict[str, tuple[int, ...]]:
    """The tensor list of a 7B model's task."""
    return {
        f"base_model.model.model.layers.{layer}.self_attn.{p}_proj.lora_{ab}.weight": shape
        for layer in range(layers)
        for p in "qkvo"
        for ab, shape in (("A", (16, 4096)), ("B", (4096, 16)))
    }


def write(shapes: dict[str, tuple[int, ...]], seed: int, folder: Path) -> mmap.mmap:
    """An update of Gaussian numbers with a length of its own, as a mapped file."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(2_000, 8_000)
    values = np.clip(rng.normal(0, spread, size(shapes)), -32_767, 32_767).astype(np.int16)
    path = folder / f"{seed}.safetensors"
    path.write_bytes(Update(shapes, np.full(len(shapes), 2, np.int8), values).to_bytes("plain"))
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def jobs(current: Adapter, files: Sequence[mmap.mmap], count: int, flower: "Flower"):
    """What is measured for a number of updates: name, and a function that prepares a run."""

    def prepare(rule: aggregate.Rule, know_norms: bool) -> Callable[[], Callable[[], object]]:
        def fresh() -> Callable[[], object]:
            read = [Update.from_bytes(file, current.shapes, "plain") for file in files]
            updates = [Update(u.shapes, u.shifts, u.values) for u in read for _ in range(16)]
            updates = [updates[(i % DIFFERENT) * 16 + i // DIFFERENT] for i in range(count)]
            if know_norms:
                for update in updates:
                    vars(update)["norm"] = 1 + update.shifts.size
            weights = range(100, 100 + count)
            return lambda: rule(current, updates, weights)

        return fresh

    yield "mean, norms known", prepare(aggregate.mean, True)
    yield "mean", prepare(aggregate.mean, False)
    yield "score_weighted", prepare(aggregate.score_weighted, False)
    if count <= 16:
        yield "median", prepare(aggregate.median, False)
        yield "trimmed_mean", prepare(aggregate.trimmed_mean, False)
    if count <= 64 and flower.installed:
        yield "Flower's weighted average", lambda: flower.prepare(count)


def measure(name: str, job, count: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, object]:
    """Best wall and CPU seconds of some runs, each beside a memcpy; and the peak of one more."""
    seconds, cpu, copied = [], [], []
    for _ in range(REPEATS):
        copied.append(memcpy())
        run = job()
        started = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    run = job()
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    values = size(shapes)
    width = 4 if "Flower" in name else 2
    gigabytes = count * values * width / 1e9
    wall, per_cpu = (max(column) for column in zip(*copied, strict=True))
    return {
        "name": name,
        "updates": count,
        "values": values,
        "seconds": min(seconds),
        "cpu_seconds": min(cpu),
        "gb_per_second": gigabytes / min(seconds),
        "memcpy_gb_per_second": wall,
        "ratio": gigabytes / min(seconds) / wall,
        "cpu_ratio": gigabytes / min(cpu) / per_cpu,
        "peak_bytes": peak,
        "peak_adapters": peak / (4 * values),
    }


def memcpy(megabytes: int = 256) -> tuple[float, float]:
    """GB that this machine copies just now, per second and per CPU second, with our threads."""
    source = np.ones((aggregate.THREADS, megabytes << 20 >> 3))
    target = np.zeros_like(source)
    with ThreadPoolExecutor(aggregate.THREADS) as threads:
        list(threads.map(np.copyto, target, source))
        started = time.perf_counter(), time.process_time()
        list(threads.map(np.copyto, target, source))
        seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    return source.nbytes / seconds / 1e9, source.nbytes / cpu / 1e9


class Flower:
    """The yardstick: what Flower's own strategies average with, on the same numbers."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], files: Sequence[mmap.mmap]) -> None:
        try:
            from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
            from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
        except ImportError:
            self.installed = False
            return
        self.installed, self.aggregate, self.records = True, aggregate_arrayrecords, []
        for weight, file in enumerate(files):
            deltas = Update.from_bytes(file, shapes, "plain").deltas()
            arrays = {name: Array(d.astype(np.float32) / 2**24) for name, d in deltas.items()}
            metrics = MetricRecord({"num-examples": 100 + weight})
            record = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
            self.records.append(record)

    def prepare(self, count: int) -> Callable[[], object]:
        """A run with so many updates."""
        records = [self.records[i % DIFFERENT] for i in range(count)]
        return lambda: self.aggregate(records, "num-examples")


def print_row(row: dict) -> None:
    print(
        f"{row['name']:26}{row['updates']:8}{row['seconds']:9.3f}{row['gb_per_second']:7.2f}"
        f"{row['memcpy_gb_per_second']:8.2f}{row['ratio']:7.2f}{row['cpu_seconds']:8.2f}"
        f"{row['cpu_ratio']:7.2f}{row['peak_bytes'] / 2**20:7,.0f} MB{row['peak_adapters']:10.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
