"""Where graphs run: on the CPU, on a GPU that answers, and what is said when one does not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.transforms import graphs, packing
from feast_anchor.transforms.request import Events, RequestScorer
from feast_anchor.transforms.scoring import Question, Scorer
from shop import QUESTIONS, Users, histories_of

DAY = 86_400_000_000
USERS: Users = {
    user: [(day * DAY, day % 3, 1.0) for day in range(size)]
    for user, size in {"a": 1, "b": 4, "c": 12, "d": 9, "e": 30}.items()
}


@pytest.fixture(scope="module")
def bundle(shop_bundle: Path) -> Bundle:
    """The shop's bundle, verified."""
    return Bundle.open(shop_bundle)


def vectors(scorer: Scorer) -> bytes:
    """The vectors of all users at two as-of times."""
    shard = histories_of(USERS, [20 * DAY, 61 * DAY])
    found = scorer.score(shard.histories, shard.texts)
    return b"".join(user.vectors.tobytes() for user in found)


def test_bound_runs_in_large_packs_give_the_same_bits(bundle: Bundle) -> None:
    """The way a GPU is driven, values bound and large packs, run on the CPU: no bit differs."""
    plain, bound = (Scorer(bundle, QUESTIONS, threads=2, device="cpu") for _ in range(2))
    bound.graphs._bound, bound.graphs.policy = True, packing.CUDA
    assert vectors(bound) == vectors(plain)


def test_a_state_stays_bound_between_prefix_and_suffix(bundle: Bundle) -> None:
    """Bound, the state is a value of ONNX Runtime, which no NumPy array is copied from."""
    scorer = Scorer(bundle, [Question(None)], threads=1, device="cpu")
    scorer.graphs._bound = True
    read, states = scorer.graphs.read, []

    def kept(*args: object) -> graphs.State:
        states.append(read(*args))  # type: ignore[arg-type]
        return states[-1]

    scorer.graphs.read = kept  # type: ignore[method-assign,assignment]
    vectors(scorer)
    assert states
    assert not any(isinstance(value, np.ndarray) for state in states for value in state.values())


def test_a_state_read_bound_is_continued_bound(bundle: Bundle) -> None:
    """A request's state comes back as arrays, goes in as past or is asked, and keeps its bits."""
    given = Events([0, DAY, 2 * DAY], [1, 0, 0], ("age old", "soap", "tea"), [0.0, 1.0, 2.0])  # type: ignore[arg-type]
    found = []
    for bound in (False, True):
        scorer = Scorer(bundle, QUESTIONS, threads=1, device="cpu")
        scorer.graphs._bound = bound
        states = RequestScorer(scorer)
        first, last = np.arange(2), np.array([2])
        state = states.append(states.begin(given.take(first)), given.take(last))
        found.append(states.answer(state, 9 * DAY).tobytes())
    assert found[0] == found[1]


def test_cuda_without_a_driver_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a GPU is told that there is none, instead of waiting for the CPU."""
    monkeypatch.setattr(graphs, "has_gpu", lambda: False)
    with pytest.raises(SpecError, match="no NVIDIA driver answers"):
        Scorer(bundle, QUESTIONS, device="cuda")
    assert Scorer(bundle, QUESTIONS, device="auto").graphs.device == "cpu"


@pytest.mark.skipif(graphs.has_gpu(), reason="a GPU answers here, and its provider may start")
def test_a_gpu_whose_provider_does_not_start_is_told_of(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The CPU scores, and a warning says why and what to install."""
    monkeypatch.setattr(graphs, "has_gpu", lambda: True)
    with caplog.at_level(logging.WARNING):
        scorer = Scorer(bundle, QUESTIONS, threads=1, device="auto")
    assert (scorer.graphs.device, scorer.graphs.policy) == ("cpu", packing.CPU)
    assert "Scoring on the CPU although there is a GPU" in caplog.text
    assert vectors(scorer) == vectors(Scorer(bundle, QUESTIONS, threads=1, device="cpu"))


@pytest.mark.skipif(not graphs.has_gpu(), reason="needs a GPU")
def test_a_gpu_gives_the_vectors_of_the_cpu(bundle: Bundle) -> None:
    """Rounded otherwise, the numbers are the same to 1e-5."""
    found = [np.frombuffer(vectors(Scorer(bundle, QUESTIONS, device=d)), "f4") for d in DEVICES]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


DEVICES: tuple[graphs.Device, ...] = ("cpu", "cuda")
