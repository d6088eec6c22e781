"""The native server: from the bytes of a connection to a session."""
