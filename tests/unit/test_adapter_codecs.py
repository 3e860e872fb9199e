import tracemalloc

import numpy as np
import pytest

from flockllm.adapter import CODECS, Adapter, Update, max_bytes, quantise, rans
from flockllm.aggregate import RULES
from flockllm.errors import InvalidUpdate

SHAPES = {f"layers.{layer}.lora_{ab}.weight": (16, 512) for layer in range(20) for ab in "AB"}
"""Large enough for several lanes, and for several blocks of a stream."""
COUNT = 40 * 16 * 512
PACKED = [name for name in CODECS if name != "plain"]
CURRENT = Adapter.initial(SHAPES, b"seed")


def trained(seed: int = 0, frozen: str = "layers.7.") -> dict[str, np.ndarray]:
    """The current adapter with every tensor moved, each by another amount; `frozen` ones not."""
    rng = np.random.default_rng(seed)
    return {
        name: (tensor + rng.normal(0, 10.0 ** -rng.uniform(2, 4), tensor.shape)).astype(np.float32)
        if frozen not in name
        else tensor
        for name, tensor in CURRENT.floats().items()
    }


@pytest.fixture(scope="module", params=PACKED)
def packed(request):
    """A codec's name, an update rounded for it, and its file."""
    update = Update.from_floats(CURRENT, trained(), request.param)
    return request.param, update, update.to_bytes(request.param)


@pytest.mark.parametrize("count", [1, 2, 2_047, 4_096, 100_003, 700_000])
@pytest.mark.parametrize("alphabet", [3, 15, 255])
def test_any_part_of_a_stream_is_what_was_encoded(count, alphabet):
    """One lane or many, whole or in part: the symbols that went in come out."""
    rng = np.random.default_rng(count)
    symbols = rng.binomial(alphabet - 1, 0.1, count).astype(np.uint8)

    whole, stream = rans.decode(rans.encode(symbols, alphabet), count, alphabet)

    assert (whole == symbols).all()
    for _ in range(5):
        start, stop = sorted(rng.integers(0, count + 1, 2))
        assert (stream[slice(start, stop)] == symbols[start:stop]).all()


@pytest.mark.parametrize("rare", [0.3, 0.03, 0.003])
def test_a_stream_is_as_long_as_its_information(rare):
    """Within 0.02 bits a number of the entropy, also far below one bit."""
    symbols = np.random.default_rng(0).choice(3, 300_000, p=[rare / 2, 1 - rare, rare / 2])
    share = np.bincount(symbols) / len(symbols)
    entropy = -(share * np.log2(share)).sum()

    bits = 8 * len(rans.encode(symbols.astype(np.uint8), 3)) / len(symbols)

    assert entropy < bits < entropy + 0.02


def test_the_worst_stream_is_no_longer_than_its_bound():
    """Even symbols that cannot be compressed keep the cap that a task announces."""
    for alphabet in (3, 15, 255):
        symbols = np.random.default_rng(0).integers(0, alphabet, 50_000).astype(np.uint8)
        assert len(rans.encode(symbols, alphabet)) <= rans.max_bytes(50_000, alphabet)


def test_values_are_read_where_they_are_looked_at(packed):
    """A block of a packed update equals that block of the whole, frozen tensors included."""
    codec, update, data = packed
    read = Update.from_bytes(data, SHAPES, codec)
    whole = update.delta(slice(0, COUNT))

    for start, stop in ((0, 10), (8_000, 70_000), (57_300, 57_400), (262_100, COUNT), (5, 5)):
        assert (read.delta(slice(start, stop)) == whole[start:stop]).all()
    assert not read.deltas()["layers.7.lora_A.weight"].any()


def test_a_frozen_tensor_costs_a_byte(packed):
    """A recipe that trains B only, or A and B in turn, pays for what it trains."""
    codec, _, data = packed
    half = Update.from_floats(CURRENT, trained(frozen="lora_A"), codec).to_bytes(codec)

    assert len(half) < 0.55 * len(data)


def test_an_update_that_was_not_rounded_for_its_codec_is_the_callers_mistake():
    """Writing never loses a bit: rounding is a step of its own."""
    with pytest.raises(ValueError, match="round it first"):
        Update.from_floats(CURRENT, trained()).to_bytes("int4")


@pytest.mark.parametrize(("codec", "error"), [("int8", 0.01), ("int4", 0.02), ("int2", 0.1)])
def test_what_rounding_leaves_out_is_told_later(codec, error):
    """With error feedback the published updates add up to what was trained."""
    target, start = trained(), CURRENT.floats()
    wanted = np.concatenate([(target[name] - start[name]).ravel() for name in sorted(SHAPES)])
    wanted = wanted.astype(np.float64) * 2**24
    told, residual = np.zeros(COUNT), None

    for _ in range(20):
        update, residual = quantise(CURRENT, target, codec, residual)
        told += update.delta(slice(0, COUNT))

    assert np.linalg.norm(told / 20 - wanted) < error * np.linalg.norm(wanted)
    assert np.abs(told + residual - 20 * wanted).max() < 2e-6 * np.abs(20 * wanted).max()


@pytest.mark.parametrize("rule", RULES)
def test_packed_and_plain_updates_aggregate_to_the_same_bytes(rule):
    """How an update came over the wire is forgotten once it is read."""
    updates = [Update.from_floats(CURRENT, trained(seed), "int4") for seed in range(3)]
    plain = [Update.from_bytes(u.to_bytes("plain"), SHAPES, "plain") for u in updates]
    packed = [Update.from_bytes(u.to_bytes("int4"), SHAPES, "int4") for u in updates]

    aggregates = {RULES[rule](CURRENT, some, [3, 2, 1]).to_bytes() for some in (plain, packed)}

    assert len(aggregates) == 1


def attacks(data: bytes, codec: str) -> dict[str, bytes]:
    """Files next to an honest one."""
    many = len(SHAPES)
    shifts, factors, stream = data[:many], data[many : 2 * many], data[2 * many :]
    scales, table = shifts + factors, 2 * (2 * CODECS[codec].largest + 1)
    other = np.frombuffer(stream[:table], "<u2").copy()
    other[other.argmax()] -= 1
    other[0] += 1
    return {
        "empty": b"",
        "shifts only": shifts,
        "all frozen, with a stream": b"\xff" * many + b"\0" * many + stream,
        "one shift too large": b"\x1f" + data[1:],
        "negative shift": b"\xfe" + data[1:],
        "even factor": shifts + b"\2" + factors[1:] + stream,
        "a tensor more frozen": b"\xff" + shifts[1:] + b"\0" + factors[1:] + stream,
        "no tensor frozen": shifts.replace(b"\xff", b"\0") + factors.replace(b"\0", b"\1") + stream,
        "truncated": data[:-2],
        "cut to an odd length": data[:-1],
        "a word too many": data + b"\0\0",
        "16 MB of zeros": data + bytes(1 << 24),
        "no frequencies": scales + bytes(table) + stream[table:],
        "other frequencies": scales + other.tobytes() + stream[table:],
        "states of zero": scales + stream[:table] + bytes(64) + stream[table + 64 :],
        "plain": Update.from_floats(CURRENT, trained()).to_bytes("plain"),
    }


def test_hostile_packed_updates_are_refused_in_bounded_memory(packed):
    """Nothing that a payload says makes decoding cost more than the task's tensors do."""
    codec, _, data = packed
    for name, attack in attacks(data, codec).items():
        assert attack != data, name
        tracemalloc.start()
        try:
            with pytest.raises(InvalidUpdate):
                Update.from_bytes(attack, SHAPES, codec)
            assert tracemalloc.get_traced_memory()[1] < 8 * COUNT + (1 << 20), name
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_a_scale_has_one_form(codec):
    """Doubled levels under a smaller shift are the same delta, hence another file, refused."""
    shapes = {"t": (4,)}
    honest = Update(shapes, np.array([1], np.int8), np.array([1, -1, 0, 3], np.int16))
    doubled = np.array([2, -2, 0, 6]) + CODECS[codec].largest

    forged = b"\0\1" + rans.encode(doubled.astype(np.uint8), 2 * CODECS[codec].largest + 1)

    with pytest.raises(InvalidUpdate, match="divisor in common"):
        Update.from_bytes(forged, shapes, codec)
    assert Update.from_bytes(honest.to_bytes(codec), shapes, codec).norm == honest.norm


def test_few_bits_are_few_bytes():
    """What each codec is for, against the original's float32: a twentieth and far less."""
    sizes = {
        codec: len(Update.from_floats(CURRENT, trained(), codec).to_bytes(codec))
        for codec in CODECS
    }
    assert sizes["int2"] < 4 * COUNT / 20
    assert sizes["sparse"] < 4 * COUNT / 60
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())
    assert all(size <= max_bytes(SHAPES, codec) for codec, size in sizes.items())
