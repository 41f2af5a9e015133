"""Attention over the paged KV pool: one contract, several backends."""
