"""Base model, records → tokens, LoRA training, evaluation, generation.

The way of the data: `templates` → `data` → `packing` (many sequences as one row, no padding) →
`loss` → `loop` (the `Trainer` that a participant keeps warm); `cpu` makes the layers between fast.
Importing this package loads nothing; all but `templates` and `data` load torch.
"""
