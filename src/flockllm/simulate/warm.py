"""Imports what participants need, in the process that they are forked from."""

import gc
import importlib

from flockllm.wiring import loading

with loading():
    for part in ("flockllm.train.loop", "flockllm.cli.join"):
        importlib.import_module(part)
gc.freeze()  # a collection would write to every page, and what is written to is copied
