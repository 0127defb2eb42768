"""One thread for torch: the same sums on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
