"""What a client that is in does: sessions, the rooms' fan-out to sockets, deadlines."""
