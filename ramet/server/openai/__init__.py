"""The OpenAI-compatible routes: their bodies become native generations, and deltas become their chunks."""
