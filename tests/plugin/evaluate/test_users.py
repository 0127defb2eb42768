"""Who is reported, who is trained on, and which labels count."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.plugin.demo.labels import is_held_out
from feast_anchor.plugin.evaluate.config import load_config
from feast_anchor.plugin.evaluate.users import check_classes, divide, part_of, read_labels
from plugin.evaluate.conftest import CUT, EARLIER, TOO_LATE, WriteEvaluation, labels_table

KEY = "shopper_id"


def test_parts_have_their_shares_and_depend_on_split_and_key_alone(
    evaluation: WriteEvaluation,
) -> None:
    """Of 5,000 keys 40 % are test and 20 % validation; another split divides anew."""
    config = load_config(evaluation())
    users = [f"u{n}" for n in range(5000)]
    parts = np.array([part_of(user, 0, config) for user in users])
    assert abs((parts == "test").mean() - 0.4) < 0.03
    assert abs((parts == "validation").mean() - 0.2) < 0.03
    again = np.array([part_of(user, 1, config) for user in users])
    assert abs(((parts == "test") & (again == "test")).mean() - 0.16) < 0.03
    assert part_of("u7", 0, config) == parts[7]


def test_split_0_reports_the_users_that_the_demo_holds_out(evaluation: WriteEvaluation) -> None:
    """Its test part is the labels table's `held_out`; the test part of split 1 is another."""
    config = load_config(evaluation())
    users = [str(number) for number in range(2000)]
    held_out = [is_held_out(user) for user in users]
    assert [part_of(user, 0, config) == "test" for user in users] == held_out
    assert [part_of(user, 1, config) == "test" for user in users] != held_out


def test_reported_users_are_held_out_and_so_is_the_test_part_while_settings_are_chosen(
    evaluation: WriteEvaluation,
) -> None:
    """`validation` reports validation users and trains on neither them nor the test users."""
    config = load_config(evaluation())
    users = {f"u{n}" for n in range(200)}
    test, unseen = divide(users, config, "test")
    validation, both = divide(users, config, "validation")
    assert test == unseen
    assert both == test | validation
    assert not test & validation


def test_labels_are_those_at_the_cut_and_earlier_ones_only_if_their_window_is_over(
    evaluation: WriteEvaluation,
) -> None:
    """Two earlier as-of times end by the cut; the third looks past it and is not read."""
    config = load_config(evaluation())
    at_cut, earlier = read_labels(config, KEY)
    assert at_cut.as_of == CUT
    assert [moment.as_of for moment in earlier] == list(EARLIER)
    assert TOO_LATE + config.horizon > CUT
    rows = labels_table()
    rows = rows.filter(pc.equal(rows.column("event_timestamp"), pa.scalar(CUT)))
    wanted = {row[KEY]: {True: 1, False: 0, None: -1}[row["tea"]] for row in rows.to_pylist()}
    assert dict(zip(at_cut.users, at_cut.y[0].tolist(), strict=True)) == wanted


def without_zone(table: pa.Table) -> pa.Table:
    naive = table.column("event_timestamp").cast(pa.timestamp("us"))
    return table.set_column(1, "event_timestamp", naive)


def moved(table: pa.Table) -> pa.Table:
    later = pc.add(table.column("event_timestamp"), pa.scalar(timedelta(days=1)))
    return table.set_column(1, "event_timestamp", later)


def as_numbers(table: pa.Table) -> pa.Table:
    return table.set_column(2, "tea", table.column("tea").cast(pa.int8()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["many"]), r"no column \['many'\]"),
        (lambda t: t.drop_columns([KEY]), rf"no column \['{KEY}'\]"),
        (without_zone, "expected a timestamp with a time zone"),
        (moved, "no label at the cut 2024-02-15T00:00:00Z; its rows stand at 2024-01-21T"),
        (as_numbers, "is int8, expected bool"),
        (lambda t: pa.concat_tables([t, t]), "two rows for shopper_id"),
    ],
)
def test_a_wrong_labels_table_is_named(
    evaluation: WriteEvaluation, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    """What is wrong with the table is said before anything is trained."""
    config = load_config(evaluation(labels=change(labels_table())))
    with pytest.raises(SourceError, match=message):
        read_labels(config, KEY)


def test_a_missing_table_says_what_it_should_hold(evaluation: WriteEvaluation) -> None:
    """No file: key, time and boolean columns are what is expected."""
    config = load_config(evaluation())
    config.labels.unlink()
    with pytest.raises(SourceError, match="'shopper_id', 'event_timestamp' and one boolean"):
        read_labels(config, KEY)


def test_a_scenario_of_one_class_and_an_empty_part_are_refused(evaluation: WriteEvaluation) -> None:
    """Ten users of each class are the least; a part without users says which share to raise."""
    config = load_config(evaluation())
    at_cut, _ = read_labels(config, KEY)
    check_classes(config, at_cut, "test")
    few = at_cut.take([user for user, y in zip(at_cut.users, at_cut.y[1], strict=True) if y == 1])
    with pytest.raises(SourceError, match="'active' has .* and 0 negative users in the test part"):
        check_classes(config, few, "test")
    with pytest.raises(
        SourceError, match="no user of the validation part .* raise validation_share"
    ):
        check_classes(config, at_cut.take([]), "validation")
