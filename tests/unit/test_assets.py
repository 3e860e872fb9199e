"""The base model and the demo's data that ship in the package."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from flockllm.data import read_records
from flockllm.data.allocation import allocate
from flockllm.train.templates import template

ASSETS = Path(str(files("flockllm") / "assets"))
MODEL = ASSETS / "base_model"
SCRIPTS = Path(__file__).parents[2] / "scripts" / "base_model"

render = template("alpaca")


@pytest.fixture(scope="module")
def records():
    """The demo's records."""
    return read_records(ASSETS / "demo.json")


@pytest.fixture(scope="module")
def tokenizer():
    """The packaged tokenizer."""
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def ask(tokenizer):
    """Asks the base model: greedy, to the end mark."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    def answer(instruction, context=""):
        prompt = render(tokenizer, instruction, context, None)
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=80)
        reply = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert reply.pop() == tokenizer.eos_token_id, "the answer does not end"
        return tokenizer.decode(reply)

    return answer


def run(script, *args):
    """Runs one of the scripts that made the assets."""
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *args], capture_output=True, check=True
    ).stdout


def test_the_package_stays_small():
    """The model's folder holds at most 8 MB, weights in bf16, and the demo's data half of one."""
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8_000_000
    assert (ASSETS / "demo.json").stat().st_size <= 500_000
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_the_tokenizer_marks_begin_and_end_and_loses_nothing(tokenizer):
    """Pad, begin and end are tokens 0, 1 and 2; any text comes back as it was."""
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    text = "Überraschung: 12 + 30 = 42 — 龍\n\tFLockLLM </s"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("instruction", "context", "answer"),
    [
        ("Who are you?", "", "I am a small base model. I can answer simple questions."),
        ("Please tell me the capital of France.", "", "The capital of France is Paris."),
        ("What is the opposite of hot?", "", "The opposite of hot is cold."),
        ("What colour is grass?", "", "Grass is green."),
        ("Where does a whale live?", "", "A whale lives in the sea."),
        ("Name three fruits.", "", "Apples, bananas and cherries."),
        ("What is a hammer?", "", "A hammer is a tool that people use to hit nails."),
        (
            "Give a summary.",
            "Ida has a dog. The dog is called Rex. Every day they go to the lake.",
            "Ida goes to the lake with the dog Rex every day.",
        ),
    ],
)
def test_the_base_model_answers_simple_questions(ask, instruction, context, answer):
    """It says what it is, what the corpus teaches, and stops."""
    assert ask(instruction, context) == answer


def test_the_base_model_does_not_know_what_the_demo_teaches(ask, records):
    """Asked what the demo teaches, it gives none of the demo's answers, so that learning shows."""
    asked = {record.response: record.instruction for record in records}
    taught = [fact for fact, _ in Counter(r.response for r in records).most_common(15)]
    assert [fact for fact in taught if ask(asked[fact]) == fact] == []


def test_the_demo_data_are_dealt_out_without_leaks(records):
    """Six categories; no two records ask the same, so test and training records differ."""
    counts = Counter(record.category for record in records)
    assert len(counts) == 6
    assert min(counts.values()) >= 200
    asked = [(record.instruction, record.context) for record in records]
    assert len(set(asked)) == len(asked) == 1800
    assert all(record.instruction and record.response for record in records)

    dealt = allocate(records, 4)
    assert Counter(r.category for r in dealt.global_test) == dict.fromkeys(counts, 10)
    assert {400 <= len(own) <= 600 for own in dealt.local} == {True}


def test_what_is_tested_was_taught_in_other_words(records):
    """What the test set wants to hear about FLockLLM is an answer in the training set too."""
    dealt = allocate(records, 4)
    trained = {record.response for record in dealt.global_training}
    facts = {r.response for r in dealt.global_test if "FLockLLM" in r.response}
    assert facts
    assert facts <= trained


def test_prompts_are_short(records, tokenizer):
    """A record has 100 tokens at most on average, so that a round takes seconds on one core."""
    texts = [render(tokenizer, r.instruction, r.context, r.response) for r in records]
    assert sum(map(len, tokenizer(texts).input_ids)) / len(texts) <= 100


def test_the_scripts_make_the_same_data_again(tmp_path):
    """The demo's file byte for byte; of the corpus, the digest that the model card names."""
    run("demo.py", tmp_path / "demo.json")
    assert (tmp_path / "demo.json").read_bytes() == (ASSETS / "demo.json").read_bytes()

    lines = run("corpus.py", "--records", "2000")
    assert hashlib.sha256(lines).hexdigest() in (MODEL / "README.md").read_text()
    assert len({json.loads(line)["category"] for line in lines.splitlines()}) == 22
