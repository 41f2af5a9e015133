"""Where Ramet keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """The folder `name` of Ramet's in the user's cache directory ($XDG_CACHE_HOME, by default ~/.cache). It need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ramet" / name
