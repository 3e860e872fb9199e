"""LoRA on a random-initialised 7B Llama on one GPU, ours against transformers' Trainer.

Called by gpu.sh. Sequences of random tokens, with lengths drawn evenly from an eighth of the limit
to the limit; loss on the later half of each for ours, on all of it for the Trainer, which is what
the two recipes do. Both train the same sequences with the same number of tokens at a time and
without gradient checkpointing unless it says so. MFU counts 4 FLOPs per parameter and real token
(forward, and backward to the activations; frozen weights get no gradient) and causal attention.
Every case runs in a process of its own; what does not fit or is not installed says so.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

PEAK = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "4090": 165}
"""Dense bfloat16 TFLOP/s by name of the device, from the makers' data sheets."""

SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
}
WAYS = ("trainer", "ours", "ours, checkpointing")
TOKENS = {"7b": 8192, "tiny": 2048}
"""Tokens of a micro-batch; for the Trainer that many / length sequences."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--seconds", type=float, default=460, help="start no case after that")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does the script work?")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = "tiny" if arguments.tiny else "7b"
    if arguments.case:
        way, bits, length = arguments.case.split(":")
        print(json.dumps(case(shape, way, int(bits), int(length))))
        return

    started = time.monotonic()
    rows = []
    print(f"{'way':22}{'weights':>8}{'length':>8}{'tokens/s':>11}{'peak GB':>9}{'MFU':>7}")
    # Most telling cases first: time may run out.
    for bits, length, way in itertools.product((16, 4, 8), (512, 2048), WAYS):
        left = arguments.seconds - (time.monotonic() - started)
        row = {"way": way, "bits": bits, "length": length} | start(shape, way, bits, length, left)
        rows.append(row)
        figures = (
            f"{row['tokens_per_second']:11,.0f}{row['peak_bytes'] / 1e9:9.1f}"
            + (f"{row['mfu']:7.1%}" if row["mfu"] else "      –")
            if "tokens_per_second" in row
            else f"  {row['failed']}"
        )
        print(f"{way:22}{bits:>5}bit{length:8}{figures}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def start(shape: str, way: str, bits: int, length: int, left: float) -> dict[str, object]:
    """Runs a case in a process of its own, or says why there is no figure."""
    if left < 20:
        return {"failed": "left out: out of time"}
    command = [sys.executable, __file__, "--case", f"{way}:{bits}:{length}"]
    try:
        result = subprocess.run(
            command + ["--tiny"] * (shape == "tiny"), capture_output=True, text=True, timeout=left
        )
    except subprocess.TimeoutExpired:
        return {"failed": "left out: out of time"}
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failed": "out of memory" if "OutOfMemory" in last else last[:100]}
    figures: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return figures


def case(shape: str, way: str, bits: int, length: int) -> dict[str, float | None]:
    """Trains a little to warm up, then enough to measure."""
    import numpy as np
    import torch

    from flockllm.train.data import Example

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_model(shape, bits, length, device)
    random = np.random.default_rng(0)
    examples = []
    for size in random.integers(length // 8, length + 1, 4 * TOKENS[shape] * 2 // length):
        tokens = random.integers(2, model.config.vocab_size, size).astype(np.int32)
        examples.append(Example(tokens, size // 2 if way != "trainer" else 1, 0, False))
    begin = trainer if way == "trainer" else ours
    train = begin(model, "checkpointing" in way, length, TOKENS[shape])

    train(examples[: len(examples) // 4])
    synchronize = torch.cuda.synchronize if device == "cuda" else bool
    synchronize()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = time.perf_counter()
    train(examples)
    synchronize()
    seconds = time.perf_counter() - seconds

    tokens = sum(len(example.tokens) for example in examples)
    squares = sum(len(example.tokens) ** 2 for example in examples)
    config = model.config
    inner = config.num_hidden_layers * (
        4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    )
    flops = 4 * inner * tokens + 6 * config.num_hidden_layers * config.hidden_size * squares
    head = config.vocab_size * config.hidden_size
    flops += 4 * head * sum(example.learned for example in examples)
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((peak for part, peak in PEAK.items() if part in name), None)
    return {
        "tokens_per_second": tokens / seconds,
        "peak_bytes": float(torch.cuda.max_memory_allocated()) if device == "cuda" else 0.0,
        "mfu": flops / seconds / peak / 1e12 if peak else None,
    }


def ours(model, checkpointing: bool, length: int, tokens: int):
    """One local epoch by `flockllm.train`."""
    from flockllm.task import Lora, Training
    from flockllm.train.base import Base, use_liger
    from flockllm.train.loop import Trainer

    if model.device.type == "cuda":
        use_liger(model)
    base = Base(model, None)
    base.adapt(Lora(rank=16))
    start = base.adapter()

    def train(examples) -> None:
        options = {"tokens": tokens, "checkpointing": checkpointing}
        recipe = Training(batch=len(examples) // 2, cutoff=length)
        Trainer(base, Lora(rank=16), recipe, examples, [], **options).train(start, seed=0)

    return train


def trainer(model, _: bool, length: int, tokens: int):
    """One epoch of transformers' Trainer, padded to the longest of a micro-batch."""
    import tempfile

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    targets = list(TARGETS)
    lora = LoraConfig(
        r=16, lora_alpha=16, lora_dropout=0.05, target_modules=targets, task_type="CAUSAL_LM"
    )
    peft = get_peft_model(model, lora)
    micro = max(1, tokens // length)

    def pad(rows: list) -> dict:
        width = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
        filled = {
            name: [[fill] * (width - len(row[name])) + row[name] for row in rows]
            for name, fill in (("input_ids", 0), ("labels", -100), ("attention_mask", 0))
        }
        return {name: torch.tensor(values) for name, values in filled.items()}

    def train(examples) -> None:
        rows = [
            {"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)}
            for ids in (example.tokens.tolist() for example in examples)
        ]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=max(1, len(rows) // 2 // micro),
                num_train_epochs=1,
                learning_rate=3e-4,
                bf16=torch.cuda.is_available(),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
            )
            Trainer(model=peft, args=arguments, train_dataset=rows, data_collator=pad).train()

    return train


def random_model(shape: str, bits: int, length: int, device: str):
    """A Llama with random weights, its inner linear layers in 16, 8 or 4 bits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    config = LlamaConfig(
        vocab_size=32000,
        num_attention_heads=32 if shape == "7b" else 4,
        max_position_embeddings=max(2048, length),
        **SHAPES[shape],
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    if bits < 16:
        quantize(model, bits)
    return model


def quantize(model, bits: int) -> None:
    """Replaces the linear layers of the decoder by bitsandbytes' layers of the same weights."""
    import bitsandbytes as bnb
    import torch

    for parent in list(model.model.layers.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not torch.nn.Linear:
                continue
            weight, size = layer.weight, (layer.in_features, layer.out_features)
            if bits == 8:
                small = bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False)
                small.weight = bnb.nn.Int8Params(
                    weight.data.cpu(), requires_grad=False, has_fp16_weights=False
                )
            else:
                small = bnb.nn.Linear4bit(
                    *size, bias=False, compute_dtype=weight.dtype, quant_type="nf4"
                )
                small.weight = bnb.nn.Params4bit(
                    weight.data.cpu(), requires_grad=False, quant_type="nf4"
                )
            setattr(parent, name, small.to(weight.device))
    setattr(model, f"is_loaded_in_{bits}bit", True)  # PEFT looks here


if __name__ == "__main__":
    main()
