"""Long campaigns against the contracts."""
