"""The command line that all examples share: which backend to run on."""

from __future__ import annotations

import argparse

import ramet as sgl


def connect(description: str | None) -> argparse.Namespace:
    """Parse `--endpoint URL` or `--fake`, and make that the default backend."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--endpoint", default="http://localhost:30000", help="a running Ramet server (default: %(default)s)")
    parser.add_argument("--fake", action="store_true", help="no server, no model: invented text that fits the constraints")
    arguments = parser.parse_args()
    sgl.set_default_backend(sgl.ScriptedBackend(latency=0.01) if arguments.fake else sgl.Runtime(endpoint=arguments.endpoint))
    return arguments
