from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from feast_anchor.onnx_export import objective, training
from feast_anchor.onnx_export.batches import Batches, special_ids
from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.manifest import read_manifest
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.questions import build_corpus
from feast_anchor.onnx_export.training import TrainConfig, train_bundle
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events

SIZES = ModelConfig(text=16, hidden=16, ff=24, head_hidden=16, embedding=16)
CONFIG = TrainConfig(model=SIZES, steps=3, histories=8, questions=6, snapshots=2, topics=3)


def fit(events: pa.Table, config: TrainConfig) -> tuple[Anchor, list[float]]:
    """Training without the export, which takes most of the time."""
    corpus = build_corpus(
        events, TINY_MODALITIES, cut=TINY_CUT, entity="customer", snapshots_per_user=2, topics=3
    )
    tokenizer = training._tokenizer(corpus, config)
    with training._deterministic(config.seed):
        model = Anchor(config.model, special_ids(tokenizer), len(TINY_MODALITIES))
        losses, _ = training._fit(
            model, corpus, TINY_MODALITIES, tokenizer, config, lambda *_: None
        )
    return model, losses


def weights(model: Anchor) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_training_is_repeatable_and_the_seed_matters() -> None:
    """Two runs give the same weights bit for bit; another seed gives others."""
    events = tiny_events()
    one, two = fit(events, CONFIG)[0], fit(events, CONFIG)[0]
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(fit(events, replace(CONFIG, seed=1))[0]))


def test_training_ignores_what_comes_after_the_cut() -> None:
    """Weights are the same bit for bit with and without the events after the cut."""
    events = tiny_events()
    before = events.filter(pc.less(events.column("event_timestamp"), pa.scalar(TINY_CUT)))
    assert torch.equal(weights(fit(events, CONFIG)[0]), weights(fit(before, CONFIG)[0]))


def test_training_lowers_the_loss() -> None:
    """Sixty steps on the tiny shop at least take a fifth off the loss."""
    _, losses = fit(tiny_events(), replace(CONFIG, steps=60, ntp_every=1))
    assert losses[-1] < 0.8 * losses[0]


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    """The caller's torch generator continues as if nothing had happened."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(tiny_events(users=6), replace(CONFIG, steps=1))
    assert torch.equal(torch.rand(3), expected)


def test_answer_tokens_do_not_reach_the_embedding() -> None:
    """The embedding at <USER_EMB> is the same with the answer behind it as without."""
    corpus = build_corpus(tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer")
    tokenizer = training._tokenizer(corpus, CONFIG)
    model = Anchor(SIZES, special_ids(tokenizer), len(TINY_MODALITIES))
    batches = Batches(corpus, TINY_MODALITIES, tokenizer, model.special, 12, 24)
    batch = next(batches.draw(4, 3, 0.0, np.random.default_rng(0)))
    with torch.no_grad():
        state = objective._state(model, batch)
        alone = objective.answer_hidden(model, batch, state, 3)[0][:, :, 0]
        batch = replace(batch, answers=torch.ones_like(batch.answers))
        other = objective.answer_hidden(model, batch, state, 3)[0]
    assert torch.equal(alone, other[:, :, 0])


def test_manifest_records_the_training(bundle_folder: Path) -> None:
    """The bundle says what it was trained on, how, with which libraries, and how exact it is."""
    manifest = read_manifest(bundle_folder)
    record = manifest.training
    assert record["users"] == 30
    assert record["config"]["steps"] == 4
    assert record["pairs"] > 0
    assert record["cut"] == TINY_CUT.isoformat()
    assert torch.__version__.startswith(record["versions"]["torch"].split("+")[0])
    assert max(manifest.parity["max_abs_difference"].values()) <= manifest.parity["tolerance"]
    assert manifest.modalities == TINY_MODALITIES


def test_nothing_to_train_on_leaves_no_folder(tmp_path: Path) -> None:
    """An empty table is a SourceError and writes nothing."""
    out = tmp_path / "bundle"
    with pytest.raises(SourceError, match="no events to train on"):
        train_bundle(
            tiny_events().slice(0, 0), TINY_MODALITIES, cut=TINY_CUT, out=out, entity="customer_id"
        )
    assert list(tmp_path.iterdir()) == []


def test_no_time_between_event_and_cut_is_a_source_error(tmp_path: Path) -> None:
    """When nobody can be asked anything after their first event, the error says so."""
    events = tiny_events(users=1)
    one = events.filter(pc.equal(events.column("modality"), 0)).sort_by("event_timestamp")
    late = one.slice(0, 1).column("event_timestamp")[0].as_py() + timedelta(seconds=1)
    with pytest.raises(SourceError, match="no training examples"):
        train_bundle(
            one,
            TINY_MODALITIES,
            cut=late,
            out=tmp_path / "b",
            entity="customer_id",
            config=CONFIG,
        )
