from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from feast_anchor.onnx_export.attention import Asked, attended, last_row
from feast_anchor.onnx_export.decoder import Decoder, DecoderConfig, Layer
from feast_anchor.onnx_export.inputs import CONTEXT_FEATURES, EVENT_FEATURES
from feast_anchor.onnx_export.manifest import SpecialIds
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.states import Reading

SPECIAL = SpecialIds(pad=40, user_emb=41, eos=42, first_prompt=50)
EVENTS = 6


def model(**sizes: object) -> Anchor:
    torch.manual_seed(0)
    config = replace(ModelConfig(text=8, key=8, hidden=16, ff=24), **sizes)  # type: ignore[arg-type]
    return Anchor(config, SPECIAL, 2).eval()


def reading() -> Reading:
    """Six events; the last two are unlike the others and like each other."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((EVENTS, 8)).astype(np.float32)
    vectors[-1] = vectors[-2]
    return Reading(
        user="u",
        texts=tuple("abcdee"),
        vectors=vectors,
        features=generator.standard_normal((EVENTS, len(EVENT_FEATURES))).astype(np.float32),
        modality=np.array([0, 0, 1, 1, 0, 0]),
        days=np.arange(EVENTS, dtype=np.float32),
        now=np.float32(9.0),
        context=np.zeros(len(CONTEXT_FEATURES), dtype=np.float32),
    )


@torch.no_grad()
def test_the_last_rows_weights_make_the_last_rows_output() -> None:
    """In a decoder of one layer and one head, values weighed by them give `full`'s last row."""
    torch.manual_seed(0)
    config = DecoderConfig(
        hidden=8, layers=1, heads=1, kv_heads=1, head_dim=8, ff=12, rope_base=10_000.0
    )
    decoder, x = Decoder(config), torch.randn(1, 7, 8)
    state = decoder.prefix(x[:, :4])
    weights = last_row(decoder, state, x[:, 4:])
    assert float(weights.sum()) == pytest.approx(1.0)
    (layer,) = decoder.layers
    assert isinstance(layer, Layer)
    value = layer.keys_values(x, *decoder.angles(torch.arange(7)[None]))[1]
    seen = (weights @ value[0, 0]).reshape(1, 1, 1, 1, 8)
    again = decoder.final_norm(layer.finish(x[:, -1:], seen))
    torch.testing.assert_close(again, decoder.full(x)[:, -1:])


@torch.no_grad()
def test_the_weights_do_not_depend_on_where_the_block_begins() -> None:
    """In several layers and heads, whatever part of a sequence is the state."""
    torch.manual_seed(0)
    config = DecoderConfig(
        hidden=16, layers=3, heads=4, kv_heads=2, head_dim=4, ff=24, rope_base=10_000.0
    )
    decoder, x = Decoder(config), torch.randn(1, 7, 16)
    one, other = (last_row(decoder, decoder.prefix(x[:, :n]), x[:, n:]) for n in (2, 6))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("order", ["events first", "summary first"])
def test_a_question_finds_the_events_that_are_like_it(order: str) -> None:
    """Relevance is highest where the texts are the question's own, in either order of tokens;
    attention is 1 on average.
    """
    read = reading()
    like, nothing = read.vectors[-1], np.zeros(8, dtype=np.float32)
    ids = np.array([SPECIAL.user_emb])
    found = attended(model(order=order), read, [Asked(ids, like), Asked(ids, nothing)])
    for one in found:
        assert one.attention.shape == (EVENTS,)
        assert one.attention.mean() == pytest.approx(1.0)
        assert (one.attention > 0).all()
    near = found[0].relevance
    assert near is not None
    assert near[-1] == near[-2] == near.max()
    assert (near[:-2] < near.max()).all()
    assert not np.allclose(found[0].attention, found[1].attention)


def test_a_model_without_evidence_has_attention_only() -> None:
    """There is no relevance to tell of."""
    (found,) = attended(
        model(evidence=False), reading(), [Asked(np.array([SPECIAL.user_emb]), np.ones(8, "f4"))]
    )
    assert found.relevance is None
    assert found.attention.shape == (EVENTS,)
