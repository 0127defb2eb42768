from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_anchor.onnx_export.manifest import SpecialIds
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.parity import random_inputs, reference

Arrays = dict[str, np.ndarray[Any, Any]]

SPECIAL = SpecialIds(pad=50, user_emb=51, eos=52, first_prompt=53)
CONFIG = ModelConfig(text=8, key=4, hidden=16, ff=24, readout=16, head_hidden=16, embedding=8)


def make_model(config: ModelConfig = CONFIG) -> Anchor:
    torch.manual_seed(3)
    return Anchor(config, SPECIAL, modalities=3).eval()


MODEL = make_model()
WITHOUT_EVIDENCE = make_model(replace(CONFIG, evidence=False))
SUMMARY_FIRST = make_model(replace(CONFIG, order="summary first"))
MODELS = pytest.mark.parametrize(
    "model",
    [MODEL, WITHOUT_EVIDENCE, SUMMARY_FIRST],
    ids=["events first", "no evidence", "summary first"],
)


def tensors(arrays: Arrays, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(arrays[name]) for name in names]


@torch.no_grad()
def state_of(arrays: Arrays, model: Anchor = MODEL) -> tuple[torch.Tensor, ...]:
    return model.prefix(*tensors(arrays, "vectors", "features", "modality", "days"))


@torch.no_grad()
def suffix_of(arrays: Arrays, state: Sequence[torch.Tensor], model: Anchor = MODEL) -> torch.Tensor:
    names = ("ids", "qlen", "plen", "now", "context", "query", "prompt")
    ids, qlen, plen, now, context, query, prompt = tensors(arrays, *names)
    return model.suffix(ids, qlen, plen, now, context, query, prompt, state)


def served(arrays: Arrays, model: Anchor = MODEL) -> torch.Tensor:
    return suffix_of(arrays, state_of(arrays, model), model)


@torch.no_grad()
def evidence_of(arrays: Arrays, state: Sequence[torch.Tensor]) -> torch.Tensor:
    plen, now, query = tensors(arrays, "plen", "now", "query")
    found, _ = MODEL.find_evidence(plen, now, query, state)
    assert found is not None
    return found


@MODELS
@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (3, 12, 4, 7))), seed=st.integers(0, 2**32 - 1)
)
def test_prefix_and_suffix_equal_one_plain_forward(
    model: Anchor, shape: tuple[int, int, int, int], seed: int
) -> None:
    """Sharing a prefix between padded histories and questions changes no vector.

    Questions of one token are what a model without query tokens reads.
    """
    arrays = random_inputs(model, shape, np.random.default_rng(seed))
    with torch.no_grad():
        expected = reference(model, arrays)
    torch.testing.assert_close(served(arrays, model), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        replace(SUMMARY_FIRST.config, user_token=False),
        replace(SUMMARY_FIRST.config, modal_tokens=False),
        replace(CONFIG, modal_tokens=False),
    ],
    ids=["no user token", "no modality tokens", "no summary"],
)
def test_parts_that_are_left_out_leave_both_paths_equal(config: ModelConfig) -> None:
    """Without user or modality tokens, prefix and suffix still give what one forward gives."""
    model, whole = (
        make_model(config),
        make_model(replace(config, user_token=True, modal_tokens=True)),
    )
    arrays = random_inputs(model, (2, 6, 2, 4), np.random.default_rng(0))
    with torch.no_grad():
        expected = reference(model, arrays)
    torch.testing.assert_close(served(arrays, model), expected, atol=1e-5, rtol=0)
    assert (served(arrays, whole) - served(arrays, model)).abs().max() > 1e-4


def test_vectors_have_length_one() -> None:
    """Every served vector is normalised, also for a user without any event."""
    arrays = random_inputs(MODEL, (4, 3, 2, 5), np.random.default_rng(0))
    arrays["modality"][:] = -1
    arrays["plen"][:] = 0
    lengths = served(arrays).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_question_does_not_see_the_other_questions() -> None:
    """Changing one question, its words and its vector, leaves the vectors of the others bit for
    bit as they were, and the evidence that they find.
    """
    arrays = random_inputs(MODEL, (2, 6, 3, 5), np.random.default_rng(1))
    state = state_of(arrays)
    vectors, found = suffix_of(arrays, state), evidence_of(arrays, state)
    arrays["ids"][:, 2, :-1], arrays["query"][:, 2] = 7, 3.0
    after, then = suffix_of(arrays, state), evidence_of(arrays, state)
    assert torch.equal(vectors[:, :2], after[:, :2])
    assert torch.equal(found[:, :2], then[:, :2])
    assert not torch.equal(found[:, 2], then[:, 2])


def test_question_decides_the_vector() -> None:
    """Two different questions about one history give two different vectors."""
    arrays = random_inputs(MODEL, (1, 6, 2, 3), np.random.default_rng(1))
    arrays["ids"][0] = [[1, 2, 51], [3, 4, 51]]
    arrays["qlen"][0], arrays["context"][:], arrays["query"][:] = [3, 3], 0, 0
    vectors = served(arrays)
    assert (vectors[0, 0] - vectors[0, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("model", [MODEL, WITHOUT_EVIDENCE], ids=["evidence", "no evidence"])
def test_a_questions_text_vector_alone_decides_too(model: Anchor) -> None:
    """Read by its vector only, without one token of words, a question still moves the vector."""
    arrays = random_inputs(model, (1, 6, 2, 1), np.random.default_rng(1))
    arrays["context"][:] = 0
    arrays["query"][0] = np.eye(8, dtype=np.float32)[:2]
    vectors = served(arrays, model)
    assert (vectors[0, 0] - vectors[0, 1]).abs().max() > 1e-3


def test_time_that_passes_lowers_the_evidence() -> None:
    """One user state answers two as-of times: later, every event has faded as if it were older."""
    arrays = random_inputs(MODEL, (2, 6, 1, 4), np.random.default_rng(5))
    arrays["modality"][:, 0], arrays["plen"][:] = 0, np.maximum(arrays["plen"], 1)
    arrays["now"][:] = 100.0
    early = evidence_of(arrays, state_of(arrays))
    arrays["now"][:] = 130.0
    late = evidence_of(arrays, state_of(arrays))
    arrays["now"][:], arrays["days"] = 100.0, arrays["days"] - 30
    older = evidence_of(arrays, state_of(arrays))
    torch.testing.assert_close(late, older, atol=1e-5, rtol=0)
    assert (early[..., -13:-9] >= late[..., -13:-9]).all()
    assert (early - late).abs().max() > 1e-3


@MODELS
def test_prefix_beyond_plen_is_not_read(model: Anchor) -> None:
    """Events behind `plen` change nothing, so one long prefix serves earlier as-of times."""
    arrays = random_inputs(model, (1, 5, 2, 4), np.random.default_rng(2))
    state = state_of(arrays, model)
    arrays["plen"][:] = 2
    before, end = suffix_of(arrays, state, model), model.lead + 2
    changed = [side.clone() for side in state]
    for side in changed:  # the decoder's [B,K,P,d], the evidence's [B,P,...]
        side.narrow(-2, end, side.shape[-2] - end).add_(9)
    assert torch.equal(before, suffix_of(arrays, changed, model))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), events=st.integers(2, 9), cut=st.integers(0, 9))
def test_an_earlier_as_of_is_the_shorter_history(seed: int, events: int, cut: int) -> None:
    """Events first: a question that sees the first events only gets the vector of a user who has
    no others. Summary first cannot do that: its first tokens know the whole history.
    """
    cut = min(cut, events)
    arrays = random_inputs(MODEL, (1, events, 2, 3), np.random.default_rng(seed))
    arrays["plen"][:], arrays["modality"][:] = cut, np.arange(events) % MODEL.modalities
    seen = {name: arrays[name][:, :cut] for name in ("vectors", "features", "modality", "days")}
    short = {**arrays, **seen}
    torch.testing.assert_close(served(arrays), served(short), atol=1e-5, rtol=0)
    if 0 < cut < events:
        whole, alone = served(arrays, SUMMARY_FIRST), served(short, SUMMARY_FIRST)
        assert (whole - alone).abs().max() > 1e-6


def test_summary_tokens_are_no_evidence() -> None:
    """The rows of the evidence before the first event are zero: they count for nothing."""
    arrays = random_inputs(SUMMARY_FIRST, (2, 5, 1, 1), np.random.default_rng(2))
    keys, values = state_of(arrays, SUMMARY_FIRST)[-2:]
    assert keys.shape[1] == values.shape[1] == SUMMARY_FIRST.lead + 5
    assert not keys[:, :4].any()
    assert not values[:, :4].any()


def test_a_summary_is_the_mean_of_what_is_seen() -> None:
    """By hand: of two events of one modality and one of another, the first two are seen."""
    evidence = MODEL.evidence
    assert evidence is not None
    keys = torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]])
    member = torch.tensor([[[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]])
    values = torch.cat((torch.zeros(1, 3, 6), member), dim=-1)
    found = evidence.summary(keys, values, torch.tensor([[[1.0, 1.0, 0.0]]]))
    assert found.reshape(3, 4).tolist() == [[0.5, 0.5, 0, 0], [0] * 4, [0] * 4]


def test_text_of_padding_only_is_finite() -> None:
    """An empty text has a vector, and padding after a text changes nothing."""
    ids = torch.tensor([[50, 50, 50], [4, 5, 50]])
    vectors = MODEL.event(ids)
    assert torch.isfinite(vectors).all()
    torch.testing.assert_close(vectors[1], MODEL.event(torch.tensor([[4, 5]]))[0])


def member_of(kinds: list[int]) -> torch.Tensor:
    """Which events of one history are of which modality [1,T,M]."""
    return torch.eye(MODEL.modalities)[kinds].unsqueeze(0)


def test_absent_modality_uses_its_own_token() -> None:
    """A modality without events is told apart from one whose events are all zero."""
    vectors, features = torch.zeros(1, 1, 8), torch.zeros(1, 1, 6)
    tokens = SUMMARY_FIRST.prefix_tokens(vectors, features, member_of([0]))
    assert SUMMARY_FIRST.summary is not None
    absent = SUMMARY_FIRST.summary.absent
    torch.testing.assert_close(tokens[0, 2:4], absent[1:])
    assert not torch.allclose(tokens[0, 1], absent[0])


def test_modality_token_is_the_mean_of_its_events() -> None:
    """Two events of one modality give the modality token's mean; the order does not matter."""
    vectors = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    features = torch.zeros(1, 3, 6)
    one = SUMMARY_FIRST.prefix_tokens(vectors, features, member_of([0, 0, 1]))
    two = SUMMARY_FIRST.prefix_tokens(vectors[:, [1, 0, 2]], features, member_of([0, 0, 1]))
    torch.testing.assert_close(one[:, :4], two[:, :4])


def test_answer_is_pooled_at_its_own_last_token() -> None:
    """Padding behind an answer does not move it."""
    vector = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    short = MODEL.answer(torch.tensor([[5, 52]]), torch.tensor([2]), vector[:1])
    ids = torch.tensor([[5, 52, 50], [6, 7, 52]])
    padded = MODEL.answer(ids, torch.tensor([2, 3]), vector)
    torch.testing.assert_close(short[0], padded[0])


def test_an_answer_is_told_by_its_text_vector_too() -> None:
    """The same tokens with another text vector give another answer."""
    ids, length = torch.tensor([[5, 52], [5, 52]]), torch.tensor([2, 2])
    answers = MODEL.answer(ids, length, torch.eye(8)[:2])
    assert (answers[0] - answers[1]).abs().max() > 1e-3


def test_dropout_is_for_training_alone() -> None:
    """While training, two passes differ; in evaluation mode a vector is always the same."""
    arrays = random_inputs(MODEL, (2, 4, 2, 3), np.random.default_rng(0))
    model = make_model()
    assert torch.equal(served(arrays, model), served(arrays, model))
    model.train()
    assert not torch.equal(served(arrays, model), served(arrays, model))


def test_sizes_that_do_not_divide_are_refused() -> None:
    """A width that its heads do not divide is named in the error."""
    with pytest.raises(ValueError, match="hidden=30, heads=4"):
        Anchor(ModelConfig(hidden=30), SPECIAL, modalities=1)
