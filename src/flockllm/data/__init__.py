"""Instruction data: `read_records` → `describe` → `allocate` → `write_allocation`, `draw`."""

from flockllm.data.allocation import (
    STRATEGIES,
    Allocation,
    Strategy,
    allocate,
    write_allocation,
)
from flockllm.data.chart import draw_distribution
from flockllm.data.records import (
    COLUMNS,
    Record,
    Summary,
    characters,
    describe,
    read_records,
    write_records,
)

__all__ = [
    "COLUMNS",
    "STRATEGIES",
    "Allocation",
    "Record",
    "Strategy",
    "Summary",
    "allocate",
    "characters",
    "describe",
    "draw_distribution",
    "read_records",
    "write_allocation",
    "write_records",
]
