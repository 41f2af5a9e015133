"""`python -m ramet` is the `ramet` command, where that is not on the path."""

from __future__ import annotations

import sys

from ramet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
