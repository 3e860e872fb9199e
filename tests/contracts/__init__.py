"""The contracts, one file per entry point."""
