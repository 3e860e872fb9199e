"""One participant in a task, as a process that can be killed and started again at any time."""

from flockllm.node.journal import RECORD, Journal, read_record
from flockllm.node.participant import Node
from flockllm.node.seat import Workbench

__all__ = ["RECORD", "Journal", "Node", "Workbench", "read_record"]
