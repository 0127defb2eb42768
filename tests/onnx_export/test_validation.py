from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from feast_anchor.onnx_export import validation
from feast_anchor.onnx_export.corpus import Corpus
from feast_anchor.onnx_export.settings import TrainConfig
from feast_anchor.onnx_export.validation import Scores, evaluate, split
from tiny import TINY_CUT, TINY_MODALITIES, build_corpus, tiny_events


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(
        tiny_events(200), TINY_MODALITIES, cut=TINY_CUT, entity="customer", snapshots_per_user=2
    )


def users_of(corpus: Corpus, rows: Any) -> set[str]:
    return {corpus.events.users[number] for number in corpus.user[rows]}


def test_users_are_on_one_side_only(corpus: Corpus) -> None:
    """Every snapshot is on one side, all of a user on the same; the share is roughly kept."""
    train, held = split(corpus, 0.25)
    assert sorted([*train, *held]) == list(range(len(corpus.user)))
    assert not users_of(corpus, train) & users_of(corpus, held)
    assert 25 <= len(users_of(corpus, held)) <= 75


def test_the_side_of_a_user_depends_on_nothing_else(corpus: Corpus) -> None:
    """With half of the users gone, the others stay on their sides."""
    fewer = build_corpus(
        tiny_events(100), TINY_MODALITIES, cut=TINY_CUT, entity="customer", snapshots_per_user=2
    )
    few = {user for user in users_of(corpus, split(corpus, 0.25)[1]) if user < "u100"}
    assert users_of(fewer, split(fewer, 0.25)[1]) == few


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_side_without_examples_means_no_validation(corpus: Corpus, share: float) -> None:
    """When either side would be empty, all snapshots are trained on."""
    train, held = split(corpus, share)
    assert len(train) == len(corpus.user)
    assert len(held) == 0


def scores_of(
    monkeypatch: pytest.MonkeyPatch,
    users: torch.Tensor,
    answers: torch.Tensor,
    target: torch.Tensor,
    same: torch.Tensor,
) -> Scores:
    """Scores of given vectors, as if a model had made them."""
    monkeypatch.setattr(validation, "embed", lambda model, batch, chunk: (users, answers))
    batch: Any = SimpleNamespace(target=target, same=same)
    return evaluate(None, [batch], TrainConfig())  # type: ignore[arg-type]


@given(st.integers(0, 2**31))
def test_scores_equal_plain_loops(seed: int) -> None:
    """Couples told apart and nearest answers are what counting them one by one gives."""
    generator = torch.Generator().manual_seed(seed)
    users = F.normalize(torch.randn(5, 3, 4, generator=generator), dim=-1)
    answers = F.normalize(torch.randn(4, 4, generator=generator), dim=-1)
    target = torch.randint(-1, 4, (5, 3), generator=generator)
    same = torch.ones(3, 4, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:
        scores = scores_of(patch, users, answers, target, same)
    similarity, told, nearest = users @ answers.T, [], []
    for q in range(3):
        for b in range(5):
            mine = int(target[b, q])
            if mine < 0:
                continue
            nearest.append(float(similarity[b, q].argmax() == mine) - 1 / 4)
            for c in range(5):
                other = int(target[c, q])
                if other not in (-1, mine):
                    own = similarity[b, q, mine] + similarity[c, q, other]
                    swapped = similarity[b, q, other] + similarity[c, q, mine]
                    told.append(float(own > swapped))
    assert scores.matched == pytest.approx(np.mean(told) if told else 0.5, abs=1e-6)
    assert scores.above_chance == pytest.approx(np.mean(nearest) if nearest else 0.0, abs=1e-6)
    assert scores.pairs == len(nearest)


def test_saying_the_common_answer_to_everyone_is_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of ten answer no and every vector is "no": many hits, but nobody is told apart."""
    users = torch.tensor([1.0, 0.0]).expand(10, 1, 2)
    target = torch.tensor([0] * 9 + [1]).reshape(10, 1)
    same = torch.ones(1, 2, dtype=torch.bool)
    scores = scores_of(monkeypatch, users, torch.eye(2), target, same)
    assert scores.matched == 0.5
    assert scores.above_chance == pytest.approx(0.9 - 0.5)


def test_answers_of_other_questions_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nearer answer that the question does not have costs nothing."""
    users, answers = torch.eye(3)[:1].reshape(1, 1, 3), torch.eye(3)
    same = torch.tensor([[False, True, True]])
    case = (users + torch.tensor([0.0, 0.1, 0.0]), answers, torch.tensor([[1]]), same)
    assert scores_of(monkeypatch, *case).above_chance == pytest.approx(0.5)


def test_no_pair_with_an_answer_is_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asked: no division by zero, and no reason to prefer these weights."""
    target, same = torch.full((2, 1), -1), torch.ones(1, 2, dtype=torch.bool)
    scores = scores_of(monkeypatch, torch.ones(2, 1, 2), torch.eye(2), target, same)
    assert replace(scores, loss=0.0) == Scores(loss=0.0, matched=0.5, above_chance=0.0, pairs=0)
