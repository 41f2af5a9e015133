"""How much of a program's KV survives in a small pool, and what that is worth: eviction policies in virtual time."""
