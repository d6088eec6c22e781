"""The hot path: synchronous, without clock, randomness, logging or I/O. Time, ids and bytes come in as arguments."""
