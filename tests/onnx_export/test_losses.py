from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from feast_anchor.onnx_export.losses import (
    MARGIN,
    TEMPERATURE,
    WITHIN,
    Form,
    contrastive,
    infonce,
    next_token,
    yes_or_no,
)

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def slow_contrastive(case: Case, margin: float | None) -> float:
    """`contrastive`, one pair at a time."""
    users, answers, target, same = case
    losses = []
    for b, q, right in asked(target):
        scores = [float(users[b, q] @ answer) for answer in answers]
        near, wide = [scores[right]], [scores[right]]
        for a, score in enumerate(scores):
            if a != right and same[q, a]:
                near.append(score)
            if a != right and (same[q, a] or kept(score, scores[right], margin)):
                wide.append(score)
        for c in range(users.shape[0]):
            if int(target[c, q]) not in (-1, right):
                wide.append(float(users[b, q] @ users[c, q]))
        losses.append(WITHIN * nll(near) + (1 - WITHIN) * nll(wide))
    return sum(losses) / max(1, len(losses))


def slow_infonce(case: Case, form: Form, margin: float | None) -> float:
    """`infonce`, one pair at a time, each sort of negative in its own loop."""
    users, answers, target, _ = case
    losses = []
    for b, q, right in asked(target):
        user, answer = users[b, q], answers[right]
        negatives = []
        for a in range(len(answers)):
            if a != right:
                negatives.append(float(user @ answers[a]))
                if form == "paper":
                    negatives.append(float(answer @ answers[a]))
        for c, p, other in asked(target):
            if other != right:
                negatives.append(float(user @ users[c, p]))
                if form == "demo":
                    negatives.append(float(answer @ users[c, p]))
        positive = float(user @ answer)
        losses.append(nll([positive, *(s for s in negatives if kept(s, positive, margin))]))
    return sum(losses) / max(1, len(losses))


def asked(target: torch.Tensor) -> list[tuple[int, int, int]]:
    """(history, question, right answer) of all pairs that have an answer."""
    return [
        (b, q, int(target[b, q]))
        for b in range(target.shape[0])
        for q in range(target.shape[1])
        if target[b, q] >= 0
    ]


def kept(score: float, positive: float, margin: float | None) -> bool:
    return margin is None or score <= positive + margin


def nll(scores: list[float]) -> float:
    return math.log(sum(math.exp((s - scores[0]) / TEMPERATURE) for s in scores))


def random_case(seed: int) -> Case:
    """Vectors of a random number of histories, questions and answers; about a quarter unasked."""
    generator = torch.Generator().manual_seed(seed)
    batch, questions, count = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(3))
    users = F.normalize(torch.randn(batch, questions, 4, generator=generator), dim=-1)
    answers = F.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    target = torch.randint(0, count, (batch, questions), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.25] = -1
    same = torch.rand(questions, count, generator=generator) < 0.5
    return users, answers, target, same


SEEDS = st.integers(0, 2**31)
MARGINS = st.sampled_from([None, 0.0, MARGIN, 0.5])


@given(SEEDS, MARGINS)
def test_contrastive_equals_plain_loops(seed: int, margin: float | None) -> None:
    """The vectorised loss is the one written down pair by pair, for all shapes and masks."""
    case = random_case(seed)
    expected = slow_contrastive(case, margin)
    assert float(contrastive(*case, margin)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SEEDS, st.sampled_from(get_args(Form)), MARGINS)
def test_infonce_equals_plain_loops(seed: int, form: Form, margin: float | None) -> None:
    """Both forms of Query-as-Anchor's loss are the ones written down pair by pair."""
    case = random_case(seed)
    expected = slow_infonce(case, form, margin)
    assert float(infonce(*case[:3], form, margin)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_forms_differ_in_answer_answer_negatives() -> None:
    """Two near answers that the only user is far from: the paper form alone counts them."""
    users = torch.tensor([[[0.0, 0.0, 1.0]]])
    answers = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    target = torch.tensor([[0]])
    assert float(infonce(users, answers, target, "demo", None)) == pytest.approx(nll([0.0, 0.0]))
    paper = float(infonce(users, answers, target, "paper", None))
    assert paper == pytest.approx(nll([0.0, 0.0, 0.6]))


@pytest.mark.parametrize("form", get_args(Form))
def test_the_mask_keeps_a_pair_up_to_positive_plus_margin(form: Form) -> None:
    """A more similar answer is a negative without the mask, and with a margin that reaches it."""
    users = torch.tensor([[[1.0, 0.0]]])
    answers = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    target = torch.tensor([[0]])
    assert float(infonce(users, answers, target, form, 0.3)) < 1.0  # answer-answer is .6 too
    assert float(infonce(users, answers, target, form, 0.5)) > 4.0
    assert float(infonce(users, answers, target, form, None)) > 4.0


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
    """A batch in which nothing was asked trains nothing and is not NaN, nor are its gradients."""
    users, answers, target, same = random_case(0)
    users.requires_grad_()
    nothing = torch.full_like(target, -1)
    losses = [contrastive(users, answers, nothing, same)]
    losses += [infonce(users, answers, nothing, form) for form in get_args(Form)]
    assert [float(loss.detach()) for loss in losses] == [0.0, 0.0, 0.0]
    gradient = torch.autograd.grad(torch.stack(losses).sum(), users)[0]
    assert torch.equal(gradient, torch.zeros_like(users))


@pytest.mark.parametrize("form", get_args(Form))
def test_a_loss_keeps_its_precision_under_autocast(form: Form) -> None:
    """In a bfloat16 region the losses are computed in float32 all the same."""
    case = random_case(5)
    plain = case[0], case[1][0], case[1][-1], case[2].clamp(max=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive(*case), infonce(*case[:3], form), yes_or_no(*plain)
    assert torch.equal(inside[0], contrastive(*case))
    assert torch.equal(inside[1], infonce(*case[:3], form))
    assert torch.equal(inside[2], yes_or_no(*plain))


@given(SEEDS)
def test_yes_or_no_equals_plain_loops(seed: int) -> None:
    """A softmax over a plain yes and a plain no, over the pairs that say one of them."""
    users, answers, target, _ = random_case(seed)
    yes, no = answers[0], answers[-1]
    says = target.clamp(max=1)  # -1, 0 and 1
    losses = []
    for b, q, right in asked(says):
        scores = [float(users[b, q] @ no), float(users[b, q] @ yes)]
        losses.append(nll([scores[right], scores[1 - right]]))
    expected = sum(losses) / max(1, len(losses))
    assert float(yes_or_no(users, yes, no, says)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


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
