"""Soft prompts on a made-up task: which of two kinds of events a history holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from feast_anchor.onnx_export.errors import SourceError, SpecError
from feast_anchor.onnx_export.inputs import CONTEXT_FEATURES, EVENT_FEATURES
from feast_anchor.onnx_export.manifest import SpecialIds
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.prompts import PromptConfig, Query, Tuned, tune_prompt
from feast_anchor.onnx_export.states import Reading, States, user_states

Array = np.ndarray[Any, Any]

SIZES = ModelConfig(
    text=16, hidden=32, ff=48, readout=32, head_hidden=32, embedding=16, evidence=False
)
SPECIAL = SpecialIds(pad=50, user_emb=51, eos=52, first_prompt=53)
QUERY = Query([3, 4, 5], np.zeros(16, dtype=np.float32))
QUICK = PromptConfig(steps=60, evaluate_every=20)


@pytest.fixture(scope="module")
def model() -> Anchor:
    """Random weights, scaled so that attention is as sharp as that of a trained model."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Anchor(SIZES, SPECIAL, 1).eval().requires_grad_(False)
    for name, weight in model.decoder.named_parameters():
        if name.endswith(("query.weight", "key_value.weight", "out.weight")):
            weight.mul_(2.0)
    for weight in model.words.parameters():
        weight.mul_(3.0)
    return model


def history(user: str, vectors: Array) -> Reading:
    """A reading that says nothing but the events' texts."""
    count = len(vectors)
    return Reading(
        user=user,
        texts=("",) * count,
        vectors=vectors.astype(np.float32),
        features=np.zeros((count, len(EVENT_FEATURES)), dtype=np.float32),
        modality=np.zeros(count, dtype=np.int64),
        days=np.zeros(count, dtype=np.float32),
        now=np.float32(1.0),
        context=np.zeros(len(CONTEXT_FEATURES), dtype=np.float32),
    )


def made_up(rows: int = 300) -> tuple[list[Reading], Array]:
    """Histories of events of three kinds; the label says that one of a fourth kind is among them.

    Each user has two rows.
    """
    generator = np.random.default_rng(0)
    kinds = 4 * np.linalg.qr(generator.standard_normal((16, 16)))[0][:4]
    readings, y = [], generator.random(rows) < 0.35
    for row, label in enumerate(y):
        kind = generator.integers(1, 4, generator.integers(4, 8))
        kind[generator.integers(len(kind))] = 0 if label else 1
        readings.append(history(f"u{row // 2}", kinds[kind]))
    return readings, y.astype(np.int8)


@pytest.fixture(scope="module")
def task(model: Anchor) -> tuple[States, Array]:
    """States and labels of `made_up`."""
    readings, y = made_up()
    return user_states(model, readings), y


@pytest.fixture(scope="module")
def tuned(model: Anchor, task: tuple[States, Array]) -> Tuned:
    """Tuned on it."""
    return tune_prompt(model, task[0], QUERY, task[1], QUICK)


def test_a_prompt_tells_apart_what_the_plain_vector_does_not(tuned: Tuned) -> None:
    """The class prototypes hardly separate untuned vectors and separate tuned ones well."""
    auc = tuned.record["validation"]
    assert auc["auc_before"] < 0.9
    assert auc["auc_after"] > 0.95
    assert tuned.prompt.shape == (6, 32)
    assert tuned.prompt.dtype == np.float32
    assert tuned.record["rows"] == 300
    assert tuned.record["users"] == 150


def test_the_same_seed_gives_the_same_bits(
    model: Anchor, task: tuple[States, Array], tuned: Tuned
) -> None:
    """Tuning again gives the same prompt and looks; another seed gives another prompt."""
    again = tune_prompt(model, task[0], QUERY, task[1], QUICK)
    assert again.prompt.tobytes() == tuned.prompt.tobytes()
    assert again.record["looks"] == tuned.record["looks"]
    short = replace(QUICK, steps=2)
    one, other = (
        tune_prompt(model, task[0], QUERY, task[1], replace(short, seed=s)).prompt for s in (0, 1)
    )
    assert not np.array_equal(one, other)


def test_nothing_but_prompt_and_prototypes_learns(
    model: Anchor, task: tuple[States, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser holds two tensors; weights and states keep every bit, without a gradient."""
    held: list[list[torch.Size]] = []
    plain = torch.optim.AdamW

    def watched(parameters: list[torch.Tensor], **settings: Any) -> torch.optim.AdamW:
        held.append([tensor.shape for tensor in parameters])
        return plain(parameters, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", watched)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = [tensor.clone() for tensor in task[0].state]
    tune_prompt(model, task[0], QUERY, task[1], replace(QUICK, steps=3))
    assert held == [[torch.Size([6, 32]), torch.Size([2, 16])]]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    for one, other in zip(states, task[0].state, strict=True):
        assert torch.equal(one, other)
        assert not other.requires_grad


def test_a_state_does_not_depend_on_its_neighbours(model: Anchor) -> None:
    """A reading's state among others of other lengths is that of the reading alone."""
    readings, _ = made_up(20)
    together = user_states(model, readings)
    for row in (0, 7):
        alone = user_states(model, [readings[row]])
        taken = together.take(torch.tensor([row]))
        assert torch.equal(taken.plen, alone.plen)
        for one, other in zip(taken.state, alone.state, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_rows_without_a_label_change_nothing(
    model: Anchor, task: tuple[States, Array], tuned: Tuned
) -> None:
    """Rows of -1 are read by no one: scenarios share states though their labels differ."""
    readings, y = made_up()
    states = user_states(model, [*readings, history("u0", np.ones((3, 16)))])
    other = tune_prompt(model, states, QUERY, np.append(y, -1), replace(QUICK, steps=20))
    alone = tune_prompt(model, task[0], QUERY, task[1], replace(QUICK, steps=20))
    assert np.allclose(other.prompt, alone.prompt, atol=1e-5)
    assert other.record["rows"] == 300


def test_too_few_labels_are_refused(model: Anchor, task: tuple[States, Array]) -> None:
    """A class of nine rows, or both classes in one user alone, cannot be tuned on."""
    states, y = task
    few = np.where(np.cumsum(y == 1) <= 9, y, np.where(y == 1, -1, y))
    with pytest.raises(SourceError, match="9 positive and"):
        tune_prompt(model, states, QUERY, few, QUICK)
    one = replace(states, users=("u0",) * len(y))
    with pytest.raises(SourceError, match="of 1 users"):
        tune_prompt(model, one, QUERY, y, QUICK)


@pytest.mark.parametrize(("name", "value"), [("tokens", 0), ("validation_share", 1.0)])
def test_impossible_settings_are_refused(name: str, value: Any) -> None:
    """A prompt of no token and a validation of everybody are errors that name the setting."""
    with pytest.raises(SpecError, match=name):
        replace(PromptConfig(), **{name: value})
