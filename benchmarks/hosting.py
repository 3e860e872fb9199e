"""Tokens per second of a hosted model, and its memory, against the original's way.

    python benchmarks/hosting.py [--quick] [--json FILE]

The original's way: PEFT's model and `generate`, one request after the other, with the settings of
its page (4 beams, 128 tokens; temperature, top p and top k have no effect then), and two models in
memory to compare base and adapter. Ours: the server over HTTP, streaming, with 1 and 8 clients at
once; `drawn` is one beam at temperature 0.1. End marks are taken away, so that every answer has
its full length. Ours and `generate` run in turn; because machines are shared, tokens per CPU
second (server and clients together) stand beside tokens per second.

Models: the packaged one, and a random one of SmolLM2-135M's shape (not with --quick).
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.utils.logging import disable_progress_bar

from flockllm.host.api import Api
from flockllm.host.loading import load
from flockllm.host.serve import Settings, Site
from flockllm.host.sources import Hosted, from_task
from flockllm.task import Definition, Lora
from flockllm.train.base import load_base, locate, tensor_list
from flockllm.train.generate import generate

QUESTION = "Write a short story about a dog that lives near the sea."
LORA = Lora(rank=16)
SHAPES = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
"""SmolLM2-135M, with the packaged tokenizer's vocabulary in front of its own 49 152."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the packaged model, short answers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--memory", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    disable_progress_bar()
    if arguments.memory:
        return print(json.dumps(memory(*arguments.memory)))
    tokens = 32 if arguments.quick else 128

    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        models = {"packaged, 3 M": "flockllm-base"}
        if not arguments.quick:
            models["135 M"] = random_model(Path(folder))
        for name, ref in models.items():
            figures += speeds(name, ref, tokens if ref == "flockllm-base" else tokens // 4)
            figures += [memory_of(way, name, ref) for way in ("two models", "one base, adapter")]
    print_tables(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def random_model(folder: Path) -> str:
    """A model of real size whose answers mean nothing."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES, vocab_size=49_152, eos_token_id=2, max_position_embeddings=2048)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("flockllm-base")).save_pretrained(folder)
    return str(folder)


def hosted(ref: str) -> Hosted:
    """The model with an adapter that changes its answers."""
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(scale=0.02, size=shape).astype(np.float32)
        for name, shape in tensor_list(ref, LORA).items()
    }
    found = from_task(Definition(name="tuned", lora=LORA), tensors)
    return replace(found, base=ref)


def speeds(name: str, ref: str, tokens: int) -> list[dict[str, Any]]:
    """The original's way, then ours in every setting, three times in turn; the best of each."""
    what = hosted(ref)
    base = load_base(ref)
    base.adapt(LORA)
    base.model.generation_config.eos_token_id = None
    base.tokenizer.eos_token = None
    tensors = what.tuned[0].tensors
    loaded = replace(load(what), ends=frozenset())

    def original(beams: int) -> int:
        drawn = {"temperature": 0.1, "top_p": 0.75, "top_k": 40} if beams == 1 else {}
        generate(base, tensors, QUESTION, max_tokens=tokens, beams=beams, **drawn)
        return tokens

    with Site(Api.start(loaded, max_rows=32), Settings(port=0, page=False)) as site:

        def ours(beams: int, clients: int, models: tuple[str, ...] = ("tuned",)) -> int:
            body = {
                "messages": [{"role": "user", "content": QUESTION}],
                "max_tokens": tokens,
                "beams": beams,
                "temperature": 0.1,
                "top_p": 0.75,
                "top_k": 40,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            return asyncio.run(ask(site.url, body, models * clients))

        both = (next(iter(loaded.models)), "tuned")
        runs: dict[tuple[str, str, int], Callable[[], int]] = {}
        for beams, label in ((4, "4 beams"), (1, "drawn")):
            runs["generate", label, 1] = lambda b=beams: original(b)
            for clients in (1, 8):
                runs["server", label, clients] = lambda b=beams, c=clients: ours(b, c)
            runs["server, both sides", label, 1] = lambda b=beams: ours(b, 1, both)
        best: dict[tuple[str, str, int], dict[str, Any]] = {}
        for _ in range(3):
            for key, run in runs.items():
                found = timed(run)
                if key not in best or found["per second"] > best[key]["per second"]:
                    best[key] = found
    return [
        {"model": name, "way": way, "choice": choice, "clients": clients, **figure}
        for (way, choice, clients), figure in best.items()
    ]


def timed(run: Callable[[], int]) -> dict[str, float]:
    """Tokens per second, and per CPU second."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"tokens": tokens, "per second": tokens / wall, "per CPU second": tokens / cpu}


async def ask(url: str, body: dict[str, Any], models: tuple[str, ...]) -> int:
    """All at once; how many tokens came in total."""

    async def one(client: httpx.AsyncClient, model: str) -> int:
        count = 0
        path = f"{url}/v1/chat/completions"
        async with client.stream("POST", path, json=body | {"model": model}) as answer:
            async for line in answer.aiter_lines():
                if '"usage"' in line:
                    count = json.loads(line[6:])["usage"]["completion_tokens"]
        return count

    async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
        return sum(await asyncio.gather(*(one(client, model) for model in models)))


def memory_of(way: str, name: str, ref: str) -> dict[str, Any]:
    """In a process of its own, because memory that was used is not given back."""
    command = [sys.executable, __file__, "--memory", way, ref]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"model": name, "way": way, **json.loads(output.splitlines()[-1])}


def memory(way: str, ref: str) -> dict[str, float]:
    """MB that models take once both have answered, beyond what the libraries take."""
    import psutil

    me = psutil.Process()
    what = hosted(ref)
    before = me.memory_info().rss
    if way == "two models":
        keep: Any = [load_base(ref), load_base(ref)]
        keep[1].adapt(LORA)
        generate(keep[0], None, QUESTION, max_tokens=8)
        generate(keep[1], what.tuned[0].tensors, QUESTION, max_tokens=8)
    else:
        keep = Api.start(load(what))
        keep.close()
        keep.join()
    return {"MB": (me.memory_info().rss - before) / 1e6}


def print_tables(figures: list[dict[str, Any]]) -> None:
    """Speed with the ratio to `generate` in the same setting; then memory."""
    print(f"{'model':16}{'choice':10}{'way':20}{'clients':>8}{'tok/s':>9}{'×':>6}", end="")
    print(f"{'tok/CPU s':>11}{'×':>6}")
    for figure in figures:
        if "MB" in figure:
            continue
        plain = next(
            f
            for f in figures
            if f["way"] == "generate"
            and (f["model"], f["choice"]) == (figure["model"], figure["choice"])
        )
        ratios = [figure[key] / plain[key] for key in ("per second", "per CPU second")]
        print(
            f"{figure['model']:16}{figure['choice']:10}{figure['way']:20}{figure['clients']:8}"
            f"{figure['per second']:9.0f}{ratios[0]:6.1f}"
            f"{figure['per CPU second']:11.0f}{ratios[1]:6.1f}"
        )
    print()
    print(f"{'model':16}{'way':20}{'MB':>8}")
    for figure in figures:
        if "MB" in figure:
            print(f"{figure['model']:16}{figure['way']:20}{figure['MB']:8.0f}")


if __name__ == "__main__":
    main()
