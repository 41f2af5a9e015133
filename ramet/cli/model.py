"""`ramet model fetch NAME`: bring a model to this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ramet import log
from ramet.runtime.model_files import DEFAULT_MODEL, fetch_model


def run(arguments: Sequence[str]) -> int:
    """Exit status 0 and the path on stdout when the model is here; a missing one raises ModelNotFound."""
    options = _parser().parse_args(arguments)
    log.configure("info")
    files = fetch_model(options.name, revision=options.revision)
    print(files.path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ramet model", description=__doc__)
    fetch = parser.add_subparsers(required=True, metavar="ACTION").add_parser("fetch", help="download a model, or update it")
    fetch.add_argument("name", nargs="?", default=DEFAULT_MODEL, help=f"Hub id such as Qwen/Qwen3-0.6B, or {DEFAULT_MODEL} (the default)")
    fetch.add_argument("--revision", help="branch, tag or commit of a Hub model")
    return parser
