"""`chatx bench`: what a server carries, as its clients see it: what they wait for, and what they lose."""
