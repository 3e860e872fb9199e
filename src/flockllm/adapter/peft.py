"""Adapters in PEFT's own format, for every program that reads it: the way out, and the way in."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from flockllm.adapter import tensors
from flockllm.adapter.fixedpoint import Adapter
from flockllm.adapter.tensors import Shapes
from flockllm.errors import InvalidUpdate

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

_HEADER_LIMIT = 1 << 20
_FIXED = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
_FLOATS: dict[str, Callable[[bytes], NDArray[np.float32]]] = {
    "F32": lambda data: np.frombuffer(data, "<f4"),
    "F16": lambda data: np.frombuffer(data, "<f2").astype(np.float32),
    "BF16": lambda data: (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4"),
}


def to_peft(adapter: Adapter, lora_config: Mapping[str, Any], folder: Path) -> None:
    """Writes a folder that `PeftModel.from_pretrained` loads.

    `lora_config` has the keys of `peft.LoraConfig` that are not the same for all of ours: `r`,
    `lora_alpha`, `lora_dropout`, `target_modules`, `base_model_name_or_path`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter.floats(), folder / WEIGHTS)
    config = json.dumps({**_FIXED, **lora_config}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(config + "\n")


def from_peft(folder: Path, shapes: Shapes) -> Adapter:
    """The adapter in such a folder, rounded to our numbers; float32, float16 or bfloat16.

    Raises:
        InvalidUpdate: no adapter with these shapes and finite numbers is there.
    """
    path = folder / WEIGHTS
    limit = _HEADER_LIMIT + 4 * tensors.size(shapes)
    if not path.is_file() or path.stat().st_size > limit:
        raise InvalidUpdate(f"{path}: no file of at most {limit} bytes is there")
    return Adapter.from_floats(_read(path.read_bytes(), shapes), shapes)


def _read(data: bytes, shapes: Shapes) -> dict[str, NDArray[np.float32]]:
    if int.from_bytes(data[:8], "little") > _HEADER_LIMIT:
        raise InvalidUpdate("the header is too long")
    try:
        entries = dict(deserialize(data))
    except SafetensorError as e:
        raise InvalidUpdate(f"not a safetensors file: {e}") from e
    for name, entry in entries.items():
        if entry["dtype"] not in _FLOATS or tuple(entry["shape"]) != shapes.get(name):
            raise InvalidUpdate(f"{name!r} is {entry['dtype']} {entry['shape']}, not the task's")
    return {
        name: _FLOATS[entry["dtype"]](entry["data"]).reshape(entry["shape"])
        for name, entry in entries.items()
    }
