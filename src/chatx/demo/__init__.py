"""The demo: a chat page on top of the engine, for `chatx demo`."""
