"""Try again what may come right by itself: one way of waiting for databases and online stores.

The rule: only work that may be repeated as a whole is handed over, and only faults that can pass
are waited out. A wrong query or a wrong setting fails at once, however long one would wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError, OperationalError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_exponential_jitter,
)

from feast_anchor.onnx_export.errors import AnchorError

_FIRST_WAIT_S = 0.2  # doubles with each try
_LONGEST_WAIT_S = 5.0
_JITTER_S = 0.2  # spreads the workers that all lost the same server

# What a client raises when we, and not the network, are wrong.
_LASTING = (
    AnchorError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NotImplementedError,
    AssertionError,
    ImportError,
    RecursionError,
)

log = logging.getLogger(__name__)


def retrying(
    what: str,
    seconds: float,
    transient: Callable[[BaseException], bool],
    told: Callable[[BaseException], str],
) -> Retrying:
    """Something to call with a function and its arguments: it repeats it while that can help.

    Args:
        what: names the work in the log, such as "writing rows of shopper_v1".
        seconds: no further try begins later than this after the first one.
        transient: whether an error may pass by itself.
        told: an error's class and message, without secrets.

    The last try's error is raised as it is.
    """

    def log_try(state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        wait = state.upcoming_sleep
        number = state.attempt_number
        log.warning("%s: try %d failed (%s); again in %.1f s", what, number, told(error), wait)

    return Retrying(
        retry=retry_if_exception(transient),
        stop=stop_before_delay(seconds),
        wait=wait_exponential_jitter(initial=_FIRST_WAIT_S, max=_LONGEST_WAIT_S, jitter=_JITTER_S),
        before_sleep=log_try,
        reraise=True,
    )


def connection_lost(error: BaseException) -> bool:
    """Whether a database server dropped a connection or does not take a new one just now.

    SQLAlchemy reports a failed connect as an OperationalError without a statement.
    """
    if not isinstance(error, DBAPIError):
        return False
    refused = isinstance(error, OperationalError) and error.statement is None
    return error.connection_invalidated or refused


def may_pass(error: BaseException) -> bool:
    """Whether an online store's error may pass by itself.

    Every store's client has its own tree of errors, so all but those that mean a mistake count.
    """
    return isinstance(error, Exception) and not isinstance(error, _LASTING)
