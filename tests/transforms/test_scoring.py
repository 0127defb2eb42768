"""Vectors are the same bits in whatever company, whatever else is asked, on any threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import BundleError
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.onnx_export.quantize import quantize_bundle
from feast_anchor.transforms.scoring import Question, Scorer, UserVectors
from shop import QUESTIONS, SPECS, Users, histories_of
from tiny import TINY_MODALITIES

DAY = 86_400_000_000
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 60 * DAY),  # time
        st.integers(0, 3),  # text; the last is a profile's
        st.floats(-100, 100, width=32),  # amount
    ),
    min_size=1,
    max_size=40,
)
USERS = st.dictionaries(st.sampled_from("abcdef"), EVENTS, min_size=1, max_size=5)


@pytest.fixture(scope="module", params=["float32", "int8 per token"])
def bundle(
    request: pytest.FixtureRequest, shop_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The shop's bundle, verified, as exported and quantised."""
    if request.param == "float32":
        return Bundle.open(shop_bundle)
    out = tmp_path_factory.mktemp("int8") / "shop"
    quantize_bundle(shop_bundle, out, users=4)
    return Bundle.open(out)


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    """A scorer of all questions on two threads."""
    return Scorer(bundle, QUESTIONS, threads=2, device="cpu")


# So few that windows of random users drop events between one as-of and the next.
SHORT = tuple(spec.model_copy(update={"max_events": 8}) for spec in SPECS)


def score(
    scorer: Scorer, users: Users, as_of: list[int], specs: Sequence[ModalitySpec] = SPECS
) -> dict[str, UserVectors]:
    """Vectors of every user that has any."""
    shard = histories_of(users, as_of, specs)
    return {found.user: found for found in scorer.score(shard.histories, shard.texts)}


@settings(max_examples=25, deadline=None)
@given(users=USERS)
def test_company_changes_no_bit(scorer: Scorer, users: Users) -> None:
    """A user scored alone gets the vectors that the same user gets among others."""
    as_of = [20 * DAY, 61 * DAY]
    together = score(scorer, users, as_of)
    for user, events in users.items():
        alone = score(scorer, {user: events}, as_of)
        assert alone[user].vectors.tobytes() == together[user].vectors.tobytes()


@settings(max_examples=25, deadline=None)
@given(
    users=USERS,
    days=st.lists(st.integers(1, 70), min_size=1, max_size=6, unique=True),
    specs=st.sampled_from((SPECS, SHORT)),
)
def test_other_as_of_times_change_no_bit(
    scorer: Scorer, users: Users, days: list[int], specs: Sequence[ModalitySpec]
) -> None:
    """The vector of one as-of is the same whether others are asked for with it or not, though
    they share a prefix as far as their windows begin alike.
    """
    as_of = sorted(day * DAY for day in days)
    many = score(scorer, users, as_of, specs)
    for moment in as_of:
        for user, single in score(scorer, users, [moment], specs).items():
            row = many[user].as_of.tolist().index(moment)
            assert single.vectors[0].tobytes() == many[user].vectors[row].tobytes()
            assert single.history_end[0] == many[user].history_end[row] < moment


@settings(max_examples=25, deadline=None)
@given(users=USERS)
def test_other_scenarios_and_threads_change_no_bit(
    bundle: Bundle, scorer: Scorer, users: Users
) -> None:
    """Asking one question alone on one thread gives the bits of asking all on two."""
    together = score(scorer, users, [61 * DAY])
    for column, question in enumerate(QUESTIONS):
        single = Scorer(bundle, [question], threads=1, device="cpu")
        for user, found in score(single, users, [61 * DAY]).items():
            assert found.vectors[:, 0].tobytes() == together[user].vectors[:, column].tobytes()


@pytest.mark.parametrize(
    ("events", "prefixes"), [(8, 1), (10, 2), (13, 4)], ids=["fits", "drops once", "thrice"]
)
def test_as_of_times_share_a_prefix_between_two_drops(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, events: int, prefixes: int
) -> None:
    """One as-of after each of a user's events: the prefix runs once per beginning of the window."""
    scorer, runs = Scorer(bundle, QUESTIONS, threads=1, device="cpu"), []

    class Counted:
        def run(self, names: list[str], feed: dict[str, Any]) -> Any:
            histories, longest = feed["modality"].shape
            runs.extend([longest] * histories)
            return session.run(names, feed)

    session = scorer.graphs.prefix
    monkeypatch.setattr(scorer.graphs, "prefix", Counted())
    history = [(day * DAY, 0, 1.0) for day in range(events)]
    score(scorer, {"a": history}, [day * DAY for day in range(1, events + 1)], SHORT)
    assert len(runs) == prefixes
    assert max(runs) == 8


def test_vectors_have_unit_length_and_depend_on_question_and_history(scorer: Scorer) -> None:
    """Each question and each history gives another vector, all of length one."""
    found = score(scorer, {"a": [(0, 0, 1.0)], "b": [(0, 1, 9.0)]}, [DAY])
    vectors = np.concatenate([found["a"].vectors[0], found["b"].vectors[0]])
    assert vectors.shape == (10, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    distance = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1) + np.eye(10)
    assert distance.min() > 1e-3


def test_many_snapshots_are_scored_in_bounded_pieces(scorer: Scorer) -> None:
    """More as-of times than fit one run give one vector each, and each its own context."""
    as_of = [day * DAY for day in range(1, 200)]
    found = score(scorer, {"a": [(0, 0, 1.0)]}, as_of)["a"]
    assert found.vectors.shape == (199, 5, 128)
    assert len(np.unique(found.vectors[:, 0], axis=0)) == 199


def test_a_query_that_is_too_long_is_refused(bundle: Bundle) -> None:
    """A query over the bundle's limit raises instead of being cut to another question."""
    with pytest.raises(BundleError, match="expected at most 48"):
        Scorer(bundle, [Question("tea " * 100)])


def test_questions_read_by_their_text_vectors_alone_are_scored(
    sentence_bundle_folder: Path,
) -> None:
    """With a pretrained text encoder and no query tokens, questions are still told apart, and
    company changes no bit.
    """
    pretrained = Bundle.open(sentence_bundle_folder)
    questions = [Question("fresh tomatoes"), Question("wine"), Question(None)]
    shard = histories_of({"a": [(0, 0, 2.0), (DAY, 1, 1.0)]}, [9 * DAY], TINY_MODALITIES)
    (found,) = Scorer(pretrained, questions, threads=1, device="cpu").score(
        shard.histories, shard.texts
    )
    vectors = found.vectors[0]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
    assert (np.linalg.norm(vectors[:, None] - vectors, axis=-1) + np.eye(3)).min() > 1e-3
    for column, question in enumerate(questions):
        (single,) = Scorer(pretrained, [question], threads=1, device="cpu").score(
            shard.histories, shard.texts
        )
        assert single.vectors[0, 0].tobytes() == vectors[column].tobytes()
