"""Many sequences in one batch answer as each would alone, on tiny random models."""

import time
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

from flockllm.errors import ModelError
from flockllm.host.decoding import Beams, Choice, Draw, common_prefix
from flockllm.host.engine import Ask, Busy, Engine, Piece
from flockllm.host.loading import _try
from flockllm.host.switch import Switch, switched

VOCABULARY = 60
END = 1
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": END,
}
BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
MODELS = {
    "llama": (LlamaConfig(**SMALL, num_key_value_heads=2), ["q_proj", "down_proj"]),
    "qwen3": (Qwen3Config(**SMALL, head_dim=8, num_key_value_heads=2), ["q_proj", "v_proj"]),
    "mistral, window": (
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8),
        ["q_proj"],
    ),
    "gemma2": (Gemma2Config(**SMALL, head_dim=8, sliding_window=8), ["q_proj", "v_proj"]),
    "gpt_neox": (GPTNeoXConfig(**SMALL), ["query_key_value"]),
    "gpt2": (GPT2Config(**GPT2), ["c_attn"]),
    "bloom": (BloomConfig(**BLOOM), ["query_key_value"]),
    "opt": (OPTConfig(**OPT), ["v_proj", "out_proj"]),
}
PROMPTS = [[5, 9, 33], [7] * 11, [2, 40, 41, 42, 43, 44, 8], [50], list(range(10, 30))]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost more than they give on models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Numbers:
    """A tokenizer whose tokens are words: `12 7 `."""

    def decode(self, tokens, skip_special_tokens):
        """Each token as a number and a space."""
        return "".join(f"{token} " for token in tokens)


def random_model(config):
    """A random model, the same each time, far from zero."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model.eval().requires_grad_(False)


def with_adapters(config, targets):
    """The same model twice: PEFT's with two adapters, and ours with a switch."""
    models = []
    for _ in range(2):
        model = random_model(config)
        transposed = config.model_type == "gpt2"
        one = LoraConfig(r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=transposed)
        two = LoraConfig(r=2, lora_alpha=6, target_modules=targets[:1], fan_in_fan_out=transposed)
        peft = get_peft_model(model, one, adapter_name="a1")
        peft.add_adapter("a2", two)
        torch.manual_seed(4)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3)
        models.append(peft.eval())
    return models[0], *switched(models[1], ["a1", "a2"])


def alone(peft, adapter, prompt, **options):
    """What `generate` answers to one prompt."""
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0} | options
    ids = torch.tensor([prompt])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if adapter == 0:
        with peft.disable_adapter():
            output = peft.generate(**inputs, eos_token_id=END, **options)
    else:
        peft.set_adapter(f"a{adapter}")
        output = peft.generate(**inputs, eos_token_id=END, **options)
    answer = output[0, len(prompt) :].tolist()
    return answer[: answer.index(END)] if END in answer else answer


class Asked:
    """An engine, and a way to wait for all answers."""

    def __init__(self, model, switch, ends=(END,), **options):
        self.engine = Engine(model, switch, Numbers(), frozenset(ends), **options)
        self.pieces = SimpleQueue()

    def submit(self, asks):
        """Starts them."""
        return self.engine.submit(asks, lambda i, piece: self.pieces.put((i, piece)))

    def answers(self, asks):
        """Text and end of each."""
        self.submit(asks)
        texts, ends = [""] * len(asks), [""] * len(asks)
        while not all(ends):
            i, piece = self.pieces.get(timeout=60)
            texts[i] += piece.text
            ends[i] = piece.finish
        return list(zip(texts, ends, strict=True))


def words(tokens):
    """As `Numbers` decodes them."""
    return "".join(f"{token} " for token in tokens)


@pytest.fixture(scope="module")
def llama():
    """PEFT's model, ours, and the switch."""
    return with_adapters(*MODELS["llama"])


@pytest.fixture
def asked(llama):
    """An engine on the tiny Llama."""
    started = Asked(llama[1], llama[2])
    yield started
    started.engine.close()
    started.engine.join()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_mixed_batch_answers_as_each_prompt_alone(name, beams):
    """Prompts of all lengths, with any adapter or none, in one batch: what `generate` says."""
    peft, model, switch = with_adapters(*MODELS[name])
    asked = Asked(model, switch, max_rows=12)  # fewer than are asked: some join late
    choice = Choice(max_tokens=12, beams=beams)
    asks = [
        Ask(prompt=prompt, adapter=adapter, choice=choice)
        for prompt in PROMPTS
        for adapter in (0, 1, 2)
    ]

    answers = asked.answers(asks)

    asked.engine.close()
    wanted = [alone(peft, ask.adapter, ask.prompt, num_beams=beams) for ask in asks]
    assert [text for text, _ in answers] == [words(tokens) for tokens in wanted]
    assert any(wanted[i] != wanted[i + 1] for i in range(0, len(asks), 3))  # adapters matter


def test_a_model_without_keys_and_values_is_refused():
    """A state-space model is refused when it is loaded, with the way out."""
    config = MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(ModelError, match="--engine vllm"):
        _try(random_model(config), Switch(), [0])


def test_answers_that_come_and_go_do_not_disturb_each_other(llama, asked):
    """Answers of different lengths end at different steps; the others go on as alone."""
    lengths = [1, 9, 3, 12, 5, 2, 12, 7]
    asks = [
        Ask(prompt=PROMPTS[i % 5], adapter=i % 3, choice=Choice(max_tokens=n))
        for i, n in enumerate(lengths)
    ]
    answers = asked.answers(asks)

    for ask, (text, _) in zip(asks, answers, strict=True):
        whole = alone(llama[0], ask.adapter, ask.prompt)
        assert text == words(whole[: ask.choice.max_tokens])


def test_a_seed_repeats_itself_whatever_runs_beside_it(asked):
    """The same seed draws the same answer, alone or among others; another seed another one."""
    drawn = Ask(prompt=PROMPTS[0], choice=Choice(max_tokens=12, temperature=1.0, seed=7))
    other = Ask(prompt=PROMPTS[0], choice=Choice(max_tokens=12, temperature=1.0, seed=8))

    [first] = asked.answers([drawn])
    second, third, different = asked.answers([drawn, drawn, other])

    assert first == second == third != different


def test_a_cancelled_answer_is_never_heard_of_again(asked):
    """After `cancel` the rows are free for others, and no piece comes."""
    long = Ask(prompt=PROMPTS[0], choice=Choice(max_tokens=10_000, temperature=2.0, seed=1))
    for answer in asked.submit([long] * 16):  # every row there is
        answer.cancel()
    while asked.engine.running or asked.engine.waiting:
        time.sleep(0.01)
    while not asked.pieces.empty():
        asked.pieces.get()

    [(text, end)] = asked.answers([Ask(prompt=PROMPTS[1], choice=Choice(max_tokens=3))])

    assert text
    assert end in ("stop", "length")


def test_too_many_are_refused_and_none_of_them_kept(llama):
    """A full queue refuses a request as a whole."""
    asked = Asked(llama[1], llama[2], ends=(), max_rows=1, max_waiting=3)
    long = Ask(prompt=PROMPTS[0], choice=Choice(max_tokens=100_000, temperature=2.0, seed=1))
    with pytest.raises(Busy):
        asked.submit([long] * 4)
    asked.submit([long] * 3)
    with pytest.raises(Busy):
        asked.submit([long] * 3)
    asked.engine.close()
    asked.engine.join()

    ends = [asked.pieces.get(timeout=1)[1].finish for _ in range(asked.pieces.qsize())]
    assert ends.count("closed") == 3


def test_a_failure_ends_its_batch_and_the_engine_lives_on(asked):
    """What the model cannot do ends as `error`; the next answer is right again."""
    [(_, end)] = asked.answers([Ask(prompt=[VOCABULARY + 5])])
    [(text, _)] = asked.answers([Ask(prompt=PROMPTS[0], choice=Choice(max_tokens=2))])

    assert end == "error"
    assert text


def test_stop_sequences_end_an_answer_before_them(llama, asked):
    """The text before the first stop sequence is given, none of it and nothing after."""
    whole = words(alone(llama[0], 1, PROMPTS[1]))
    stop = " ".join(whole.split()[3:5])
    [(text, end)] = asked.answers([Ask(prompt=PROMPTS[1], adapter=1, stops=("nothing", stop))])

    assert text == whole[: whole.index(stop)]
    assert end == "stop"


def test_top_k_and_top_p_draw_from_the_likeliest_only():
    """Tokens outside of either set never come; all inside do."""
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    shares = logits[0].softmax(0)

    def drawn(**options):
        choice = Choice(temperature=1.0, max_tokens=10**6, seed=0, **options)
        draw = Draw(choice, frozenset())
        return np.bincount([draw.advance(logits)[0][1] for _ in range(600)], minlength=4)

    assert list(drawn(top_k=2) > 0) == [True, True, False, False]
    assert list(drawn(top_p=float(shares[0]) + 0.01) > 0) == [True, True, False, False]
    assert list(drawn(top_p=0.0) > 0) == [True, False, False, False]
    assert drawn() / 600 == pytest.approx(shares.numpy(), abs=0.06)


def test_beams_show_only_what_all_of_them_share():
    """What is told of a search before its end never has to be taken back."""
    random = torch.Generator().manual_seed(0)
    beams = Beams(Choice(beams=4, max_tokens=30), frozenset({END}))
    told = []
    rows = 1
    while not beams.finish:
        logits = 6 * torch.randn(rows, 20, generator=random)
        rows = len(beams.advance(logits))
        assert beams.tokens[: len(told)] == told
        told = list(beams.tokens)

    assert told


def test_a_beam_search_ends_when_nothing_can_win_any_more():
    """With enough finished beams that are better than any that goes on, it does not go on."""
    beams = Beams(Choice(beams=2, max_tokens=1000), frozenset({END}))
    logits = torch.zeros(1, 5)
    logits[0, END] = 4.0
    rows = steps = 1
    while not beams.finish:
        rows, steps = len(beams.advance(logits.expand(rows, -1))), steps + 1

    assert steps < 10
    assert beams.tokens == []


def test_common_prefix():
    """The shortest sequence limits it; what is known is not looked at again."""
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == [1, 2]
    assert common_prefix([[1], []]) == []
    assert common_prefix([[9, 5], [9, 5]], known=1) == [9, 5]


def test_pieces_count_tokens(asked):
    """Each piece says how long the answer is, so that a stream can be billed."""
    asked.submit([Ask(prompt=PROMPTS[2], choice=Choice(max_tokens=4))])
    pieces = []
    while not pieces or not pieces[-1].finish:
        pieces.append(asked.pieces.get(timeout=60)[1])

    assert [piece.tokens for piece in pieces] == [1, 2, 3, 4]
    assert pieces[-1] == Piece(pieces[-1].text, 4, "length")
