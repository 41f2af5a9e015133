"""An error that ends a worker, on its way to another process and back."""

from __future__ import annotations

import traceback

from ramet import errors
from ramet.errors import InternalError, RametError
from ramet.runtime.engine.messages import Fault


def fault_of(error: Exception) -> Fault:
    """Errors of ours go by their name; of others the traceback goes along."""
    details = "" if isinstance(error, RametError) else "".join(traceback.format_exception(error))
    return Fault(type(error).__name__, str(error), getattr(error, "param", None), details)


def error_of(fault: Fault) -> RametError:
    """The worker's error as the same type here, so that `except OutOfMemory` works in the front."""
    kind = getattr(errors, fault.error, None)
    if not (isinstance(kind, type) and issubclass(kind, RametError)):
        return InternalError(f"the worker failed: {fault.error}: {fault.message}\n{fault.details}")
    error = kind(fault.message)
    error.param = fault.param
    return error
