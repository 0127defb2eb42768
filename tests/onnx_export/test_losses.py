from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from feast_anchor.onnx_export.losses import MARGIN, TEMPERATURE, WITHIN, contrastive, next_token


def slow_contrastive(
    users: torch.Tensor, answers: torch.Tensor, target: torch.Tensor, same: torch.Tensor
) -> float:
    """The same loss, one pair at a time."""
    losses = []
    for b in range(users.shape[0]):
        for q in range(users.shape[1]):
            right = int(target[b, q])
            if right < 0:
                continue
            scores = [float(users[b, q] @ answer) for answer in answers]
            near, wide = [scores[right]], [scores[right]]
            for a, score in enumerate(scores):
                if a == right:
                    continue
                if same[q, a]:
                    near.append(score)
                if same[q, a] or score <= scores[right] + MARGIN:
                    wide.append(score)
            for c in range(users.shape[0]):
                if int(target[c, q]) not in (-1, right):
                    wide.append(float(users[b, q] @ users[c, q]))
            losses.append(WITHIN * nll(near) + (1 - WITHIN) * nll(wide))
    return sum(losses) / len(losses)


def nll(scores: list[float]) -> float:
    return math.log(sum(math.exp((s - scores[0]) / TEMPERATURE) for s in scores))


def random_case(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    users = F.normalize(torch.randn(4, 3, 6, generator=generator), dim=-1)
    answers = F.normalize(torch.randn(5, 6, generator=generator), dim=-1)
    same = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=torch.bool)
    target = torch.tensor([[0, 2, 1], [1, -1, 2], [0, 4, -1], [1, 3, 1]])
    return users, answers, target, same


@pytest.mark.parametrize("seed", range(5))
def test_contrastive_equals_plain_loops(seed: int) -> None:
    """The vectorised loss is the one written down pair by pair."""
    case = random_case(seed)
    assert float(contrastive(*case)) == pytest.approx(slow_contrastive(*case), rel=1e-4)


def test_likely_true_answers_of_other_questions_are_no_negatives() -> None:
    """An answer of another question that fits better than the right one is left out."""
    users = torch.tensor([[[1.0, 0.0]]])
    answers = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    target = torch.tensor([[0]])
    other = contrastive(users, answers, target, torch.tensor([[True, False]]))
    own = contrastive(users, answers, target, torch.tensor([[True, True]]))
    assert float(other) == 0.0
    assert float(own) == pytest.approx(nll([0.6, 1.0]), rel=1e-5)


def test_users_with_equal_answers_do_not_repel() -> None:
    """Two users with the same answer are not negatives of each other; with different ones, yes."""
    users = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    answers = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    same = torch.tensor([[True, True]])
    equal = contrastive(users, answers, torch.tensor([[0], [0]]), same)
    assert float(equal) == pytest.approx(nll([1.0, 0.0]), abs=1e-6)
    differ = contrastive(users, answers, torch.tensor([[0], [1]]), same)
    assert float(differ) > 1.0


def test_no_answer_at_all_is_a_loss_of_zero() -> None:
    """A batch in which nothing was asked trains nothing and is not NaN."""
    users, answers, target, same = random_case(0)
    assert float(contrastive(users, answers, torch.full_like(target, -1), same)) == 0.0


def test_next_token_equals_plain_loops() -> None:
    """Cross-entropy over real tokens only; padding counts for nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=generator)
    tokens = torch.tensor([[1, 2, 6], [3, 6, 6]])
    expected = [
        -math.log(float(logits[b, i].softmax(-1)[tokens[b, i]]))
        for b in range(2)
        for i in range(3)
        if tokens[b, i] != 6
    ]
    assert float(next_token(logits, tokens, pad=6)) == pytest.approx(
        sum(expected) / len(expected), rel=1e-5
    )
