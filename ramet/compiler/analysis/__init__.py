"""Facts about a module that passes ask for: what depends on what, what has effects, what is alive."""
