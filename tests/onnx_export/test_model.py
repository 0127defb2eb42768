from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_anchor.onnx_export.export import random_inputs, reference
from feast_anchor.onnx_export.manifest import SpecialIds
from feast_anchor.onnx_export.model import Anchor, ModelConfig

Arrays = dict[str, np.ndarray[Any, Any]]

SPECIAL = SpecialIds(pad=50, user_emb=51, eos=52, first_prompt=53)
CONFIG = ModelConfig(text=8, hidden=16, ff=24, head_hidden=16, embedding=8)


def make_model() -> Anchor:
    torch.manual_seed(3)
    return Anchor(CONFIG, SPECIAL, modalities=3).eval()


MODEL = make_model()


def state_of(arrays: Arrays) -> tuple[torch.Tensor, ...]:
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        return MODEL.prefix(t["vectors"], t["features"], t["modality"])


def suffix_of(arrays: Arrays, state: Sequence[torch.Tensor]) -> torch.Tensor:
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        return MODEL.suffix(t["ids"], t["qlen"], t["plen"], t["context"], t["prompt"], state)


def served(arrays: Arrays) -> torch.Tensor:
    return suffix_of(arrays, state_of(arrays))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (3, 12, 4, 7))), seed=st.integers(0, 2**32 - 1)
)
def test_prefix_and_suffix_equal_one_plain_forward(
    shape: tuple[int, int, int, int], seed: int
) -> None:
    """Sharing a prefix between padded histories and questions changes no vector."""
    arrays = random_inputs(MODEL, shape, np.random.default_rng(seed))
    with torch.no_grad():
        expected = reference(MODEL, arrays)
    torch.testing.assert_close(served(arrays), expected, atol=1e-5, rtol=0)


def test_vectors_have_length_one() -> None:
    """Every served vector is normalised, also for a user without any event."""
    arrays = random_inputs(MODEL, (4, 3, 2, 5), np.random.default_rng(0))
    arrays["modality"][:] = -1
    arrays["plen"][:] = 1 + MODEL.modalities
    lengths = served(arrays).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_question_does_not_see_the_other_questions() -> None:
    """Changing one question leaves the vectors of the others bit for bit as they were."""
    arrays = random_inputs(MODEL, (2, 6, 3, 5), np.random.default_rng(1))
    before = served(arrays)
    arrays["ids"][:, 2, :-1] = 7
    after = served(arrays)
    assert torch.equal(before[:, :2], after[:, :2])


def test_question_decides_the_vector() -> None:
    """Two different questions about one history give two different vectors."""
    arrays = random_inputs(MODEL, (1, 6, 2, 3), np.random.default_rng(1))
    arrays["ids"][0] = [[1, 2, 51], [3, 4, 51]]
    arrays["qlen"][0], arrays["context"][:] = [3, 3], 0
    vectors = served(arrays)
    assert (vectors[0, 0] - vectors[0, 1]).abs().max() > 1e-3


def test_prefix_beyond_plen_is_not_read() -> None:
    """Events behind `plen` change nothing, so one long prefix serves earlier as-of times."""
    arrays = random_inputs(MODEL, (1, 5, 2, 4), np.random.default_rng(2))
    state = state_of(arrays)
    arrays["plen"][:] = 6
    before = suffix_of(arrays, state)
    changed = [torch.cat((side[:, :, :6], side[:, :, 6:] + 9), dim=2) for side in state]
    assert torch.equal(before, suffix_of(arrays, changed))


def test_text_of_padding_only_is_finite() -> None:
    """An empty text has a vector, and padding after a text changes nothing."""
    ids = torch.tensor([[50, 50, 50], [4, 5, 50]])
    vectors = MODEL.event(ids)
    assert torch.isfinite(vectors).all()
    torch.testing.assert_close(vectors[1], MODEL.event(torch.tensor([[4, 5]]))[0])


def test_absent_modality_uses_its_own_token() -> None:
    """A modality without events is told apart from one whose events are all zero."""
    vectors, features = torch.zeros(1, 1, 8), torch.zeros(1, 1, 6)
    tokens = MODEL.prefix_tokens(vectors, features, torch.tensor([[0]]))
    torch.testing.assert_close(tokens[0, 2:4], MODEL.absent[1:])
    assert not torch.allclose(tokens[0, 1], MODEL.absent[0])


def test_modality_token_is_the_mean_of_its_events() -> None:
    """Two events of one modality give the modality token's mean; the order does not matter."""
    vectors = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    features = torch.zeros(1, 3, 6)
    one = MODEL.prefix_tokens(vectors, features, torch.tensor([[0, 0, 1]]))
    two = MODEL.prefix_tokens(vectors[:, [1, 0, 2]], features, torch.tensor([[0, 0, 1]]))
    torch.testing.assert_close(one[:, :4], two[:, :4])


def test_answer_is_pooled_at_its_own_last_token() -> None:
    """Padding behind an answer does not move it."""
    short = MODEL.answer(torch.tensor([[5, 52]]), torch.tensor([2]))
    padded = MODEL.answer(torch.tensor([[5, 52, 50], [6, 7, 52]]), torch.tensor([2, 3]))
    torch.testing.assert_close(short[0], padded[0])


def test_sizes_that_do_not_divide_are_refused() -> None:
    """A width that its heads do not divide is named in the error."""
    with pytest.raises(ValueError, match="hidden=30, heads=4"):
        Anchor(ModelConfig(hidden=30), SPECIAL, modalities=1)
