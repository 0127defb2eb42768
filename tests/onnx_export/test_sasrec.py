from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.onnx_export.inputs import CONTEXT_FEATURES, EVENT_SCHEMA
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.onnx_export.sasrec import SasrecConfig, _histories, _padded, fit_sequence_encoder
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events

SMALL = SasrecConfig(hidden=16, heads=2, epochs=2, dropout=0.1, batch=8)
USERS = [f"u{n:03d}" for n in range(30)]
STEPS = (ModalitySpec(name="steps", text="{item}", max_events=12),)


def round_dance(users: int = 24) -> pa.Table:
    """Every user goes a, b, c, d, a, b ... one step a day, from a place of the own."""
    rows = [
        (f"u{n:03d}", TINY_CUT - timedelta(days=12 - day), 0, "abcd"[(n + day) % 4], 0.0)
        for n in range(users)
        for day in range(12)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, EVENT_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)


def test_it_learns_what_comes_next_for_users_it_never_saw() -> None:
    """After a comes b, and so on: nearly every next step of other users is foretold."""
    config = SasrecConfig(hidden=16, heads=2, epochs=80, dropout=0.0, batch=8, learning_rate=1e-2)
    model = fit_sequence_encoder(round_dance(), STEPS, USERS[:16], TINY_CUT, config)
    histories = _histories(round_dance(), STEPS, USERS[16:24], TINY_CUT, model.place)
    rows = _padded([histories[row] for row in sorted(histories)])
    with torch.inference_mode():
        guessed = (model(rows)[:, :-1] @ model.item.weight.T).argmax(-1)
    assert (guessed == rows.item[:, 1:]).float().mean() > 0.95


def test_the_same_seed_gives_the_same_vectors_and_another_others() -> None:
    """Training and vectors repeat bit for bit; the seed decides both."""
    events = tiny_events()
    one, two, other = (
        fit_sequence_encoder(
            events, TINY_MODALITIES, USERS[:20], TINY_CUT, SMALL, seed=seed
        ).vectors(events, USERS, TINY_CUT)
        for seed in (0, 0, 1)
    )
    assert one.shape == (30, 16 + len(CONTEXT_FEATURES))
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one[:, :16], other[:, :16])


def test_nothing_after_the_cut_and_no_other_user_is_learnt_from() -> None:
    """Weights and vectors are the same with and without later events and other users' events."""
    events, fit = tiny_events(), USERS[:20]
    before = pc.less(events.column("event_timestamp"), pa.scalar(TINY_CUT))
    known = pc.is_in(events.column("user"), value_set=pa.array(fit))
    seen = events.filter(pc.and_(before, known))
    one = fit_sequence_encoder(events, TINY_MODALITIES, fit, TINY_CUT, SMALL)
    two = fit_sequence_encoder(seen, TINY_MODALITIES, fit, TINY_CUT, SMALL)
    np.testing.assert_array_equal(
        one.vectors(events, USERS, TINY_CUT), two.vectors(events.filter(before), USERS, TINY_CUT)
    )


def test_vectors_do_not_depend_on_who_is_in_the_batch() -> None:
    """Padding beside longer histories changes nothing but rounding."""
    events = tiny_events()
    model = fit_sequence_encoder(events, TINY_MODALITIES, USERS[:20], TINY_CUT, SMALL)
    together = model.vectors(events, USERS, TINY_CUT)
    alone = np.concatenate([model.vectors(events, [user], TINY_CUT) for user in USERS[:3]])
    np.testing.assert_allclose(together[:3], alone, atol=1e-5)


def test_users_without_events_are_zeros() -> None:
    """A user who did nothing before the as-of has a row of zeros in the right place."""
    model = fit_sequence_encoder(tiny_events(), TINY_MODALITIES, USERS[:20], TINY_CUT, SMALL)
    vectors = model.vectors(tiny_events(), ["nobody", USERS[0]], TINY_CUT)
    assert not vectors[0].any()
    assert vectors[1].any()


def test_progress_is_told_and_the_callers_random_numbers_are_left_alone() -> None:
    """Fractions rise to one, and torch's own generator goes on as if nothing had happened."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    told: list[float] = []
    fit_sequence_encoder(
        tiny_events(),
        TINY_MODALITIES,
        USERS,
        TINY_CUT,
        SMALL,
        on_progress=lambda message, fraction: told.append(fraction),
    )
    assert torch.equal(torch.rand(1), expected)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_nobody_to_learn_from_is_refused() -> None:
    """Users without an event before the cut are a SourceError."""
    with pytest.raises(SourceError, match="no events to train on"):
        fit_sequence_encoder(tiny_events(), TINY_MODALITIES, ["nobody"], TINY_CUT, SMALL)
