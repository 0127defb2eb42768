"""A run on a terminal stays readable: Beam's chatter is left out, ours is kept.

Beam repeats a job's messages through the root logger, warns at import of clients that nobody needs,
and prints a traceback from each thread whose connection broke with a worker. What matters is
raised anyway.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOISY = (None, "apache_beam.runners.worker.data_plane")  # None: the root logger's own messages


@contextmanager
def quiet_beam() -> Iterator[None]:
    """Leave out what Beam says in passing while the body runs; its exceptions are not touched."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    hook = threading.excepthook

    def without_broken_connections(args: threading.ExceptHookArgs) -> None:
        if not args.exc_type.__module__.startswith("grpc"):
            hook(args)

    for logger in loggers:
        logger.addFilter(not_from_beam)
    threading.excepthook = without_broken_connections
    try:
        yield
    finally:
        threading.excepthook = hook
        for logger in loggers:
            logger.removeFilter(not_from_beam)


def not_from_beam(record: logging.LogRecord) -> bool:
    """A logging filter."""
    return "apache_beam" not in Path(record.pathname).parts
