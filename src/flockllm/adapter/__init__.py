"""The one thing participants exchange: integer tensors with one encoding each.

`tensors` says what bytes can be, `fixedpoint` holds the global adapter, `update` a change to it,
`codecs` ways to write a change down (with `rans`), `peft` the way out to everybody else's programs.
"""

from flockllm.adapter.codecs import CODECS
from flockllm.adapter.fixedpoint import Adapter, saturate
from flockllm.adapter.peft import from_peft, to_peft
from flockllm.adapter.tensors import Shapes, blocks
from flockllm.adapter.update import Update, cosines, inner_products, quantise

__all__ = [
    "CODECS",
    "Adapter",
    "Shapes",
    "Update",
    "blocks",
    "cosines",
    "from_peft",
    "inner_products",
    "max_bytes",
    "quantise",
    "saturate",
    "to_peft",
]


def max_bytes(shapes: Shapes, codec: str) -> int:
    """The longest file that an update of a task can be."""
    return CODECS[codec].max_bytes(shapes)
