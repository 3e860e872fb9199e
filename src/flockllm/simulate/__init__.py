"""Many participants on one machine, honest and not; the demo is the smallest case."""
