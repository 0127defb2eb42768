"""A stored user state answers and grows to the very bits of a history read at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import BundleError, SpecError, StateError
from feast_anchor.onnx_export.inputs import Floats
from feast_anchor.onnx_export.quantize import quantize_bundle
from feast_anchor.transforms.request import Events, RequestScorer
from feast_anchor.transforms.scoring import Scorer
from feast_anchor.transforms.user_state import UserState
from shop import QUESTIONS, SPECS, TEXTS, histories_of

DAY = 86_400_000_000
HISTORY = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 2), st.floats(-100, 100, width=32)),
    min_size=2,
    max_size=40,
)


@pytest.fixture(scope="module", params=["float32", "int8 per token"])
def scorer(
    request: pytest.FixtureRequest, shop_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scorer:
    """The shop's scorer on one thread, as exported and quantised."""
    folder = shop_bundle
    if request.param == "int8 per token":
        folder = tmp_path_factory.mktemp("int8") / "shop"
        quantize_bundle(shop_bundle, folder, users=4)
    return Scorer(Bundle.open(folder), QUESTIONS, threads=1, device="cpu")


@pytest.fixture(scope="module")
def request_scorer(scorer: Scorer) -> RequestScorer:
    """Reads and asks states of the shop's bundle."""
    return RequestScorer(scorer)


def events_of(rows: Sequence[tuple[int, int, float]], profile: bool = True) -> Events:
    """Events at some hours, in order, behind a profile."""
    rows = sorted(rows)
    first = [(0, 1, "age old", 0.0)] if profile else []
    whole = first + [(hour * DAY // 24, 0, TEXTS[text], amount) for hour, text, amount in rows]
    times, modality, texts, amounts = zip(*whole, strict=True)
    return Events(
        np.array(times, np.int64),
        np.array(modality, np.int64),
        texts,
        np.array(amounts, np.float32),
    )


def batch_vectors(scorer: Scorer, rows: Sequence[tuple[int, int, float]], as_of: int) -> Floats:
    """What the pipeline's scorer makes of the same events."""
    events = [(0, 3, 0.0), *((hour * DAY // 24, text, amount) for hour, text, amount in rows)]
    shard = histories_of({"a": events}, [as_of])
    (found,) = scorer.score(shard.histories, shard.texts)
    vectors: Floats = found.vectors[0]
    return vectors


def bits(state: UserState) -> list[bytes]:
    """Everything in a state."""
    return [*(tensor.tobytes() for tensor in state.tensors.values()), repr(state.clock).encode()]


@settings(max_examples=25, deadline=None)
@given(rows=HISTORY, cuts=st.lists(st.integers(1, 39), max_size=4, unique=True))
def test_append_equals_recompute_bit_for_bit(
    scorer: Scorer,
    request_scorer: RequestScorer,
    rows: list[tuple[int, int, float]],
    cuts: list[int],
) -> None:
    """In whatever pieces events arrive, state and vectors are those of reading all at once, and
    the vectors are the pipeline's.
    """
    rows = sorted({hour: (hour, text, amount) for hour, text, amount in rows}.values())
    assume(len(rows) >= 2)
    edges = sorted({cut for cut in cuts if cut < len(rows)} | {0, len(rows)})
    grown = request_scorer.begin(events_of(rows[: edges[1]]))
    for start, end in pairwise(edges[1:]):
        new = events_of(rows[start:end], profile=False)
        if grown.keeps(scorer.manifest, (end - start, 0)):
            grown = request_scorer.append(grown, new)
        else:  # the window drops its oldest events
            grown = request_scorer.begin(events_of(rows[:end]))
    whole = request_scorer.begin(events_of(rows))
    assert bits(grown) == bits(whole)
    assert grown.seen == whole.seen
    as_of = grown.history_end + 3 * DAY
    vectors = request_scorer.answer(grown, as_of)
    assert vectors.tobytes() == request_scorer.answer(whole, as_of).tobytes()
    assert vectors.tobytes() == batch_vectors(scorer, rows, as_of).tobytes()


@settings(max_examples=25, deadline=None)
@given(rows=HISTORY)
def test_a_packed_state_answers_alike(
    request_scorer: RequestScorer, rows: list[tuple[int, int, float]]
) -> None:
    """float32 bytes give the very bits back; int8 ones nearly the same vectors, for less room."""
    state = request_scorer.begin(events_of(rows))
    as_of = state.history_end + DAY
    exact, small = state.pack("float32"), state.pack()
    again = request_scorer.unpack(exact)
    assert bits(again) == bits(state)
    assert (again.seen, again.history_end) == (state.seen, state.history_end)
    vectors = request_scorer.answer(state, as_of)
    assert request_scorer.answer(again, as_of).tobytes() == vectors.tobytes()
    near = request_scorer.answer(request_scorer.unpack(small), as_of)
    assert (near * vectors).sum(1).min() > 0.999
    assert len(small) < 0.55 * len(exact)


def test_the_documented_decoder_reads_a_state(request_scorer: RequestScorer) -> None:
    """A few lines of NumPy, as in docs/user_state.md, find the same numbers."""
    state = request_scorer.begin(events_of([(5, 0, 1.0), (6, 1, 2.0), (9, 2, 3.0)]))
    packed, dims = state.pack(), request_scorer._manifest.dims
    modalities, rows = np.frombuffer(packed, "<u2", 1, 6)[0], np.frombuffer(packed, "<u4", 1, 72)[0]
    at = 76 + 4 * modalities
    scale = np.frombuffer(packed, "<f4", dims.kv_heads * rows, at)
    values = np.frombuffer(packed, "i1", scale.size * dims.head_dim, at + scale.nbytes)
    k_0 = (values.reshape(scale.size, -1) * scale[:, None]).reshape(state.tensors["k_0"].shape)
    assert rows == 4
    np.testing.assert_allclose(k_0, state.tensors["k_0"], atol=float(scale.max()) / 2 + 1e-7)


def test_what_cannot_be_continued_is_refused(request_scorer: RequestScorer) -> None:
    """An older event, and one more profile, which takes the place of the one that was read."""
    state = request_scorer.begin(events_of([(5, 0, 1.0), (6, 1, 2.0)]))
    with pytest.raises(StateError, match="not newer than the state's last"):
        request_scorer.append(state, events_of([(6, 0, 1.0)], profile=False))
    profile = replace(events_of([(9, 0, 0.0)], profile=False), modality=np.array([1]))
    with pytest.raises(StateError, match="the window drops old ones"):
        request_scorer.append(state, profile)
    nothing = events_of([(9, 0, 0.0)]).take(np.array([], np.int64))
    assert request_scorer.append(state, nothing) is state
    with pytest.raises(SpecError, match="no events"):
        request_scorer.begin(nothing)


def test_a_full_window_is_read_anew_and_then_grows_again(request_scorer: RequestScorer) -> None:
    """At the budget one more event is refused; the state read anew takes a quarter more."""
    budget = SPECS[0].max_events
    hours = [(hour, hour % 3, 1.0) for hour in range(1, 2 * budget)]
    state = request_scorer.begin(events_of(hours[:budget]))
    with pytest.raises(StateError, match="read the history anew"):
        request_scorer.append(state, events_of(hours[budget : budget + 1], profile=False))
    anew = request_scorer.begin(events_of(hours[: budget + 1]))
    rest = hours[budget + 1 : budget + budget // 4]
    grown = request_scorer.append(anew, events_of(rest, profile=False))
    assert bits(grown) == bits(request_scorer.begin(events_of(hours[: budget + budget // 4])))


def test_an_as_of_before_the_newest_event_is_refused(request_scorer: RequestScorer) -> None:
    """A vector of then must not know what happened since."""
    state = request_scorer.begin(events_of([(5, 0, 1.0), (6, 1, 2.0)]))
    with pytest.raises(StateError, match="would know the future"):
        request_scorer.answer(state, state.history_end)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed: packed[:-1], "was cut or changed"),
        (lambda packed: packed + b"x", "was cut or changed"),
        (lambda packed: packed[:77], "was cut or changed"),
        (lambda packed: packed[:6] + b"\xff\xff" + packed[8:], "was cut or changed"),
        (lambda packed: packed[:72] + bytes(4) + packed[76:84], "of 0 events"),
        (lambda packed: b"", "are no user state"),
        (lambda packed: b"PK" + packed[2:], "are no user state"),
        (lambda packed: packed[:4] + b"\x02" + packed[5:], "of version 2"),
        (lambda packed: packed[:5] + b"\x07" + packed[6:], "encoding 7"),
        (lambda packed: packed[:8] + bytes(32) + packed[40:], "of bundle 000000000000"),
    ],
    ids=[
        "cut",
        "longer",
        "header",
        "modalities",
        "no events",
        "empty",
        "another format",
        "newer",
        "encoding",
        "another model",
    ],
)
def test_other_bytes_are_refused(
    request_scorer: RequestScorer, change: object, message: str
) -> None:
    """Bytes that are not a whole state of this bundle raise, they never answer."""
    assert callable(change)
    packed = request_scorer.begin(events_of([(5, 0, 1.0)])).pack()
    with pytest.raises(StateError, match=message):
        request_scorer.unpack(change(packed))


def test_a_state_of_another_bundle_is_refused(request_scorer: RequestScorer) -> None:
    """States in memory are as particular as packed ones."""
    state = replace(request_scorer.begin(events_of([(5, 0, 1.0)])), bundle="0" * 64)
    with pytest.raises(StateError, match="of bundle 000000000000"):
        request_scorer.answer(state, 400 * DAY)


def test_a_bundle_with_its_summary_first_is_refused(scorer: Scorer) -> None:
    """There every event changes the whole state: it says so and names the setting."""
    paper = scorer.manifest.model_copy(update={"appends": False})
    other = Scorer(replace(scorer.bundle, manifest=paper), QUESTIONS, threads=1, device="cpu")
    with pytest.raises(BundleError, match="events first"):
        RequestScorer(other)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([1, 2], [0, 0], ("soap",), [1.0, 1.0]), "2 times, 2 modalities, 1 texts"),
        (([1], [0], (None,), [1.0]), "texts as str"),
        (([1.5], [0], ("soap",), [1.0]), "times are float64"),
        (([1], [0], ("soap",), [float("nan")]), "NaN or infinite"),
    ],
    ids=["unequal", "no text", "fractions", "amount"],
)
def test_events_that_cannot_be_read_are_refused(columns: Any, message: str) -> None:
    """What would end in a wrong number says what was given and what was expected."""
    with pytest.raises(SpecError, match=message):
        Events(*columns)


def test_events_of_an_unknown_modality_are_refused(request_scorer: RequestScorer) -> None:
    """The window would drop them without a word."""
    for modality in (2, -1):
        events = Events(np.array([1]), np.array([modality]), ("soap",), np.zeros(1, np.float32))
        with pytest.raises(SpecError, match=rf"modalities \[{modality}\].* has 2"):
            request_scorer.begin(events)


def test_events_come_in_any_order_and_width(request_scorer: RequestScorer) -> None:
    """Sorted by time, modality, text and amount like the pipeline's, and numbers as it has them."""
    columns = ([DAY, 0, DAY, 2 * DAY], [0, 1, 0, 0], ("tea", "age old", "soap", "tea"))
    amounts = [0.1, 0.0, 0.3, 1e7 / 3]
    given = Events(np.array(columns[0]), np.array(columns[1], np.int16), columns[2], amounts)  # type: ignore[arg-type]
    assert given.texts == ("age old", "soap", "tea", "tea")
    assert given.times.tolist() == [0, DAY, DAY, 2 * DAY]
    backwards = Events(
        given.times[::-1], given.modality[::-1], given.texts[::-1], given.amounts[::-1]
    )
    assert bits(request_scorer.begin(given)) == bits(request_scorer.begin(backwards))


@pytest.mark.parametrize("first", [0, 1], ids=["profile", "event"])
def test_a_state_of_one_row_grows_like_any_other(
    scorer: Scorer, request_scorer: RequestScorer, first: int
) -> None:
    """A profile alone, then an event, and the other way round: the bits of both read at once."""
    rows = [(0, 1, "age old"), (DAY, 0, "soap in home"), (2 * DAY, 0, "bread in food")]
    if first:
        rows = [(0, 0, "soap in home"), (DAY, 1, "age old"), (2 * DAY, 0, "bread in food")]

    def events(some: slice) -> Events:
        times, modality, texts = zip(*rows[some], strict=True)
        return Events(np.array(times), np.array(modality), texts, np.ones(len(times), np.float32))

    grown = request_scorer.begin(events(slice(1)))
    for number in (1, 2):
        grown = request_scorer.append(grown, events(slice(number, number + 1)))
    whole = request_scorer.begin(events(slice(3)))
    assert bits(grown) == bits(whole)
    as_of = 9 * DAY
    found = request_scorer.answer(grown, as_of).tobytes()
    assert found == request_scorer.answer(whole, as_of).tobytes()
