from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_anchor.onnx_export.errors import BundleError, RunError
from feast_anchor.transforms.events import ROW_SCHEMA
from feast_anchor.transforms.histories import History, ShardHistories, build_histories
from feast_anchor.transforms.poison import (
    SCORING_FAILED,
    VECTOR_NOT_FINITE,
    reject,
    score_isolated,
)
from feast_anchor.transforms.scoring import UserVectors
from shop import SPECS

USERS = [f"u{number:02d}" for number in range(23)]
AS_OF = 1_000


@dataclass
class Fragile:
    """Scores a user with the length of its texts, and fails as soon as it reads a bad one."""

    bad: frozenset[str] = frozenset()
    error: type[Exception] = ValueError
    calls: int = 0

    def score(self, histories: Sequence[History], texts: Sequence[str]) -> Iterator[UserVectors]:
        """Vectors of one number; texts are read before users, as the real scorer does."""
        self.calls += 1
        if self.bad & set(texts):
            raise self.error("a text cannot be read")
        for one in histories:
            said = " ".join(texts[number] for number in one.text)
            value = np.nan if "nan" in said else float(len(said))
            vectors = np.full((1, 1, 1), value, dtype=np.float32)
            yield UserVectors(one.user, np.array([AS_OF]), one.times[-1:], vectors)


def rows_of(texts: dict[str, list[str]]) -> pa.Table:
    """Two events per text, one of them too late, and one row that nobody can use."""
    rows = [
        {"user": user, "event_timestamp": at, "modality": 0, "text": text, "amount": 1.0}
        for user, own in texts.items()
        for text in own
        for at in (5, AS_OF + 5)
    ]
    broken = {"user": "u00", "event_timestamp": 5, "modality": 0, "rejected": "no_text"}
    return pa.Table.from_pylist([*rows, broken], ROW_SCHEMA)


def built(rows: pa.Table) -> ShardHistories:
    """Their histories as of one instant."""
    return build_histories(rows, [AS_OF], SPECS)


@given(poison=st.sets(st.sampled_from(USERS), max_size=6))
def test_only_the_users_that_fail_are_rejected(poison: set[str]) -> None:
    """Everybody else has the vector of an undisturbed shard, in the same order."""
    texts = {user: [f"tea {user}", "shared"] for user in USERS}
    good = built(rows_of(texts))
    undisturbed, nobody = score_isolated(Fragile(), good.histories, good.texts, most=0.5)
    assert nobody == {}
    scorer = Fragile(frozenset(f"tea {user}" for user in poison))
    scored, found = score_isolated(scorer, good.histories, good.texts, most=0.5)
    assert found == dict.fromkeys(poison, SCORING_FAILED)
    assert [(one.user, one.vectors.tobytes()) for one in scored] == [
        (one.user, one.vectors.tobytes()) for one in undisturbed if one.user not in poison
    ]
    assert scorer.calls <= 1 + 12 * len(poison)  # halves, not one by one


def test_a_vector_that_is_not_a_number_is_poison_too() -> None:
    """Nothing that is not finite is ever written."""
    shard = built(rows_of({"u01": ["nan"], "u02": ["tea"]}))
    scored, found = score_isolated(Fragile(), shard.histories, shard.texts, most=1.0)
    assert [one.user for one in scored] == ["u02"]
    assert found == {"u01": VECTOR_NOT_FINITE}


def test_a_poison_users_events_become_dead_letters_and_the_books_balance() -> None:
    """Used, late and over-budget events alike; rejected rows of before stay what they were."""
    texts = {"u00": ["tea"], "u01": [f"soap {n}" for n in range(40)], "u02": ["bread"]}
    rows = rows_of(texts)
    before = built(rows)
    assert before.books.events_over_budget > 0
    after = reject(before, rows, {"u01": SCORING_FAILED})
    assert after.books.balances()
    assert after.books.events_rejected == 1 + 80
    assert (after.books.events_used, after.books.events_outside) == (2, 2)
    assert after.books.events_over_budget == 0
    assert [one.user for one in after.histories] == ["u00", "u02"]
    assert after.rejected_users == {"u01": SCORING_FAILED}
    reasons = after.rejected_events["rejected"].to_pylist()
    assert sorted(set(reasons)) == ["no_text", SCORING_FAILED]
    assert after.rejections == {
        "event:no_text": 1,
        f"event:{SCORING_FAILED}": 80,
        f"user:{SCORING_FAILED}": 1,
    }


def test_labels_of_a_poison_user_are_rejected_with_it() -> None:
    """A label that gets no row has a reason."""
    rows = rows_of({"u00": ["tea"], "u01": ["soap"]})
    before = build_histories(rows, {"u00": [AS_OF], "u01": [2, AS_OF]}, SPECS)
    assert (before.books.labels_in, before.books.labels_rejected) == (3, 1)
    after = reject(before, rows, {"u01": SCORING_FAILED})
    assert after.books.balances()
    assert after.rejected_labels == (
        ("u01", 2, "no_event_before_as_of"),
        ("u01", AS_OF, SCORING_FAILED),
    )


def test_who_fails_once_gets_another_try() -> None:
    """A moment's trouble is no reason to lose a user; the order stays."""
    shard = built(rows_of({user: [user] for user in USERS}))
    bad = frozenset({"u07"})

    class Recovering(Fragile):
        def score(self, histories: Sequence[History], texts: Sequence[str]) -> Any:
            self.bad = bad if self.calls < 7 else frozenset()
            return super().score(histories, texts)

    scored, found = score_isolated(Recovering(), shard.histories, shard.texts, most=0.5)
    assert found == {}
    assert [one.user for one in scored] == [one.user for one in shard.histories]


@pytest.mark.parametrize("said", ["bad_alloc", "Failed to allocate memory", "CUDA failure 2"])
def test_what_onnx_runtime_says_of_the_machine_is_not_blamed_on_users(said: str) -> None:
    """Its errors have one class; a lack of memory shows in the words alone."""
    shard = built(rows_of({"u01": ["tea"]}))

    class Failing(Fragile):
        def score(self, histories: Sequence[History], texts: Sequence[str]) -> Any:
            raise RuntimeError(said)

    with pytest.raises(RuntimeError, match=said):
        score_isolated(Failing(), shard.histories, shard.texts, most=1.0)


@pytest.mark.parametrize("error", [OSError, MemoryError, BundleError])
def test_trouble_of_the_machine_is_not_blamed_on_users(error: type[Exception]) -> None:
    """A full disk or a broken bundle is raised as it is, at once."""
    shard = built(rows_of({user: [user] for user in USERS}))
    scorer = Fragile(frozenset({"u07"}), error)
    with pytest.raises(error, match="a text cannot be read"):
        score_isolated(scorer, shard.histories, shard.texts, most=1.0)
    assert scorer.calls == 1


def test_when_nearly_everybody_fails_it_is_not_the_users() -> None:
    """The shard fails with the cause, instead of rejecting all of its users one by one."""
    shard = built(rows_of({user: [user] for user in USERS}))
    scorer = Fragile(frozenset(USERS))
    with pytest.raises(RunError, match=r"4 users of one shard of 23 cannot be scored.*ValueError"):
        score_isolated(scorer, shard.histories, shard.texts, most=0.1)
