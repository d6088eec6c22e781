"""Where an application's own persistence, notifier, moderation and auth meet the engine: across a hard boundary."""
