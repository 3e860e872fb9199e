"""Records → tokens: what the model reads, what the loss counts, what is held out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flockllm.data import Record
from flockllm.errors import InvalidData, InvalidSpec, ModelError
from flockllm.train.data import Example, describe, split, tokenize
from flockllm.train.packing import micro_batches, pack

PLAIN = Record("Say hi.", "Hi!")
WITH_CONTEXT = Record("Sum it up.", "Short.", context="A long text.")


@pytest.fixture(scope="module")
def tokenizer():
    """Every character is a token, so that positions can be read off the text."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *characters])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    return tokenizer


def text(tokenizer, tokens):
    """The text of tokens, spaces and marks as they are."""
    named = tokenizer.convert_ids_to_tokens([int(t) for t in tokens])
    return "".join(named).replace("Ġ", " ").replace("Ċ", "\n")


def test_alpaca_is_the_originals_prompt(tokenizer):
    """Both forms of the template to the letter, begun and ended by the tokenizer's marks."""
    plain, with_context = tokenize([PLAIN, WITH_CONTEXT], tokenizer)

    assert text(tokenizer, plain.tokens) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay hi.\n\n### Response:\nHi!</s>"
    )
    assert text(tokenizer, with_context.tokens) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum it up.\n\n### Input:\nA long text.\n\n### Response:\nShort.</s>"
    )
    assert plain.form != with_context.form


@pytest.mark.parametrize(
    ("template", "whole"),
    [
        ("vicuna", "answers to the user's questions. USER: Say hi. ASSISTANT: Hi!</s>"),
        ("chat", "<s>user: Say hi.</s>\n<s>assistant: Hi!</s>\n"),
    ],
)
def test_other_templates(tokenizer, template, whole):
    """Vicuna's prompt, and whatever chat template the tokenizer brings, marked once."""
    (example,) = tokenize([PLAIN], tokenizer, template)

    assert text(tokenizer, example.tokens).endswith(whole)
    assert text(tokenizer, example.tokens[example.start :]).strip() == "Hi!</s>"


def test_the_loss_counts_the_response_and_its_end(tokenizer):
    """On the response only, the first token learned is the response's first."""
    (response,) = tokenize([PLAIN], tokenizer)
    (everything,) = tokenize([PLAIN], tokenizer, loss_on="all")

    assert text(tokenizer, response.tokens[response.start :]) == "Hi!</s>"
    assert everything.start == 1
    assert everything.learned == len(everything.tokens) - 1


def test_what_is_longer_than_the_cutoff_is_cut(tokenizer):
    """The end goes, the end mark with it; a response beyond the cutoff leaves nothing to learn."""
    (whole,) = tokenize([PLAIN], tokenizer)
    n = len(whole.tokens)
    (same,), (cut,), (none,) = (
        tokenize([PLAIN], tokenizer, cutoff=length) for length in (n, n - 2, 20)
    )

    assert (same.cut, cut.cut, none.cut) == (False, True, True)
    assert np.array_equal(cut.tokens, whole.tokens[: n - 2])
    assert (cut.learned, none.learned) == (2, 0)


def test_unknown_templates_and_missing_chat_templates_are_named(tokenizer):
    """Both messages say what may be written instead."""
    with pytest.raises(InvalidSpec, match="alpaca, vicuna, chat"):
        tokenize([PLAIN], tokenizer, "llama")
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="</s>")
    with pytest.raises(ModelError, match="no chat template"):
        tokenize([PLAIN], bare, "chat")


def test_describe_sums_up(tokenizer):
    """Records, tokens, the longest and the share cut off, as `join` tells them."""
    (plain,) = tokenize([PLAIN], tokenizer)
    n = len(plain.tokens)
    summary = describe(tokenize([PLAIN, WITH_CONTEXT], tokenizer, cutoff=n))

    assert (summary.records, summary.tokens) == (2, 2 * n)
    assert (summary.longest, summary.cut) == (n, 0.5)
    assert str(summary).startswith("2 records, ")
    assert "50.0% cut off" in str(summary)
    assert str(describe([])) == "0 records, 0 tokens, longest 0"


RECORDS = [Record(f"question {i}", f"answer {i}") for i in range(50)]


@given(
    order=st.permutations(range(50)),
    heldout=st.one_of(st.floats(0.01, 0.99), st.integers(1, 80)),
    seed=st.binary(min_size=1, max_size=80),
)
def test_split_puts_every_record_on_one_side(order, heldout, seed):
    """Nothing lost, nothing twice, order kept; the side does not depend on the order."""
    train, held = split(RECORDS, heldout, seed)
    shuffled = [RECORDS[i] for i in order]
    train_again, held_again = split(shuffled, heldout, seed)

    assert {*train, *held} == set(RECORDS)
    assert len(train) + len(held) == len(RECORDS)
    assert train
    assert held
    assert [r for r in RECORDS if r in held] == held
    assert set(held_again) == set(held)
    assert set(train_again) == set(train)


def test_split_follows_the_seed_and_the_size():
    """Another seed holds out other records; shares and numbers mean what they say."""
    one, other = split(RECORDS, 10, b"a")[1], split(RECORDS, 0.2, b"b")[1]

    assert (len(one), len(other)) == (10, 10)
    assert set(one) != set(other)
    with pytest.raises(InvalidData, match="at least 2"):
        split(RECORDS[:1], 0.5, b"a")


EXAMPLES = st.lists(
    st.builds(
        lambda tokens, start, form: Example(
            np.asarray(tokens, np.int32), min(start, len(tokens)), form, False
        ),
        st.lists(st.integers(0, 3), min_size=1, max_size=12),
        st.integers(1, 12),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=8,
)


@given(examples=EXAMPLES, share=st.booleans())
def test_a_row_holds_every_prediction_of_every_example(examples, share):
    """Whatever begins alike: what a row asks for are the examples' own predictions, no others.

    Each prediction is followed back through the layout to the tokens that it may look at.
    """
    row = pack(examples, share=share)
    tokens, positions = row.tokens[0].numpy(), row.positions[0].numpy()
    before = {}  # place → the tokens that it and its predecessors in the same sequence hold
    for s in row.layout.segments:
        places = [*range(s.root, s.root + s.shared), *range(s.start, s.start + s.length)]
        assert positions[places].tolist() == list(range(len(places)))
        before |= {p: tuple(tokens[places[: i + 1]]) for i, p in enumerate(places)}

    found = {}
    for place, target, weight in zip(row.places, row.targets, row.weights, strict=True):
        key = (before[int(place)], int(target))
        found[key] = found.get(key, 0) + int(weight)

    wanted = {}
    for example in examples:
        for at in range(example.start, len(example.tokens)):
            key = (tuple(example.tokens[:at]), int(example.tokens[at]))
            wanted[key] = wanted.get(key, 0) + 1
    assert found == wanted


@given(examples=EXAMPLES, budget=st.integers(1, 60))
def test_micro_batches_hold_everything_within_the_budget(examples, budget):
    """Every example is in one micro-batch; padded, only a lone example exceeds the budget."""
    groups = list(micro_batches(examples, budget))

    assert sorted(map(id, examples)) == sorted(id(e) for group in groups for e in group)
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(e.tokens) for e in group) <= budget
