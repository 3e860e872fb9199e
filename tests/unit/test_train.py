"""Training, scoring and generating on tiny random models, where every number can be checked."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from flockllm.data import Record
from flockllm.errors import ModelError
from flockllm.task import Lora, Training
from flockllm.train.base import Base, tensor_list
from flockllm.train.cpu import Dropout, LoraProduct, speed_up
from flockllm.train.data import tokenize
from flockllm.train.loop import Trainer, learning_rate
from flockllm.train.loss import packed_attention_on, packed_loss, padded_loss
from flockllm.train.packing import micro_batches, pack

VOCABULARY = 300
LORA = Lora(rank=4, alpha=8, dropout=0.0)
NEOX_LORA = Lora(rank=4, alpha=8, dropout=0.0, targets=("query_key_value", "dense"))
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
RECORDS = [
    Record(
        f"Say the number {i} {'and again ' * (i % 5)}in words.",
        "it is " + "very " * (i % 7) + f"number {i}.",
        "numbers are fun " * (i % 3) if i % 2 else "",
    )
    for i in range(24)
]


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE, trained here on the template's own words."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([r.instruction + r.response for r in RECORDS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def model_of(config, dtype=torch.float32):
    """A random model, the same each time."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():  # far from zero, so that every part matters
        parameter.data.normal_(std=0.15)
    return model.eval().requires_grad_(False)


def adapter_of(shapes, seed=0, scale=0.1):
    """A random adapter whose B is not zero."""
    random = np.random.default_rng(seed)
    return {
        n: random.normal(scale=scale, size=shape).astype(np.float32) for n, shape in shapes.items()
    }


@pytest.fixture
def base(tokenizer):
    """A tiny Llama, in float32 whatever the CPU can do."""
    return Base(model_of(LlamaConfig(**SMALL)), tokenizer, low_precision=False)


@pytest.fixture
def trainer(base, tokenizer):
    """Trains on 16 records and scores on 8."""
    examples = tokenize(RECORDS, tokenizer)
    return Trainer(base, LORA, Training(batch=8, lr=1e-2), examples[:16], examples[16:])


NEOX = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
}
PACKABLE = {
    "llama": (LlamaConfig(**SMALL), LORA),
    "qwen2": (Qwen2Config(**SMALL), LORA),
    "qwen3": (Qwen3Config(**SMALL, head_dim=8), LORA),
    "mistral": (MistralConfig(**SMALL, sliding_window=400), LORA),
    "gpt_neox": (GPTNeoXConfig(**NEOX), NEOX_LORA),
    "opt": (OPTConfig(**OPT), Lora(rank=4, dropout=0.0, targets=("q_proj", "out_proj"))),
    "gpt2": (GPT2Config(**GPT2), Lora(rank=4, alpha=8, dropout=0.0, targets=("c_attn",))),
}


def gradients(base, lora, adapter, loss):
    """Loss and LoRA gradients, of whatever `loss` computes."""
    base.adapt(lora)
    base.set_adapter(adapter)
    base.peft.zero_grad(set_to_none=True)
    value = loss(base.model)
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in base.parameters.items()}


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "whole"])
def test_packed_gradients_are_the_padded_ones(tokenizer, name, loss_on, share):
    """A row without padding, its prefix computed once, teaches exactly what a padded batch does."""
    config, lora = PACKABLE[name]
    base = Base(model_of(config, torch.float64), tokenizer)
    base.adapt(lora)
    base.peft.double()
    assert base.packs
    examples = tokenize(RECORDS[:9], tokenizer, loss_on=loss_on)
    adapter = adapter_of({n: p.shape for n, p in base.parameters.items()})

    def packed(model):
        with packed_attention_on(model):
            return packed_loss(model, pack(examples, share=share))

    base.peft.eval()  # PEFT's and PyTorch's own operations
    wanted, wanted_gradients = gradients(base, lora, adapter, lambda m: padded_loss(m, examples))
    base.peft.train()  # ours
    found, found_gradients = gradients(base, lora, adapter, packed)

    # Norms and rotations compute in float32 inside these models, whatever the dtype.
    assert found == pytest.approx(wanted, rel=1e-8)
    for tensor, gradient in found_gradients.items():
        wanted_gradient = wanted_gradients[tensor]
        assert (gradient - wanted_gradient).norm() <= 1e-6 * wanted_gradient.norm(), tensor


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_the_last_layer_computes_only_what_is_read(tokenizer, name):
    """Its MLP sees as many places as the loss reads; also after LoRA layers of another shape."""
    config, lora = PACKABLE[name]
    base = Base(model_of(config), tokenizer)
    row = pack(tokenize(RECORDS[:9], tokenizer))
    assert len(row.layout.read) < 0.9 * row.layout.length

    for shape in (lora, Lora(rank=2, dropout=0.0, targets=lora.targets)):
        base.adapt(shape)
        seen = []
        mlp = base.model.base_model.layers[-1].mlp
        hook = mlp.down_proj.register_forward_pre_hook(lambda _, x, s=seen: s.append(x[0].shape[1]))
        with packed_attention_on(base.model):
            packed_loss(base.model, row)
        hook.remove()
        assert seen == [len(row.layout.read)]


UNPACKABLE = {
    "window": (MistralConfig(**SMALL, sliding_window=8), LORA),
    "soft cap": (Gemma2Config(**SMALL, head_dim=8), LORA),
    "alibi": (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4), NEOX_LORA),
    "state": (
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
        Lora(rank=4, dropout=0.0, targets=("in_proj",)),
    ),
    "scaled logits": (CohereConfig(**SMALL, logit_scale=0.5), LORA),
}


@pytest.mark.parametrize("name", UNPACKABLE)
def test_what_cannot_be_packed_is_padded(tokenizer, name):
    """A model that the packed way would train wrongly is trained the padded way, by itself."""
    config, lora = UNPACKABLE[name]
    base = Base(model_of(config), tokenizer)
    examples = tokenize(RECORDS, tokenizer)
    trainer = Trainer(base, lora, Training(batch=8, lr=1e-2), examples[:16], examples[16:])
    start = adapter_of(tensor_list(config, lora), scale=0.01)

    trained = trainer.train(start, seed=1)

    assert not base.packs
    base.set_adapter(start)
    plain = sum(padded_loss(base.model, [e]).item() for e in examples[16:])
    labels = sum(e.learned for e in examples[16:])
    assert trainer.loss(start) == pytest.approx(plain / labels, rel=1e-4)
    assert trainer.loss(trained) < trainer.loss(start)


def test_micro_batches_add_up_to_one_batch(base, tokenizer):
    """Gradients over micro-batches of any size are the gradient of the whole batch."""
    base.adapt(LORA)
    examples = tokenize(RECORDS, tokenizer)
    adapter = adapter_of({n: p.shape for n, p in base.parameters.items()})

    def in_parts(budget):
        def loss(model):
            with packed_attention_on(model):
                return sum(packed_loss(model, pack(m)) for m in micro_batches(examples, budget))

        return loss

    whole, whole_gradients = gradients(base, LORA, adapter, in_parts(10**6))
    parts, part_gradients = gradients(base, LORA, adapter, in_parts(200))

    assert parts == pytest.approx(whole, rel=1e-6)
    for tensor, gradient in part_gradients.items():
        torch.testing.assert_close(gradient, whole_gradients[tensor], rtol=1e-3, atol=1e-4)


def test_training_lowers_the_loss_and_leaves_the_base_alone(trainer):
    """Some steps make held-out text likelier; without the adapter all is as before."""
    start = adapter_of(tensor_list(trainer.base.model.config, LORA), scale=0.01)
    bare = trainer.loss(None)
    steps = []

    trained = trainer.train(start, seed=b"s", progress=lambda *step: steps.append(step))

    assert trainer.loss(trained) < trainer.loss(start)
    assert trainer.loss(None) == bare
    assert [(done, of) for done, of, _ in steps] == [(1, 2), (2, 2)]


def test_the_same_seed_gives_the_same_adapter(base, tokenizer):
    """Order of records and dropout come from the seed alone, whatever else draws numbers."""
    examples = tokenize(RECORDS, tokenizer)
    trainer = Trainer(base, Lora(rank=4, dropout=0.2), Training(batch=8), examples, examples)
    start = adapter_of(tensor_list(base.model.config, Lora(rank=4)))

    first = trainer.train(start, seed=7)
    torch.rand(3)
    again = trainer.train(start, seed=7)
    other = trainer.train(start, seed=8)

    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not all(np.array_equal(first[n], other[n]) for n in first)


def test_checkpointing_changes_memory_not_the_adapter(tokenizer):
    """Activations computed a second time, dropout included, give the same training."""
    examples = tokenize(RECORDS, tokenizer)
    lora = Lora(rank=4, dropout=0.2)
    trained = []
    for checkpointing in (False, True):
        base = Base(model_of(LlamaConfig(**SMALL)), tokenizer)
        trainer = Trainer(base, lora, Training(batch=8), examples, [], checkpointing=checkpointing)
        start = adapter_of(tensor_list(base.model.config, lora))
        trained.append(trainer.train(start, seed=3))
        assert base.model.is_activation_checkpointing == checkpointing

    plain, checkpointed = trained
    for name, tensor in plain.items():
        np.testing.assert_allclose(checkpointed[name], tensor, rtol=0, atol=1e-6)


def test_scoring_is_exactly_repeatable(trainer):
    """The same adapter scores the same to the last bit, whatever was scored or trained between."""
    shapes = tensor_list(trainer.base.model.config, LORA)
    current, delta = adapter_of(shapes), adapter_of(shapes, seed=1)

    first = trainer.loss(current)
    moved, back = trainer.losses(current, [delta, {n: -t for n, t in delta.items()}])
    trainer.train(current, seed=1)

    assert trainer.loss(current) == first
    assert moved == trainer.loss({n: t + delta[n] for n, t in current.items()})
    assert moved != first != back


def test_low_precision_gradients_point_the_same_way(tokenizer):
    """Multiplying frozen weights in bfloat16 turns the gradient by less than 2 degrees."""
    examples = tokenize(RECORDS, tokenizer)
    directions = {}
    for low in (False, True):
        base = Base(model_of(LlamaConfig(**SMALL)), tokenizer, low_precision=low)
        base.adapt(LORA).train()
        adapter = adapter_of({n: p.shape for n, p in base.parameters.items()})
        with packed_attention_on(base.model):
            _, found = gradients(base, LORA, adapter, lambda m: packed_loss(m, pack(examples)))
        directions[low] = torch.cat([g.flatten() for g in found.values()])

    assert not torch.equal(directions[False], directions[True])
    assert torch.cosine_similarity(directions[False], directions[True], dim=0) > 0.9994


def test_low_precision_needs_few_shapes(tokenizer):
    """Rows in bfloat16 come in multiples: oneDNN would make and keep a kernel for every length."""
    rows = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            if function is torch.ops.aten.mm.default and arguments[0].dtype == torch.bfloat16:
                rows.add(max(arguments[0].shape))
            return function(*arguments, **(options or {}))

    examples = tokenize(RECORDS, tokenizer)
    base = Base(model_of(LlamaConfig(**SMALL)), tokenizer, low_precision=True)
    trainer = Trainer(base, LORA, Training(batch=1), examples, [])
    with Watch():
        trainer.train(adapter_of(tensor_list(base.model.config, LORA)), seed=0)

    assert rows
    assert all(count % 128 == 0 for count in rows)


def test_norms_in_one_piece_are_the_models_norms():
    """Output and gradient are those of the layer; one that computes something else is left."""
    torch.manual_seed(0)
    model = model_of(LlamaConfig(**SMALL), torch.float64)
    norm = model.model.norm
    x = torch.randn(1, 5, 32, dtype=torch.float64, requires_grad=True)
    outer = torch.randn_like(x)
    wanted = norm(x)
    odd = model_of(Gemma2Config(**SMALL, head_dim=8))

    for changed in (model, odd):
        speed_up(changed.train(), 0.0, low_precision=False)
    found = norm(x)

    assert type(found.grad_fn).__name__ == "RootMeanSquareBackward"
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(y, x, outer) for y in (found, wanted)]
    torch.testing.assert_close(*gradients)
    assert "forward" not in vars(odd.model.norm)  # it multiplies by 1 + w


def test_dropout_drops_its_share_and_keeps_the_mean():
    """The right share of numbers is zero, the rest scaled up, layers of one input agree."""
    dropout = Dropout(0.2)
    x = torch.ones(1, 500, 200)

    rows, dropped, mask = dropout(x, x.dtype)
    _, same, _ = dropout(x, x.dtype)
    _, other, _ = dropout(torch.ones(1, 500, 200), x.dtype)

    assert torch.equal(rows, x[0])
    assert torch.equal(dropped, mask)
    assert torch.equal(dropped, same)
    assert not torch.equal(dropped, other)
    assert (dropped == 0).double().mean() == pytest.approx(0.2, abs=0.005)
    assert dropped.double().mean() == pytest.approx(1, abs=0.01)
    assert Dropout(0.0)(x, x.dtype)[2] is None


def test_dropout_reaches_the_gradients(tokenizer):
    """With dropout, gradients are those of PEFT's formula with the same mask."""
    torch.manual_seed(0)
    base, low, high = (torch.randn(n, m, dtype=torch.float64) for n, m in ((6, 8), (3, 8), (6, 3)))
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, low, high)]
    rows, dropped, mask = Dropout(0.5)(x, x.dtype)
    outer = torch.randn(1, 5, 6, dtype=torch.float64)

    plain = x @ base.T + 0.7 * (x * mask) @ low.T @ high.T  # the mask is (T, in)
    ours = LoraProduct.apply(x, base, None, low, high, 0.7, rows, dropped, mask)

    torch.testing.assert_close(ours, plain)
    wanted = torch.autograd.grad(plain, inputs, outer)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, outer), wanted)


def test_proximal_term_holds_the_adapter_back(trainer):
    """The larger μ, the closer the trained adapter stays to the start."""
    start = adapter_of(tensor_list(trainer.base.model.config, LORA))

    def distance(proximal):
        trained = trainer.train(start, seed=0, proximal=proximal)
        return sum(float(((trained[n] - start[n]) ** 2).sum()) for n in start)

    free, held = distance(0.0), distance(100.0)

    assert held < free


@pytest.mark.parametrize(("factors", "still"), [("B", "A"), ("A", "B")])
def test_only_the_factors_that_are_named_learn(base, tokenizer, factors, still):
    """The other one keeps its bits, and learns again in the next training of both."""
    recipe = Training(lr=1e-2, batch=4)
    trainer = Trainer(base, LORA, recipe, tokenize(RECORDS, tokenizer), [])
    start = trainer.train(base.adapter(), seed=1)
    moved = trainer.train(start, seed=2, factors=factors)
    for name, tensor in moved.items():
        assert (tensor == start[name]).all() == (f".lora_{still}." in name), name
    both = trainer.train(start, seed=2)
    assert not any((both[name] == start[name]).all() for name in both)


def test_a_recipe_says_what_learns_in_a_round():
    """`in turns` begins with B: beside a B of zeros, A has no gradient."""
    assert [Training(factors="in turns").factors_in(n) for n in (1, 2, 3)] == ["B", "A", "B"]
    assert Training().factors_in(2) == "B"
    assert Training(factors="both").factors_in(1) == "AB"


def test_learning_rate_follows_the_recipe():
    """A linear rise, then the schedule, down to just above zero at the last step."""
    rates = {
        schedule: [
            learning_rate(Training(lr=1.0, warmup=0.2, schedule=schedule), step, 10)
            for step in range(10)
        ]
        for schedule in ("constant", "linear", "cosine")
    }

    assert all(rate[:3] == [0.5, 1.0, 1.0] for rate in rates.values())
    assert rates["constant"][-1] == 1
    assert rates["linear"][6:] == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert rates["cosine"][6] == pytest.approx(0.5)
    assert 0 < rates["cosine"][-1] < rates["linear"][-1]


def test_an_adapter_of_another_shape_is_refused(trainer):
    """Tensors that do not fit are an error, never broadcast."""
    wrong = adapter_of(tensor_list(trainer.base.model.config, Lora(rank=8)))

    with pytest.raises(ModelError, match="not the ones"):
        trainer.loss(wrong)


def test_nothing_to_learn_says_so(base, tokenizer):
    """Records whose prompt fills the cutoff leave nothing to train or score on."""
    examples = tokenize(RECORDS, tokenizer, cutoff=16)
    trainer = Trainer(base, LORA, Training(), examples, examples)
    start = adapter_of(tensor_list(base.model.config, LORA))

    with pytest.raises(ModelError, match="nothing to train on"):
        trainer.train(start, seed=0)
    with pytest.raises(ModelError, match="nothing to score on"):
        trainer.loss(start)


def test_a_learning_rate_that_breaks_training_says_so(base, tokenizer):
    """When the loss is no longer a number, the message names what to lower."""
    examples = tokenize(RECORDS, tokenizer)
    trainer = Trainer(base, LORA, Training(batch=4, lr=9.9), examples, examples)
    start = adapter_of(tensor_list(base.model.config, LORA))
    start = {n: t * 1e30 for n, t in start.items()}

    with pytest.raises(ModelError, match=r"lower training\.lr"):
        trainer.train(start, seed=0)


def test_trainers_with_other_shapes_take_turns_on_one_base(base, tokenizer):
    """A second LoRA shape on the same base does not disturb the first."""
    examples = tokenize(RECORDS, tokenizer)
    first = Trainer(base, LORA, Training(batch=8), examples[:16], examples[16:])
    start = adapter_of(tensor_list(base.model.config, LORA))
    before = first.loss(start)

    wide = Lora(rank=8, targets=("q_proj",))
    Trainer(base, wide, Training(batch=8), examples[:16], examples[16:]).train(
        adapter_of(tensor_list(base.model.config, wide)), seed=0
    )

    assert first.loss(start) == before


def test_tensor_list_is_what_peft_writes(base, tmp_path):
    """Names and shapes, computed without weights, are those of a saved PEFT adapter."""
    from safetensors.numpy import load_file

    base.adapt(LORA).save_pretrained(tmp_path)
    written = load_file(tmp_path / "adapter_model.safetensors")

    shapes = tensor_list(base.model.config, LORA)

    assert shapes == {n: t.shape for n, t in sorted(written.items())}
    assert list(shapes) == sorted(shapes)
