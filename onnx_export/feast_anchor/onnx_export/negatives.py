"""More negatives than one forward holds: from many chunks, and from other processes.

A contrastive loss needs all vectors at once, and the memory of a step goes into what lies before
the vectors. Both functions keep that memory to a part of the batch, and both give the gradient
of the one big batch, not an approximation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def cached_backward(
    parts: Sequence[Callable[[], Tensor]], loss: Callable[[Sequence[Tensor]], Tensor]
) -> Tensor:
    """Backpropagate a loss over all parts while the graph of only one part is alive.

    This is GradCache (arXiv 2101.06983): every part is computed without a graph, the loss gives
    the gradient at the vectors, then each part is computed again and takes its share of it.

    Args:
        parts: each computes some vectors, such as the users of one chunk or the answers; twice
            the same, so without dropout.
        loss: from all parts' vectors, in order, to one number.

    Returns:
        The loss, without a graph. Gradients are added to the parameters' `grad`.
    """
    with torch.no_grad():
        vectors = [part() for part in parts]
    leaves = [vector.requires_grad_() for vector in vectors]
    total = loss(leaves)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    for part, gradient in zip(parts, gradients, strict=True):
        if gradient is not None:
            part().backward(gradient)
    return total.detach()


def gather(rows: Tensor) -> Tensor:
    """All processes' rows, in the order of their ranks: [B_r, ...] on rank r -> [sum of B_r, ...].

    B_r may differ. Used so: each rank embeds its own histories of one big batch, all ranks ask
    the same questions and encode the same answers, and each computes
    `contrastive(gather(users), answers, gather(target), same)`. The *mean* of the parameters'
    gradients over the ranks, which is what DistributedDataParallel takes, is then the gradient
    of the big batch in one process.
    """
    sizes = [
        torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    gathered: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]  # torch's own, untyped
        rows, [int(size) for size in sizes]
    )
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded)
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Each rank's loss depends on these rows, so their gradient is the sum over ranks."""
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.sizes)[dist.get_rank()], None
