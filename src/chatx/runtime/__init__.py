"""The asyncio shell around the core: rooms and their supervisor, sending, subscriptions, delivery."""
