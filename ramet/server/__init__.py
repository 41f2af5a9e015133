"""HTTP: is this request legal, and what shape has the answer? Everything else is the engine's."""
