"""Speed and memory of one participant's local training, ours against the original's recipe.

    python benchmarks/training.py RECORDS.json [--quick] [--json FILE] [--threads N]

The original's recipe, with the installed `transformers.Trainer`: Alpaca template, loss on the whole
text, batch 32 by micro-batches of 8, left padding, cutoff 512, LoRA r 16, α 16, dropout 0.05 on q,
k, v, o, AdamW at 3e-4, one epoch. Every figure comes from a process of its own, and the processes
take turns, so that a slow minute of the machine hits all of them. Tokens are those of the records:
padding does not count, and a beginning that is computed once counts for every record it serves.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()

WAYS = {
    "original": "Trainer, padded, loss on all",
    "all": "ours, loss on all",
    "response": "ours, loss on the response",
    "default": "ours, B alone at rank 64",
}
MODELS = {"packaged": (640, 16), "llama-135m": (96, 0)}
"""Model → records trained on, and with --quick; 0: left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--quick", action="store_true", help="few records, each process once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each figure")
    parser.add_argument("--models", default=",".join(MODELS), help="which, with commas between")
    parser.add_argument("--count", type=int, default=0, help="records, instead of the usual number")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--base", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.base, arguments.records, arguments.count)
        return

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models.split(","):
            count = arguments.count or MODELS[model][arguments.quick]
            if not count:
                continue
            base = "flockllm-base"
            if model == "llama-135m":
                base = folder
                make_135m(Path(folder), arguments.records)
            runs = {way: [] for way in WAYS}
            for _ in range(1 if arguments.quick else arguments.repeats):
                for way in WAYS:
                    runs[way].append(start(way, base, count, arguments))
            figures[model] = {way: summary(runs[way]) for way in WAYS}
            print_table(model, count, figures[model])
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def start(way: str, base: str, count: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Runs one way in a process of its own."""
    threads = str(arguments.threads)
    options = {"--worker": way, "--base": base, "--count": str(count), "--threads": threads}
    result = subprocess.run(
        [sys.executable, __file__, str(arguments.records), *sum(options.items(), ())],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
    )
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def print_table(model: str, count: int, ways: dict[str, dict[str, float]]) -> None:
    plain = ways["original"]
    print(f"\n{model}, {count} records, {plain['tokens']:,.0f} tokens")
    print(f"{'':30}{'tokens per':>12}{'':>7}{'peak':>10}{'':>7}{'process':>10}")
    print(f"{'':30}{'CPU second':>12}{'ratio':>7}{'memory':>10}{'ratio':>7}{'CPU s':>10}")
    for way, figures in ways.items():
        print(
            f"{WAYS[way]:30}{figures['tokens_per_cpu_second']:12,.0f}"
            f"{figures['tokens_per_cpu_second'] / plain['tokens_per_cpu_second']:6.2f}×"
            f"{figures['peak_bytes'] / 2**20:7,.0f} MB"
            f"{figures['peak_bytes'] / plain['peak_bytes']:6.2f}×"
            f"{figures['process_cpu_seconds']:10.1f}"
        )
    ours = ways["response"]
    print(
        f"process start to first step done {ours['first_step_seconds']:.1f} s (imports "
        f"{ours['import_seconds']:.1f}, model {ours['load_seconds']:.1f}, tokens "
        f"{ours['tokenize_seconds']:.1f}); later rounds {ours['next_step_seconds']:.2f} s; "
        f"scoring {ours['scores_per_second']:.2f} updates a second on {ours['heldout']:.0f} records"
    )


def worker(way: str, base: str, records_file: Path, count: int) -> None:
    """Trains once and prints the figures as JSON."""
    import random

    from flockllm.data import read_records

    records = random.Random(0).sample(read_records(records_file), count)
    figures = original(base, records) if way == "original" else ours(base, records, way)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures["peak_bytes"] = figures.get("peak_bytes", usage.ru_maxrss * 1024)
    figures["process_cpu_seconds"] = usage.ru_utime + usage.ru_stime
    figures["tokens_per_cpu_second"] = figures["tokens"] / figures["cpu_seconds"]
    print(json.dumps(figures))


def ours(base_ref: str, records: list, way: str) -> dict[str, float]:
    """One local epoch by `flockllm.train`; then how long a later round and scoring take."""
    from flockllm.wiring import loading  # with what a node needs besides

    with loading():
        from flockllm.task import Lora, Training
        from flockllm.train.base import load_base
        from flockllm.train.data import tokenize
        from flockllm.train.loop import Trainer

    imported = time.perf_counter()
    loss_on = "all" if way == "all" else "response"
    base = load_base(base_ref, device="cpu")
    loaded = time.perf_counter()
    examples = tokenize(records, base.tokenizer, loss_on=loss_on)
    tokenized = time.perf_counter()
    lora, factors = (Lora(), "B") if way == "default" else (Lora(rank=16), "AB")

    heldout = examples[: max(8, len(examples) // 10)]
    trainer = Trainer(base, lora, Training(loss_on=loss_on), examples, heldout)
    steps: list[float] = []
    cpu = time.process_time()
    trained = trainer.train(
        base.adapter(),
        seed=0,
        progress=lambda *_: steps.append(time.perf_counter()),
        factors=factors,
    )
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    again = time.perf_counter()
    later: list[float] = []

    def stop(*_: float) -> None:
        later.append(time.perf_counter())
        raise StopIteration

    with contextlib.suppress(StopIteration):
        trainer.train(trained, seed=1, progress=stop)
    scoring = time.perf_counter()
    trainer.losses(trained, [trained] * 4)
    return {
        "tokens": sum(len(example.tokens) for example in examples),
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "import_seconds": imported - STARTED,
        "load_seconds": loaded - imported,
        "tokenize_seconds": tokenized - loaded,
        "first_step_seconds": steps[0] - STARTED,
        "next_step_seconds": later[0] - again,
        "scores_per_second": 4 / (time.perf_counter() - scoring),
        "heldout": len(heldout),
    }


def original(base_ref: str, records: list) -> dict[str, float]:
    """The original's recipe with the installed Trainer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from flockllm.train.base import load_base
    from flockllm.train.data import tokenize

    base = load_base(base_ref, device="cpu")
    examples = tokenize(records, base.tokenizer, loss_on="all")
    rows = [{"input_ids": (ids := e.tokens.tolist()), "labels": list(ids)} for e in examples]
    base.tokenizer.pad_token_id = 0
    base.tokenizer.padding_side = "left"
    lora = LoraConfig(
        r=16,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base.model, lora)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            train_dataset=rows,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=4,
                num_train_epochs=1,
                learning_rate=3e-4,
                optim="adamw_torch",
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                logging_strategy="no",
            ),
            data_collator=DataCollatorForSeq2Seq(
                base.tokenizer, pad_to_multiple_of=8, return_tensors="pt", padding=True
            ),
        )
        torch.manual_seed(0)
        cpu = time.process_time()
        trainer.train()
        cpu = time.process_time() - cpu
    return {"tokens": sum(len(row["input_ids"]) for row in rows), "cpu_seconds": cpu}


def make_135m(folder: Path, records_file: Path) -> None:
    """A random-initialised Llama of SmolLM2-135M's shape, and a tokenizer of the records' words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16384,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(records_file.read_text().splitlines(), trainer)
    marks = {"pad_token": "<pad>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **marks)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
