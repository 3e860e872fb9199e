import hashlib
import math

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from flockllm.adapter import CODECS, Adapter, Update, cosines, inner_products, max_bytes
from flockllm.adapter.update import PIECE
from flockllm.errors import InvalidUpdate

SHAPES = {
    f"base_model.model.model.layers.{layer}.self_attn.{p}_proj.lora_{ab}.weight": shape
    for layer in range(2)
    for p in "qkvo"
    for ab, shape in (("A", (4, 32)), ("B", (32, 4)))
}
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
CURRENT = Adapter.initial(SHAPES, b"seed")


def trained(step: float, seed: int = 0) -> dict[str, np.ndarray]:
    """What a trainer hands back: the current adapter, each number moved by about `step`."""
    rng = np.random.default_rng(seed)
    return {
        name: (tensor + rng.normal(0, step, tensor.shape)).astype(np.float32)
        for name, tensor in CURRENT.floats().items()
    }


def one(*values: int, shift: int = 0) -> Update:
    """An update of a task with a single tensor."""
    shapes = {"t": (len(values),)}
    return Update(shapes, np.array([shift], np.int8), np.array(values, np.int16))


def test_the_initial_adapter_is_a_function_of_the_seed_alone():
    """Every machine gets the same numbers: those of the documented formula, in plain integers."""
    words = hashlib.shake_256(b"seed" + A.encode()).digest(4 * 128)
    bound = math.isqrt(2**48 // 32)
    expected = [
        int.from_bytes(words[4 * i : 4 * i + 4], "little") * (2 * bound + 1) // 2**32 - bound
        for i in range(128)
    ]
    assert CURRENT.tensors[A].ravel().tolist() == expected
    assert Adapter.initial(SHAPES, b"seed") == CURRENT
    assert Adapter.initial(SHAPES, b"other") != CURRENT


def test_the_initial_adapter_changes_nothing():
    """B is zero, and A is spread over ±1/√columns as PEFT's own initialisation."""
    for name, tensor in CURRENT.floats().items():
        if "lora_B" in name:
            assert not tensor.any()
        else:
            assert 0.95 / 32**0.5 < np.abs(tensor).max() <= 1 / 32**0.5


def test_an_adapter_file_is_what_safetensors_writes():
    """Our computed header and the library's agree to the byte, and its reader gets the numbers."""
    data = CURRENT.to_bytes()

    assert data == safetensors.numpy.save(dict(CURRENT.tensors))
    assert (safetensors.numpy.load(data)[A] == CURRENT.tensors[A]).all()


def test_a_plain_update_file_is_what_safetensors_writes():
    """Anybody's safetensors reader opens an update: int16 values, and the shifts last."""
    update = Update.from_floats(CURRENT, trained(0.01))
    data = update.to_bytes("plain")

    read = safetensors.numpy.load(data)
    assert data == safetensors.numpy.save(read)
    assert read["shift"].tolist() == update.shifts.tolist()
    shift = read["shift"][sorted(SHAPES).index(A)]
    assert (read[A].astype(np.int32) << shift == update.deltas()[A]).all()


def test_an_adapter_survives_its_bytes_and_its_floats():
    """Training starts from exactly the numbers that were agreed on."""
    assert Adapter.from_bytes(CURRENT.to_bytes(), SHAPES) == CURRENT
    assert Adapter.from_floats(CURRENT.floats(), SHAPES) == CURRENT


@pytest.mark.parametrize("step", [1e-7, 1e-3, 0.1, 10.0])
def test_an_update_carries_training_to_within_half_a_step(step):
    """Current plus update is what was trained, to half a unit of the tensor's shift."""
    target = trained(step)
    update = Update.from_floats(CURRENT, target)

    arrived = (CURRENT + update).floats()
    for name, shift in zip(sorted(SHAPES), update.shifts, strict=True):
        error = np.abs(arrived[name].astype(np.float64) - target[name]).max()
        assert (
            error <= 2.0 ** (int(shift) - 24) * 0.5 + 2.0**-24 + np.abs(target[name]).max() / 2**24
        )


def test_no_training_is_no_update():
    """An adapter that comes back untouched, however large its numbers, is a zero update."""
    large = Adapter(SHAPES, CURRENT.values * 200 + 7)

    assert Update.from_floats(large, large.floats()).is_zero
    assert not Update.from_floats(CURRENT, trained(1e-6)).is_zero


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_diverged_training_is_refused(value):
    """A single number that is not finite never becomes an update, or an adapter."""
    floats = trained(0.01)
    floats[A][3, 3] = value

    with pytest.raises(InvalidUpdate, match="finite"):
        Update.from_floats(CURRENT, floats)
    with pytest.raises(InvalidUpdate, match="finite"):
        Adapter.from_floats(floats, SHAPES)


def test_training_other_tensors_is_refused():
    """A renamed or reshaped tensor is named in the error."""
    floats = trained(0.01)
    floats["base_model.other"] = floats.pop(A)

    with pytest.raises(InvalidUpdate, match=r"base_model\.other"):
        Update.from_floats(CURRENT, floats)


def test_numbers_stop_at_the_ends_of_the_range():
    """The sum of an adapter and an update saturates and never wraps."""
    ends = Adapter({"t": (2,)}, np.array([2**31 - 5, -(2**31) + 5], np.int32))

    assert (ends + one(32_767, -32_767, shift=16)).values.tolist() == [2**31 - 1, -(2**31)]
    assert (ends + one(-5, 5)).values.tolist() == [2**31 - 10, -(2**31) + 10]


def test_equal_deltas_are_equal_bytes_however_they_are_held():
    """The shift in memory is a detail: the file has the smallest that does."""
    assert one(3, -8, shift=4).to_bytes("plain") == one(48, -128).to_bytes("plain")
    assert one(1, shift=20).to_bytes("plain") == one(16384, shift=6).to_bytes("plain")


def test_norm_and_cosine_are_exact():
    """The norm counts shifts and is rounded down; cosine is that of the deltas."""
    assert one(3, -4, shift=2).norm == 20
    assert one(1, 1).norm == 1
    assert one(32_767, -32_767, shift=16).norm == math.isqrt(2 * (32_767 << 16) ** 2)
    flat = [one(1, 0), one(0, 5), one(0, 0), one(1, 2, shift=3), one(100, 200), one(-100, -200)]
    alike = cosines(flat)
    assert alike[0][1] == alike[2][3] == alike[2][2] == 0
    assert alike[3][4] == alike[4][3] == pytest.approx(1)
    assert alike[4][5] == pytest.approx(-1)
    assert [vars(update)["norm"] for update in flat] == [1, 5, 0, 17, 223, 223]


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_inner_products_are_exact(seed, count):
    """Over several tensors, pieces and blocks, with shifts, they are those of Python's integers."""
    random = np.random.default_rng(seed)
    shapes = {"a": (3,), "b": (PIECE + 5,), "c": (2, 4)}
    updates = [
        Update(
            shapes,
            random.integers(0, 17, 3).astype(np.int8),
            random.integers(-32_767, 32_768, PIECE + 16).astype(np.int16),
        )
        for _ in range(count)
    ]
    deltas = [update.delta(slice(0, PIECE + 16)).astype(object) for update in updates]
    assert inner_products(updates) == [[int((a * b).sum()) for b in deltas] for a in deltas]


@pytest.mark.parametrize("codec", CODECS)
def test_no_update_is_longer_than_the_task_says(codec):
    """Who fetches at most `max_bytes` never cuts an honest update short."""
    noise = np.random.default_rng(0).integers(-1, 2, sum(np.prod(s) for s in SHAPES.values()))
    update = Update(SHAPES, np.zeros(len(SHAPES), np.int8), noise.astype(np.int16))

    assert len(update.to_bytes(codec)) <= max_bytes(SHAPES, codec)
