"""Imports what participants need, in the process that they are forked from."""

import gc
import importlib

gc.disable()  # looking for garbage takes a fifth of the time, and there is none
for part in ("flockllm.wiring", "flockllm.train.loop", "flockllm.cli.join"):
    importlib.import_module(part)
gc.enable()
gc.freeze()  # a collection would write to every page, and what is written to is copied
