"""One optimisation per file; `default_order` says in which order they run."""
