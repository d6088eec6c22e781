"""`chatx serve --workers`: several processes on one port, which are nodes of one chat, and the one that keeps them."""
