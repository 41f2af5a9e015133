"""`python -m ramet.launch_server` is `ramet serve`, for launch lines written for SGLang."""

from __future__ import annotations

import sys

from ramet.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("ramet.cli.serve", sys.argv[1:], name="serve"))
