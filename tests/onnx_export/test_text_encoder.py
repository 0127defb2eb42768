from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from feast_anchor.onnx_export.sentence import read_sentence_encoder
from feast_anchor.onnx_export.text_encoder import OwnTextEncoder, PretrainedTextEncoder, TextEncoder

IDS = torch.tensor([[2, 4, 5, 3, 0], [2, 7, 3, 0, 0], [2, 6, 8, 9, 3], [2, 10, 3, 0, 0]])


@pytest.fixture
def pretrained(bert: tuple[Path, Any]) -> PretrainedTextEncoder:
    """A tiny random sentence encoder of 16 numbers."""
    return PretrainedTextEncoder(read_sentence_encoder(bert[0])[0])


def own() -> OwnTextEncoder:
    torch.manual_seed(1)
    return OwnTextEncoder(vocabulary=20, width=4, pad=0)


@pytest.mark.parametrize("kind", ["own", "pretrained"])
def test_raw_and_vectors_together_are_forward(kind: str, request: pytest.FixtureRequest) -> None:
    """What training computes in two parts is what the exported graph computes in one."""
    encoder: TextEncoder = own() if kind == "own" else request.getfixturevalue("pretrained")
    with torch.no_grad():
        whole = encoder.forward(IDS)
        assert whole.shape == (4, encoder.width)
        assert torch.equal(encoder.vectors(encoder.raw(IDS)), whole)


def test_word_order_and_padding_do_not_move_our_own_vectors() -> None:
    """Our own encoder takes the mean of a text's tokens."""
    vectors = own()(torch.tensor([[4, 5, 6, 0, 0], [6, 4, 5, 0, 0]]))
    torch.testing.assert_close(vectors[0], vectors[1])
    torch.testing.assert_close(vectors[0], own()(torch.tensor([[4, 5, 6]]))[0])


def test_a_pretrained_encoder_is_frozen(pretrained: PretrainedTextEncoder) -> None:
    """Nothing of it wants a gradient, so training leaves every weight as it was."""
    assert not any(parameter.requires_grad for parameter in pretrained.parameters())
    assert not pretrained(IDS).requires_grad
    assert own()(IDS).requires_grad


@torch.no_grad()
def test_what_all_texts_share_is_taken_off(pretrained: PretrainedTextEncoder) -> None:
    """After centring, the vectors of those texts have the mean zero and their old directions
    from it.
    """
    raw = pretrained.raw(IDS)
    torch.testing.assert_close(raw.norm(dim=-1), torch.ones(4))
    pretrained.centre(raw)
    vectors = pretrained.vectors(raw)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    along = F.cosine_similarity(vectors, raw - raw.mean(0), dim=-1)
    torch.testing.assert_close(along, torch.ones(4))


@torch.no_grad()
def test_a_weight_file_holds_the_mean(pretrained: PretrainedTextEncoder) -> None:
    """The mean is part of the state, so a checkpoint gives the same vectors back."""
    pretrained.centre(pretrained.raw(IDS))
    assert torch.equal(pretrained.state_dict()["mean"], pretrained.mean)
    assert pretrained.mean.any()
