"""`python -m flockllm.cli`, for processes that start others of the same installation."""

from flockllm.cli import main

main(prog_name="flockllm")
