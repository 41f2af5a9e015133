"""Backends that a program can run on: a server, an in-process engine, an OpenAI-compatible endpoint."""
