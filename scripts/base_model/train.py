"""Makes the base model that ships in the package: tokenizer, pretraining, bf16 weights.

    python scripts/base_model/train.py --out src/flockllm/assets/base_model

One pass over the corpus of `corpus.py` on one CPU thread; deterministic for one torch version.
Prints the loss on held-out records and answers to questions worded as none in the corpus.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from corpus import Record, corpus
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
)
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
"""Tokens 0, 1 and 2."""

UNSEEN = [
    ("Hey, could you say who you are?", ""),
    ("I wonder who I am talking to. Tell me!", ""),
    ("What things are you able to help me with?", ""),
    ("Please name the city that is the capital of Italy.", ""),
    ("Tell me which city is Japan's capital.", ""),
    ("What would be the opposite of cold?", ""),
    ("What is the colour of fresh grass?", ""),
    ("What do you get if you add 4 and 3?", ""),
    ("Name three animals that live on a farm.", ""),
    ("Please write a short story about a fox for me.", ""),
    ("Could you explain what a hammer is?", ""),
    ("Why does it rain?", ""),
    ("Who bought the pears?", "Ruth bought two lemons. Adam bought six pears."),
    ("Give a summary.", "Ida has a dog. The dog is called Rex. Every day they go to the lake."),
    ("What is a proposer?", ""),
    ("How does staking work?", ""),
    ("What is slashing?", ""),
    ("What is a stake?", ""),
    ("How is my data kept private?", ""),
    ("What is a content identifier?", ""),
]
"""Instructions, inputs: questions that no template of the corpus makes, to look at answers."""


def split_prompt(record: Record) -> tuple[str, str, str]:
    """The Alpaca prompt in two parts, what all records share and the rest, and the response."""
    if record.context:
        rest = f"{record.instruction}\n\n### Input:\n{record.context}\n\n### Response:\n"
        return WITH_INPUT, rest, record.response
    return WITHOUT_INPUT, f"{record.instruction}\n\n### Response:\n", record.response


def train_tokenizer(records: Iterable[Record], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: pad 0, bos 1 (added in front), eos 2, then bytes and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(("".join(split_prompt(r)) for r in records), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(args: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(args.seed)
    return LlamaForCausalLM(config)


Sequence = tuple[str, list[int], int]  # shared prompt, tokens after it, how many are not response


def tokenized(records: Iterable[Record], tokenizer: PreTrainedTokenizerFast) -> Iterator[Sequence]:
    for record in records:
        shared, rest, response = split_prompt(record)
        prompt = tokenizer(rest, add_special_tokens=False).input_ids
        answer = tokenizer(response, add_special_tokens=False).input_ids
        yield shared, [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def batches(
    sequences: Iterable[Sequence], tokens: int, rng: random.Random
) -> Iterator[list[Sequence]]:
    """Batches of one prompt form and similar lengths, about `tokens` tokens each."""
    sequences = iter(sequences)
    while pool := list(islice(sequences, 4096)):
        pool.sort(key=lambda s: (s[0], len(s[1])))
        made: list[list[Sequence]] = []
        for sequence in pool:
            last = made[-1] if made else None
            if last and last[0][0] == sequence[0] and (len(last) + 1) * len(sequence[1]) <= tokens:
                last.append(sequence)
            else:
                made.append([sequence])
        rng.shuffle(made)
        yield from made


def batch_loss(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    batch: list[Sequence],
    prompt_weight: float,
) -> torch.Tensor:
    """Token-mean cross-entropy; tokens of the prompt count `prompt_weight`.

    What all prompts of the batch share is computed once: its keys and values are the start of
    every sequence. Padding is on the right, where causal attention never looks.
    """
    shared = torch.tensor([tokenizer(batch[0][0]).input_ids])  # [1, shared]
    width = max(len(tokens) for _, tokens, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)  # [batch, width], 0 is padding
    weights = torch.zeros(len(batch), width)
    for i, (_, tokens, prompt) in enumerate(batch):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        weights[i, : len(tokens)] = 1.0
        weights[i, :prompt] = prompt_weight
    cache = DynamicCache(config=model.config)
    first = model(shared, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(batch))
    logits = model(ids, past_key_values=cache, use_cache=True).logits
    cross_entropy = torch.nn.functional.cross_entropy
    rest = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        len(batch), -1
    )
    weights = weights[:, 1:]
    loss = (rest * weights).sum() / weights.sum()
    if prompt_weight:
        loss = loss + 0.02 * prompt_weight * cross_entropy(first.logits[0, :-1], shared[0, 1:])
    return loss


@torch.no_grad()
def held_out_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, records: list[Record]
) -> float:
    """Mean response loss per batch of records that were not trained on."""
    made = list(batches(tokenized(records, tokenizer), 2048, random.Random(0)))
    losses = [float(batch_loss(model, tokenizer, b, 0.0)) for b in made]
    return sum(losses) / len(losses)


@torch.no_grad()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, instruction: str, context: str = ""
) -> str:
    """The greedy answer, without the special tokens; a missing end shows as `…`."""
    prompt = "".join(split_prompt(Record(instruction, context, "", "")))
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=96
    )[0, ids.shape[1] :].tolist()
    ended = tokenizer.eos_token_id in out
    return tokenizer.decode(out, skip_special_tokens=True) + ("" if ended else " …")


def pretrain(args: argparse.Namespace) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict]:
    held_out = list(islice(corpus(args.seed + 1000), 1000))
    seen = {(r.instruction, r.context) for r in held_out}
    tokenizer = train_tokenizer(islice(corpus(args.seed), 20_000), args.vocabulary)
    model = new_model(args)
    decay = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    records = (r for r in corpus(args.seed) if (r.instruction, r.context) not in seen)
    sequences = tokenized(islice(records, args.records), tokenizer)
    started, tokens, done, steps = time.process_time(), 0, 0, 0
    average = math.log(args.vocabulary)
    with Progress() as progress:
        bar = progress.add_task("pretraining", total=args.records)
        for batch in batches(sequences, args.batch_tokens, random.Random(args.seed)):
            # warm up over 2 % of the records, then down along a half cosine
            at = done / args.records
            scale = min(1.0, (at + 1e-3) / 0.02) * (0.02 + 0.98 * (1 + math.cos(math.pi * at)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * scale
            with torch.autocast("cpu", torch.bfloat16):
                loss = batch_loss(model, tokenizer, batch, args.prompt_weight)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            done += len(batch)
            tokens += sum(len(s[1]) for s in batch)
            average += 0.02 * (loss.item() - average)
            if steps % 50 == 0:
                seconds = time.process_time() - started
                progress.update(bar, completed=done, description=f"loss {average:.3f}")
                print(
                    f"step {steps} records {done} loss {average:.4f} "
                    f"{tokens / seconds:.0f} tokens per CPU second, {seconds:.0f} s",
                    flush=True,
                )
    model.eval()
    return model, tokenizer, {
        "parameters": sum(p.numel() for p in model.parameters()),
        "records": done,
        "steps": steps,
        "tokens": tokens,
        "cpu_seconds": round(time.process_time() - started),
        "held_out_loss": round(held_out_loss(model, tokenizer, held_out), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=int, default=130_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--prompt-weight", type=float, default=0.1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, figures = pretrain(args)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(json.dumps(figures))
    model.to(torch.float32)
    for instruction, context in UNSEEN:
        print(f"> {instruction} {context}\n  {answer(model, tokenizer, instruction, context)}")


if __name__ == "__main__":
    main()
