"""One thread for torch and for NumPy: the same sums on every machine, and no queue for a pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread within the block, without disturbing the caller.

    Sums then do not depend on the number of cores, and with matrices as small as ours a second
    thread gains little on an idle machine and halves the speed on a busy one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep NumPy's linear algebra to one thread within the block, in every Python thread.

    OpenBLAS has one pool of threads for all callers. Two Python threads that solve many small
    systems wait for it and for each other: forty times as long as side by side, measured.
    """
    with threadpool_limits(1, user_api="blas"):
        yield
