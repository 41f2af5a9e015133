"""Text ↔ tokens, the channel to the worker and its supervision, the step loops, and the offline `Engine`."""
