"""The socket as an ASGI application."""
