"""The nodes of one chat: a room has one owner, and a replica wherever else somebody is in it."""
