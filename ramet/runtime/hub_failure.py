"""Why the Hub did not give a model, and what to do about that."""

from __future__ import annotations

import errno
import os

from ramet.errors import ModelNotFound

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def fetch_errors() -> tuple[type[Exception], ...]:
    """What a download may raise. The Hub's own errors are OSErrors; the transport's belong to the HTTP library of the installed version."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, RuntimeError, *HfHubHTTPError.__bases__)


def not_fetched(name: str, revision: str | None, error: Exception) -> ModelNotFound:
    """`error`: what the Hub's client, its transport or the file system raised."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return ModelNotFound(_refused(name, revision, error))
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return ModelNotFound(f"no room on the disk for {name} in {_cache()}: free some, or set HF_HOME to a folder on a larger disk")
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        return ModelNotFound(f"{name} cannot be written into {_cache()} ({error.strerror}): set HF_HOME to a folder of yours")
    return ModelNotFound(_unreachable(name, error))


def _refused(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{name}"
    match error:
        case GatedRepoError():
            return f"{name} is gated: ask for access at {page}, then set HF_TOKEN to a token of yours"
        case RepositoryNotFoundError():
            seen = "with this HF_TOKEN" if os.environ.get("HF_TOKEN") else "without a token"
            return f"the Hub shows no model {name} {seen}: check owner and name; a private model needs an HF_TOKEN that may read it"
        case RevisionNotFoundError():
            return f"{name} has no branch, tag or commit '{revision}': see {page}/tree/main, or leave the revision out"
    return f"the Hub did not give {name} ({_first_line(error)}): try again later; what has arrived is kept"


def _unreachable(name: str, error: Exception) -> str:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    here = f"{name} is not, or not completely, in {_cache()}"
    if HF_HUB_OFFLINE:
        return f"{here}, and HF_HUB_OFFLINE forbids to fetch it: unset that, or name a directory that holds the model"
    return (
        f"{here}, and {ENDPOINT} cannot be reached ({_first_line(error)}): check the network, and where you need them HTTPS_PROXY or "
        "HF_ENDPOINT; or copy the model's files from a machine that has them, and name their directory"
    )


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
