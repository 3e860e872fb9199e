"""Everything that speaks JSON-RPC: keys, sending, the contracts, a chain of one's own."""
