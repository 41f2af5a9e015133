"""Every exception of Ramet.

    RametError
    ├── UserError            the caller can mend it (HTTP 4xx, or 503 "come back later")
    │   ├── InvalidRequest       400  a field is wrong; `param` names it
    │   ├── GrammarError         400  a regex / schema / grammar is wrong or unsupported; `where` says at which place
    │   ├── ContextTooLong       400  prompt + max_new_tokens do not fit
    │   ├── Unsupported          400  a legal thing that this build or model does not do
    │   ├── Unauthorized         401
    │   ├── ModelNotFound        404  no such model; the message names `ramet model fetch`
    │   ├── RequestNotFound      404
    │   ├── DeadlineExceeded     408  the request's own `timeout_s` ran out
    │   ├── TooLarge             413
    │   ├── QuotaExceeded        429
    │   ├── Cancelled            499  the caller went away or asked to abort
    │   ├── QueueFull            503  with `retry_after` seconds
    │   └── ConfigError          400  a launch flag is unknown, out of range or contradicts another
    └── InternalError        500  ours to mend
        ├── WorkerDied           503  the worker process ended; every request it held ends with this
        └── OutOfMemory          500  says what was asked, what was free, and which flag to turn which way

A message says what happened, where, and what to do.
"""

from __future__ import annotations


class RametError(Exception):
    """Root of the tree. `status` is the HTTP status, `kind` the OpenAI error `type`, `code` a stable machine word."""

    status: int = 500
    kind: str = "internal_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class UserError(RametError):
    status = 400
    kind = "invalid_request_error"


class InvalidRequest(UserError):
    code = "invalid_request"


class GrammarError(UserError):
    """`where` is a position in a regex ("char 7"), a JSON pointer ("/properties/age") or a grammar line."""

    code = "invalid_grammar"

    def __init__(self, message: str, *, where: str | None = None, param: str | None = None) -> None:
        super().__init__(f"{message} (at {where})" if where else message, param=param)
        self.where = where


class ContextTooLong(UserError):
    code = "context_length_exceeded"


class Unsupported(UserError):
    code = "unsupported"


class ConfigError(UserError):
    code = "invalid_config"


class Unauthorized(UserError):
    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(UserError):
    status = 404
    kind = "not_found_error"
    code = "model_not_found"


class RequestNotFound(UserError):
    status = 404
    kind = "not_found_error"
    code = "request_not_found"


class DeadlineExceeded(UserError):
    status = 408
    kind = "timeout_error"
    code = "deadline_exceeded"


class TooLarge(UserError):
    status = 413
    kind = "request_too_large"
    code = "request_too_large"


class QuotaExceeded(UserError):
    status = 429
    kind = "rate_limit_error"
    code = "quota_exceeded"


class Cancelled(UserError):
    status = 499
    kind = "cancelled"
    code = "cancelled"


class QueueFull(UserError):
    status = 503
    kind = "overloaded_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InternalError(RametError):
    pass


class WorkerDied(InternalError):
    status = 503
    code = "worker_died"


class ServerStopping(InternalError):
    status = 503
    code = "server_stopping"


class OutOfMemory(InternalError):
    code = "out_of_memory"
