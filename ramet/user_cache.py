"""Where Ramet keeps what it can make again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def user_cache(name: str) -> Path:
    """The folder `name` of Ramet's in the user's cache directory ($XDG_CACHE_HOME, by default ~/.cache). It need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ramet" / name


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """An empty file beside `target` that becomes it at the end, unless an error ends it: two starting processes never see half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=target.suffix)
    os.close(descriptor)
    draft = Path(name)
    try:
        yield draft
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
