"""What a frame says: the protocol without I/O, its payloads, its close codes."""
