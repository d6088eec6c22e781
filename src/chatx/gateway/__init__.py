"""The wire: Phoenix Channels as a state machine without I/O, and the servers that drive it."""
