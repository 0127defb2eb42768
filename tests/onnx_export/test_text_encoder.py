from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from feast_anchor.onnx_export.sentence import read_sentence_encoder
from feast_anchor.onnx_export.text_encoder import OwnTextEncoder, PretrainedTextEncoder, TextEncoder

IDS = torch.tensor([[2, 4, 5, 3, 0], [2, 7, 3, 0, 0], [2, 6, 8, 9, 3], [2, 10, 3, 0, 0]])


@pytest.fixture
def pretrained(bert: tuple[Path, Any]) -> PretrainedTextEncoder:
    """A tiny random sentence encoder, projected from 16 to 4 numbers."""
    torch.manual_seed(1)
    return PretrainedTextEncoder(read_sentence_encoder(bert[0])[0], 4)


def own() -> OwnTextEncoder:
    torch.manual_seed(1)
    return OwnTextEncoder(vocabulary=20, width=4, pad=0)


@pytest.mark.parametrize("kind", ["own", "pretrained"])
def test_raw_and_vectors_together_are_forward(kind: str, request: pytest.FixtureRequest) -> None:
    """What training computes in two parts is what the exported graph computes in one."""
    encoder: TextEncoder = own() if kind == "own" else request.getfixturevalue("pretrained")
    with torch.no_grad():
        whole = encoder.forward(IDS)
        assert whole.shape == (4, 4)
        assert torch.equal(encoder.vectors(encoder.raw(IDS)), whole)


def test_word_order_and_padding_do_not_move_our_own_vectors() -> None:
    """Our own encoder takes the mean of a text's tokens."""
    vectors = own()(torch.tensor([[4, 5, 6, 0, 0], [6, 4, 5, 0, 0]]))
    torch.testing.assert_close(vectors[0], vectors[1])
    torch.testing.assert_close(vectors[0], own()(torch.tensor([[4, 5, 6]]))[0])


def test_only_the_projection_of_a_pretrained_encoder_is_trained(
    pretrained: PretrainedTextEncoder,
) -> None:
    """The sentence encoder's weights get no gradient, by either way; the projection does."""
    for vectors in (pretrained.vectors(pretrained.raw(IDS)), pretrained(IDS)):
        pretrained.zero_grad()
        vectors.square().sum().backward()
        assert all(p.grad is None for p in pretrained.encoder.parameters())
        assert pretrained.project.weight.grad is not None
        assert pretrained.project.weight.grad.any()


@torch.no_grad()
def test_the_projection_starts_as_the_leading_principal_axes(
    pretrained: PretrainedTextEncoder,
) -> None:
    """Centred vectors that vary along two axes keep all their distances, the widest axis first."""
    along = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    axes = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(0))).Q
    raw = 5.0 + along @ axes.T
    pretrained.start_from(raw)
    torch.testing.assert_close(pretrained.mean, raw.mean(0))
    weight = pretrained.project.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(4), atol=1e-5, rtol=0)
    vectors = pretrained.vectors(raw)
    torch.testing.assert_close(vectors[:, :2].abs(), along.abs(), atol=1e-5, rtol=0)
    assert vectors[:, 2:].abs().max() < 1e-5
    torch.testing.assert_close(
        torch.cdist(vectors, vectors), torch.cdist(raw, raw), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_fewer_texts_than_numbers_leave_the_rest_zero(pretrained: PretrainedTextEncoder) -> None:
    """Two texts have at most two axes: what is left of the projection reads nothing."""
    pretrained.start_from(torch.eye(16)[:2])
    assert pretrained.project.weight[0].any()
    assert not pretrained.project.weight[2:].any()
