from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feast_anchor.onnx_export.losses import contrastive, infonce
from feast_anchor.onnx_export.negatives import cached_backward

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "contrastive": contrastive,
    "paper": lambda users, answers, target, same: infonce(users, answers, target, "paper"),
    "demo": lambda users, answers, target, same: infonce(users, answers, target, "demo"),
}


def big_batch() -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A tower, inputs of 7 histories x 3 questions and of 5 answers, targets, own answers."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)).double()
    users, answers = torch.randn(7, 3, 6).double(), torch.randn(5, 6).double()
    target = torch.randint(-1, 5, (7, 3))
    return tower, users, answers, target, torch.rand(3, 5) < 0.6


def embed(tower: nn.Module, inputs: Tensor) -> Tensor:
    return F.normalize(tower(inputs), dim=-1)


def gradients(tower: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None])


def one_batch(loss: Loss) -> Tensor:
    """Gradients of the whole batch in one graph: what the others have to equal."""
    tower, users, answers, target, same = big_batch()
    loss(embed(tower, users), embed(tower, answers), target, same).backward()
    return gradients(tower)


@pytest.mark.parametrize("name", LOSSES)
def test_cached_gradients_are_those_of_one_batch(name: str) -> None:
    """Chunks of 2, 2, 2 and 1 histories give the loss and the gradients of all 7 at once."""
    tower, users, answers, target, same = big_batch()

    def loss(vectors: Sequence[Tensor]) -> Tensor:
        return LOSSES[name](torch.cat(tuple(vectors[1:])), vectors[0], target, same)

    inputs = [answers, *users.split(2)]
    value = cached_backward([partial(embed, tower, part) for part in inputs], loss)
    assert not value.requires_grad
    whole = LOSSES[name](embed(tower, users), embed(tower, answers), target, same)
    assert abs(float(value) - float(whole.detach())) < 1e-6
    assert (gradients(tower) - one_batch(LOSSES[name])).abs().max() < 1e-6


def test_only_one_part_has_a_graph_at_a_time() -> None:
    """The point of caching: no part is computed with a graph before the previous one is done."""
    weight = torch.ones(2, requires_grad=True)
    events: list[str] = []

    def part(name: str) -> Tensor:
        vector = weight * 2.0
        if vector.requires_grad:
            events.append(f"{name} computed")
            vector.register_hook(lambda gradient: events.append(f"{name} done"))
        return vector

    cached_backward([partial(part, "a"), partial(part, "b")], lambda vs: (vs[0] * vs[1]).sum())
    assert events == ["a computed", "a done", "b computed", "b done"]
    assert weight.grad is not None
    assert weight.grad.tolist() == [8.0, 8.0]
