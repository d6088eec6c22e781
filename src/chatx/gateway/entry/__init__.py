"""Who may come in: what a handshake says, where it comes from, how many there are."""
