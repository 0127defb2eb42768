"""More negatives than the memory of one forward holds.

A contrastive loss needs all vectors at once, and the memory of a step goes into what lies before
the vectors. `cached_backward` keeps that memory to a part of the batch and gives the gradient of
the one big batch, not an approximation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def cached_backward(
    parts: Sequence[Callable[[], Tensor]], loss: Callable[[Sequence[Tensor]], Tensor]
) -> Tensor:
    """Backpropagate a loss over all parts while the graph of only one part is alive.

    This is GradCache (arXiv 2101.06983): every part is computed without a graph, the loss gives
    the gradient at the vectors, then each part is computed again and takes its share of it.

    Args:
        parts: each computes some vectors, such as the users of one chunk or the answers; the
            same ones both times, so random numbers must be seeded.
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
