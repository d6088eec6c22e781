"""The door for backends: what a chat is asked and told over plain HTTP, by programs and not by people."""
