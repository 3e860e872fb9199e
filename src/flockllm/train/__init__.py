"""Base model, records → tokens, LoRA training, evaluation, generation.

The way of the data: `templates` → `data` → `packing` (many sequences as one row, no padding) →
`loss` → `loop` (the `Trainer` that a participant keeps warm). Importing this package loads
nothing; `base`, `packing`, `loss`, `loop` and `generate` load torch and transformers.
"""
