"""What it costs to be many nodes, and how long a client waits where one of them goes."""
