"""What the wire costs: the native server and the ASGI shell under the load of many clients, beside references."""
