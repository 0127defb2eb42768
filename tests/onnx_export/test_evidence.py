from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feast_anchor.onnx_export.evidence import FAR, HALF_LIVES, THRESHOLDS, Evidence, Standardise
from feast_anchor.onnx_export.inputs import (
    AGELESS,
    EVENT_FEATURES,
    Clock,
    days_since_first,
    days_to_as_of,
)

DAY = 86_400_000_000
PER_READING = 2 * len(HALF_LIVES) + 5  # counts, amounts, four of the clock, share


def sharp(modalities: int) -> Evidence:
    """Evidence whose soft thresholds are as good as hard ones: relevance is 0 or 1."""
    evidence = Evidence(2, 2, modalities)
    evidence.scale.data.fill_(1000.0)
    return evidence


def events_of(
    vectors: list[list[float]], kinds: list[int], modalities: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [1,T,E], features of zeros [1,T,F] and member [1,T,M]; kind -1 is padding."""
    member = torch.tensor(kinds).unsqueeze(-1) == torch.arange(modalities)  # [T,M]
    features = torch.zeros(1, len(kinds), len(EVENT_FEATURES))
    return torch.tensor([vectors]), features, member.unsqueeze(0).float()


@torch.no_grad()
def read(
    evidence: Evidence,
    query: list[float],
    kept: tuple[Tensor, Tensor],
    now: float = 0.0,
    seen: list[float] | None = None,
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """What one question reads of one history: one row per reading, [W + M, 2H + 5]."""
    rows = kept[0].shape[1]
    shown = torch.ones(1, 1, rows) if seen is None else torch.tensor([[seen]])
    found = evidence.read(torch.tensor([[query]]), *kept, shown, torch.tensor([[now]]))
    return found.reshape(-1, PER_READING).numpy()


def test_two_events_of_which_one_is_relevant() -> None:
    """By hand: the relevant event a week ago, the other today, asked a week after the newest."""
    evidence = sharp(2)
    vectors, features, member = events_of([[3.0, 0.0], [0.0, 2.0]], [0, 1], 2)
    features[0, 0] = torch.tensor([2.0, 0.0, 0.6, 0.8, 0.0, 1.0])  # amount, gap, hour, weekday
    kept = evidence.keep(vectors, features, member, torch.tensor([[0.0, 7.0]]))
    found = read(evidence, [5.0, 0.0], kept, now=14.0)

    old = np.exp2(-14.0 / np.array(HALF_LIVES))  # the relevant event's weight at each half-life
    new = np.exp2(-7.0 / np.array(HALF_LIVES))
    clock = np.array([0.6, 0.8, 0.0, 1.0]) / 2  # mean of one event, shrunk by one more of nothing
    first = [*np.log1p(old), *np.log1p(2.0 * old), *clock, 1 / 3]
    second = [*np.log1p(new), *np.zeros(len(HALF_LIVES)), *np.zeros(4), 1 / 3]
    expected = [*[first] * THRESHOLDS, first, second]  # by relevance, then by modality
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert old[0] == 0.25


def test_softness_lets_near_misses_count_a_little() -> None:
    """An event at each threshold has half a weight, one at right angles far less."""
    evidence = Evidence(2, 2, 1)
    relevance = evidence.relevance(
        torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.35, 0.9], [0, 1]]])
    )
    assert relevance.shape == (1, 1, THRESHOLDS, 2)
    assert float(relevance[0, 0, 1, 0].detach()) == pytest.approx(0.5, abs=1e-6)
    assert (relevance[0, 0, :, 1] < 0.2).all()


TIMES = st.lists(st.integers(0, 400 * DAY), min_size=1, max_size=30).map(sorted)


@given(times=TIMES, later=st.integers(1, 400 * DAY))
def test_an_event_fades_by_its_age(times: list[int], later: int) -> None:
    """Kept before the as-of is known, counts still decay by each event's true age."""
    evidence = Evidence(2, 2, 1)
    moments, table = np.array(times, np.int64), np.zeros(len(times), dtype=bool)
    as_of, clock = times[-1] + later, Clock.of(moments, table)
    vectors, features, member = events_of([[1.0, 0.0]] * len(times), [0] * len(times), 1)
    days = torch.from_numpy(days_since_first(moments, table, clock)).unsqueeze(0)
    kept = evidence.keep(vectors, features, member, days)
    now = float(days_to_as_of(clock, as_of))
    found = read(evidence, [0.0, 0.0], kept, now=now)[-1]
    ages = (as_of - moments[:, None]) / DAY  # [T,1] days
    direct = np.log1p(np.exp2(-ages / np.array(HALF_LIVES)).sum(0))
    np.testing.assert_allclose(found[: len(HALF_LIVES)], direct, atol=1e-5)


def test_a_profile_never_fades() -> None:
    """A row of a table counts in full at every half-life, whenever it is asked about."""
    evidence = Evidence(2, 2, 1)
    kept = evidence.keep(*events_of([[1.0, 0.0]], [0], 1), torch.full((1, 1), float(AGELESS)))
    found = read(evidence, [0.0, 0.0], kept, now=5000.0)[-1]
    np.testing.assert_allclose(found[: len(HALF_LIVES)], np.log1p(1.0), rtol=1e-6)


@given(seed=st.integers(0, 2**31), more=st.integers(1, 40))
def test_later_events_change_no_bit(seed: int, more: int) -> None:
    """What is kept of an event, and what a question reads that may not see those behind it."""
    generator = torch.Generator().manual_seed(seed)
    evidence = Evidence(4, 3, 2)
    vectors = torch.randn(1, 9 + more, 4, generator=generator)
    features = torch.randn(1, 9 + more, len(EVENT_FEATURES), generator=generator)
    member = torch.eye(2)[torch.randint(0, 2, (1, 9 + more), generator=generator)]
    days = (30 * torch.rand(1, 9 + more, generator=generator)).cumsum(1)
    query = torch.randn(4, generator=generator).tolist()
    whole = evidence.keep(vectors, features, member, days)
    first = evidence.keep(vectors[:, :9], features[:, :9], member[:, :9], days[:, :9])
    assert torch.equal(whole[1][:, :9], first[1])
    now, seen = float(days[0, 8]), [1.0] * 9 + [0.0] * more
    one, two = read(evidence, query, whole, now, seen), read(evidence, query, first, now)
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_padding_and_unseen_rows_count_for_nothing() -> None:
    """Rows of padding, whatever they hold, and rows that may not be seen change no number."""
    evidence = Evidence(2, 2, 1)
    vectors, features, member = events_of([[1.0, 0.0], [1.0, 1.0], [1.0, 0.5]], [0, 0, -1], 1)
    features[:] = 0.5
    days = torch.tensor([[3.0, 0.0, 0.0]])
    kept = evidence.keep(vectors, features, member, days)
    assert not kept[1][0, 2].any()
    short = (kept[0][:, :2], kept[1][:, :2])
    np.testing.assert_array_equal(
        read(evidence, [1.0, 0.2], kept), read(evidence, [1.0, 0.2], short)
    )
    hidden = read(evidence, [1.0, 0.2], kept, seen=[1.0, 0.0, 0.0])
    alone = read(evidence, [1.0, 0.2], (kept[0][:, :1], kept[1][:, :1]))
    np.testing.assert_array_equal(hidden, alone)


def test_a_question_of_zeros_finds_nothing_relevant() -> None:
    """Where nothing is asked, readings by relevance are zero and those by modality are as ever."""
    evidence = Evidence(2, 2, 1)
    kept = evidence.keep(*events_of([[1.0, 0.0], [0.0, 1.0]], [0, 0], 1), torch.zeros(1, 2))
    nothing, something = (read(evidence, query, kept) for query in ([0.0, 0.0], [1.0, 0.0]))
    assert not nothing[:THRESHOLDS].any()
    assert something[:THRESHOLDS, : len(HALF_LIVES)].all()
    np.testing.assert_array_equal(nothing[THRESHOLDS:], something[THRESHOLDS:])


def test_an_empty_history_has_no_evidence() -> None:
    """Nobody's events are zeros, not NaN."""
    evidence = Evidence(2, 2, 2)
    kept = evidence.keep(*events_of([[0.0, 0.0]], [-1], 2), torch.zeros(1, 1))
    assert not read(evidence, [1.0, 0.0], kept).any()


def test_a_negative_amount_never_leaves_the_logarithm() -> None:
    """More money back than spent reads as none spent."""
    evidence = sharp(1)
    vectors, features, member = events_of([[1.0, 0.0]], [0], 1)
    features[..., 0] = -4.0
    kept = evidence.keep(vectors, features, member, torch.zeros(1, 1))
    found = read(evidence, [1.0, 0.0], kept)
    assert not found[:, len(HALF_LIVES) : 2 * len(HALF_LIVES)].any()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("modalities", [1, 3])
def test_sizes_are_the_declared_ones(modalities: int) -> None:
    """`width` and `values` are what `read` and `keep` return, for any number of questions."""
    evidence = Evidence(4, 3, modalities)
    member = torch.eye(modalities)[torch.zeros(2, 6, dtype=torch.int64)]
    features = torch.randn(2, 6, len(EVENT_FEATURES))
    keys, values = evidence.keep(torch.randn(2, 6, 4), features, member, torch.zeros(2, 6))
    assert values.shape == (2, 6, Evidence.values(modalities))
    assert keys.shape == (2, 6, 3)
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(2, 6))
    found = evidence.read(
        torch.randn(2, 5, 4), keys, values, torch.ones(2, 5, 6), torch.zeros(2, 5)
    )
    assert found.shape == (2, 5, Evidence.width(modalities))


@torch.no_grad()
def test_keys_start_as_the_leading_axes_of_the_texts() -> None:
    """Texts that vary along two axes keep their similarity in keys of two numbers; with fewer
    axes than numbers the rest reads nothing.
    """
    axes = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0))).Q
    vectors = torch.randn(9, 2, generator=torch.Generator().manual_seed(1)) @ axes.T  # [N,E]
    expected = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    for width in (2, 4):
        evidence = Evidence(6, width, 1)
        evidence.start_from(vectors)
        keys, _ = evidence.keep(*events_of(vectors.tolist(), [0] * 9, 1), torch.zeros(1, 9))
        found, _ = evidence.similarity(vectors.unsqueeze(0), keys)
        torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    evidence.start_from(vectors[:1])
    assert evidence.query_key.weight[0].any()
    assert not evidence.query_key.weight[1:].any()


@torch.no_grad()
def test_numbers_are_read_in_standard_deviations() -> None:
    """By hand: mean 3 and spread 2; a number that never changes keeps its scale; far out is far
    out, and says nothing about the numbers beside it.
    """
    standardise = Standardise(2)
    standardise.measure(torch.tensor([[1.0, 7.0], [5.0, 7.0], [1.0, 7.0], [5.0, 7.0]]))
    standardise.gain.fill_(1.0)
    found = standardise(torch.tensor([[5.0, 7.0], [3.0, 8.0], [-900.0, 7.5]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-FAR, 0.5]]))
    standardise.gain.copy_(torch.tensor([2.0, 3.0]))
    standardise.bias.copy_(torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(standardise(torch.tensor([1.0, 9.0])), torch.tensor([-1.5, 5.0]))
