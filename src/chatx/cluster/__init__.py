"""Many nodes as one chat: which node owns a room, who is there, and what nodes say to each other."""
