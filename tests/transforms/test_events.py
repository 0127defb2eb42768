from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_anchor.onnx_export.errors import SourceError
from feast_anchor.transforms import parquet_table
from feast_anchor.transforms.events import (
    ROW_SCHEMA,
    EventSource,
    canonical,
    check_source,
    input_snapshot,
    read,
    read_tasks,
)
from feast_anchor.transforms.parquet_table import ParquetPiece, ParquetTable

AT = datetime(2024, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
LATE = 2**62  # Parquet files are read as a whole, whatever the last as-of is
STAMP = pa.timestamp("us", tz="UTC")
BERLIN = ZoneInfo("Europe/Berlin")

GOOD = {"user": "ada", "at": AT, "item": "tea", "shop": "mill", "spend": 2.5}
SCHEMA = pa.schema(
    {
        "user": pa.string(),
        "at": STAMP,
        "item": pa.string(),
        "shop": pa.string(),
        "spend": pa.float64(),
    }
)


def source_at(path: Path | str, **changes: Any) -> EventSource:
    """Visits with an amount, stored at `path`."""
    visits = EventSource(
        "visits", 3, ParquetTable(str(path)), "user", "at", "{item} in {shop}", "spend"
    )
    return replace(visits, **changes)


def table_of(*rows: dict[str, Any], **types: pa.DataType) -> pa.Table:
    """`GOOD` rows with changes, as a table; `types` replaces columns' types."""
    fields = [pa.field(field.name, types.get(field.name, field.type)) for field in SCHEMA]
    return pa.Table.from_pylist([GOOD | row for row in rows], pa.schema(fields))


def read_all(*sources: EventSource) -> pa.Table:
    """Every row of some sources, as a run reads them."""
    tables = [t for task in read_tasks(sources, LATE) for t in read(sources[task.source], task)]
    return pa.concat_tables([ROW_SCHEMA.empty_table(), *tables])


def event_of(table: pa.Table, **source: Any) -> dict[str, Any]:
    """The one row of a table, made canonical."""
    (row,) = canonical(source_at("unused", **source), table).to_pylist()
    return dict(row)


# --- every row becomes one row ---------------------------------------------------------------


def float32(value: float | None) -> np.float32:
    """The nearest float32, infinite beyond its range, NaN for None."""
    with np.errstate(over="ignore"):
        return np.float32(np.nan if value is None else value)


def expected_reason(row: dict[str, Any]) -> str | None:
    """The documented order of reasons, one row at a time in plain Python."""
    if not row["user"]:
        return "null_key"
    if row["at"] is None:
        return "null_timestamp"
    if not np.isfinite(float32(row["spend"])):
        return "amount_not_finite"
    if not (row["item"] or "").strip() and not (row["shop"] or "").strip():
        return "no_text"
    return None


TEXTS = st.none() | st.sampled_from(["", " ", "tea", "Grüße 🫖", "{item}", "unknown", "x" * 300])
ROWS = st.fixed_dictionaries(
    {
        "user": st.none() | st.sampled_from(["", "ada", "bo", "7", " ", "Ünï"]),
        "at": st.none() | st.datetimes(datetime(1900, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001  # Hypothesis wants naive bounds
        "item": TEXTS,
        "shop": TEXTS,
        "spend": st.none() | st.floats(),
    }
)


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(ROWS, max_size=30), cut=st.integers(0, 30), pick=st.randoms())
def test_every_row_becomes_one_row_with_an_event_or_a_reason(
    rows: list[dict[str, Any]], cut: int, pick: Any
) -> None:
    """Whatever is null, empty or not finite, row n out is row n in, used or rejected for the
    first reason that applies.
    """
    pick.shuffle(rows)
    table = pa.Table.from_pylist(rows, SCHEMA)
    pieces = pa.concat_tables([table.slice(0, cut), table.slice(cut)])  # more than one chunk

    out = canonical(source_at("unused"), pieces)

    assert out.schema == ROW_SCHEMA
    assert out["rejected"].to_pylist() == [expected_reason(row) for row in rows]
    assert out["user"].to_pylist() == [row["user"] for row in rows]
    assert out["event_timestamp"].to_pylist() == [row["at"] for row in rows]
    assert set(out["modality"].to_pylist()) <= {3}
    np.testing.assert_array_equal(
        np.array(out["amount"].to_pylist(), dtype=np.float32),
        np.array([float32(row["spend"]) for row in rows], dtype=np.float32),
    )
    for text, row in zip(out["text"].to_pylist(), rows, strict=True):
        words = [row[name] if (row[name] or "").strip() else "unknown" for name in ("item", "shop")]
        both = not any((row[name] or "").strip() for name in ("item", "shop"))
        assert text == (None if both else f"{words[0]} in {words[1]}")


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(ROWS, max_size=40), group=st.integers(1, 7), batch=st.integers(1, 9))
def test_rows_read_from_a_file_reconcile_with_the_rows_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], group: int, batch: int
) -> None:
    """Row groups, read tasks and batches of any size lose and double nothing."""
    path = tmp_path_factory.mktemp("rows") / "visits.parquet"
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, path, row_group_size=group)
    source = source_at(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_table, "_TASK_ROWS", 2 * group)
        patch.setattr(parquet_table, "BATCH_ROWS", batch)
        tasks, found = read_tasks((source,), LATE), read_all(source)

    pieces = [task.piece for task in tasks if isinstance(task.piece, ParquetPiece)]
    groups = [number for piece in pieces for number in piece.row_groups]
    assert groups == list(range(pq.read_metadata(path).num_row_groups))
    assert sum(task.rows for task in tasks) == len(rows)
    assert found["user"].to_pylist() == table["user"].to_pylist()
    assert found["rejected"].null_count == [expected_reason(row) for row in rows].count(None)


def test_tasks_of_several_files_and_sources_keep_their_source(tmp_path: Path) -> None:
    """Each file of each source is read once, under the modality it belongs to."""
    for name in ("visits/a", "visits/b", "coupons"):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table_of({"user": name}), path)
    visits = source_at(tmp_path / "visits", index=0)
    coupons = source_at(tmp_path / "coupons.parquet", index=1, amount=None)
    found = read_all(visits, coupons)
    assert found["user"].to_pylist() == ["visits/a", "visits/b", "coupons"]
    assert found["modality"].to_pylist() == [0, 0, 1]


def test_an_empty_table_is_fine_and_gives_no_rows(tmp_path: Path) -> None:
    """A table with columns but no rows passes the check and reads as nothing."""
    pq.write_table(SCHEMA.empty_table(), tmp_path / "visits.parquet")
    source = source_at(tmp_path / "visits.parquet")
    check_source(source)
    assert read_all(source).num_rows == 0


# --- finding files ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two Parquet files, one of them a level deeper, beside something else."""
    (tmp_path / "deep").mkdir()
    for name in ("b.parquet", "deep/a.parquet"):
        pq.write_table(table_of({}), tmp_path / name)
    (tmp_path / "_SUCCESS").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", ["b.parquet", "deep/a.parquet"]),
        ("b.parquet", ["b.parquet"]),
        ("*.parquet", ["b.parquet"]),
        ("**/*.parquet", ["b.parquet", "deep/a.parquet"]),
        ("deep", ["deep/a.parquet"]),
    ],
)
def test_a_source_is_a_file_a_folder_or_a_glob(folder: Path, path: str, found: list[str]) -> None:
    """All Parquet files behind a path are found, sorted, and nothing else."""
    assert ParquetTable(str(folder / path)).files() == [folder / name for name in found]


@pytest.mark.parametrize("path", ["c.parquet", "*.csv", "empty"])
def test_a_path_without_parquet_files_is_refused(folder: Path, path: str) -> None:
    """The error names the modality and the path and says what a path may be."""
    (folder / "empty").mkdir()
    message = f"modality 'visits': no Parquet file at .*{path.replace('*', '.')}.* a glob"
    with pytest.raises(SourceError, match=message):
        check_source(source_at(folder / path))


def test_what_a_dead_export_left_in_a_folder_is_not_read(tmp_path: Path) -> None:
    """Hidden names are passed over below a folder, and read when they are named by hand."""
    root = tmp_path / "_lake" / ".v1"  # names above the folder that was given do not count
    left = ["_temporary/0/part-0.parquet", ".tmp.parquet", "_delta_log/1.parquet"]
    whole = ["_day=7/a.parquet", "b.parquet"]
    for name in (*left, *whole):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of({}), root / name)
    assert ParquetTable(str(root)).files() == [root / name for name in whole]
    for name in left:
        assert ParquetTable(str(root / name)).files() == [root / name]
    hidden = root / "_temporary"
    assert ParquetTable(str(hidden / "*" / "*.parquet")).files() == [root / left[0]]


def test_a_file_below_a_folder_with_brackets_is_found(tmp_path: Path) -> None:
    """Brackets in the name of an existing file are not taken for a glob."""
    path = tmp_path / "run[1]" / "visits.parquet"
    path.parent.mkdir()
    pq.write_table(table_of({}), path)
    assert ParquetTable(str(path)).files() == [path]


def test_the_input_snapshot_changes_with_files_and_declaration(folder: Path) -> None:
    """A new, changed or removed file and another template are another input; a reread is not."""
    sources = (source_at(folder),)
    first = input_snapshot(sources, LATE)
    assert input_snapshot(sources, LATE) == first
    assert input_snapshot((source_at(folder, text="{item}"),), LATE) != first
    pq.write_table(table_of({}, {}), folder / "b.parquet")
    second = input_snapshot(sources, LATE)
    (folder / "b.parquet").unlink()
    third = input_snapshot(sources, LATE)
    assert len({first, second, third}) == 3


# --- what is refused, and how ----------------------------------------------------------------


def refused(path: Path, table: pa.Table, **source: Any) -> str:
    """The message that a table is refused with."""
    pq.write_table(table, path / "visits.parquet")
    with pytest.raises(SourceError) as caught:
        check_source(source_at(path / "visits.parquet", **source))
    assert str(path / "visits.parquet") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("column", ["user", "at", "item", "shop", "spend"])
def test_a_missing_column_is_refused(tmp_path: Path, column: str) -> None:
    """The error names the file, the column, the columns there are and the fix."""
    message = refused(tmp_path, table_of({}).drop_columns(column))
    others = [name for name in SCHEMA.names if name != column]
    assert f"has no column ['{column}']; it has {others}" in message
    assert "Correct the feature view's schema, field mapping or template" in message


def test_a_column_missing_from_one_file_of_many_is_refused(folder: Path) -> None:
    """Every file is looked at, not only the first."""
    pq.write_table(table_of({}).drop_columns("shop"), folder / "deep" / "z.parquet")
    with pytest.raises(SourceError, match=r"deep/z.parquet has no column \['shop'\]"):
        check_source(source_at(folder))


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("user", [1.0], "double, expected a string or integer entity key"),
        ("user", [b"ada"], "binary, expected a string or integer entity key"),
        ("user", [True], "bool, expected a string or integer entity key"),
        ("at", ["2024-01-01T00:00:00Z"], "string, expected a timestamp with a time zone"),
        ("at", [AT.date()], "expected a timestamp with a time zone"),
        ("at", [1_700_000_000], "int64, expected a timestamp with a time zone"),
        ("spend", ["2.50"], "string, expected a number because it is declared as the amount"),
        ("spend", [True], "bool, expected a number because it is declared as the amount"),
        ("item", [["tea"]], "expected text, a number, a boolean or a time because the template"),
        ("item", [b"tea"], "expected text, a number, a boolean or a time because the template"),
        ("item", [{"a": 1}], "expected text, a number, a boolean or a time because the template"),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(
    tmp_path: Path, column: str, values: list[Any], says: str
) -> None:
    """The error names modality, file, column and type, and says what was expected."""
    position = SCHEMA.get_field_index(column)
    message = refused(tmp_path, table_of({}).set_column(position, column, pa.array(values)))
    assert message.startswith("modality 'visits': ")
    assert f"column {column!r} is " in message
    assert says in message


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_naive_timestamp_is_refused(unit: str, tmp_path: Path) -> None:
    """Without a declared zone nobody knows the instant; the error gives both ways out."""
    message = refused(tmp_path, table_of({"at": AT.replace(tzinfo=None)}, at=pa.timestamp(unit)))
    assert "column 'at' is timestamp[" in message
    assert "without a time zone; write it as timestamp[us, tz=UTC]" in message
    assert "Modality(..., timezone='UTC')" in message


@pytest.mark.parametrize("content", [b"", b"user,at\nada,2024\n", b"PAR1 cut off"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    """A CSV, an empty or a truncated file is named in the error."""
    path = tmp_path / "visits.parquet"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="visits.parquet cannot be read as Parquet"):
        check_source(source_at(path))


# --- time ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "lost"), [("s", 123456), ("ms", 456), ("us", 0), ("ns", 0)], ids=lambda v: str(v)
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "+05:30"])
def test_an_aware_timestamp_keeps_its_instant(unit: str, lost: int, zone: str) -> None:
    """Any unit and zone arrives as the same instant in UTC microseconds."""
    instant = AT - timedelta(microseconds=lost)
    row = event_of(table_of({"at": instant}, at=pa.timestamp(unit, zone)))
    assert row["event_timestamp"] == instant
    assert row["event_timestamp"].utcoffset() == timedelta(0)


def test_nanoseconds_are_cut_to_the_microsecond_before() -> None:
    """Cutting never moves an event to a later microsecond, and refuses no row."""
    table = table_of({}, at=pa.timestamp("ns", "UTC"))
    stamps = pa.array([1_700_000_000_123_456_999], pa.int64()).cast(pa.timestamp("ns", "UTC"))
    out = canonical(source_at("unused"), table.set_column(1, "at", stamps))
    assert out["event_timestamp"].cast(pa.int64()).to_pylist() == [1_700_000_000_123_456]
    assert out["rejected"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("wall", "utc"),
    [
        ("2024-01-15T12:00", "2024-01-15T11:00"),  # winter
        ("2024-07-15T12:00", "2024-07-15T10:00"),  # summer
        ("2024-10-27T02:30", "2024-10-27T01:30"),  # shown twice: the later one
        ("2024-03-31T02:30", "2024-03-31T01:00"),  # never shown: when the clock jumped
    ],
)
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_naive_timestamp_is_read_in_the_declared_zone(wall: str, utc: str, unit: str) -> None:
    """Wall-clock time of Berlin becomes UTC, also where the clock is put back or forward."""
    table = table_of({"at": datetime.fromisoformat(wall)}, at=pa.timestamp(unit))
    row = event_of(table, timezone="Europe/Berlin")
    assert row["event_timestamp"] == datetime.fromisoformat(utc).replace(tzinfo=UTC)


@settings(deadline=None, max_examples=60)
@given(wall=st.datetimes(datetime(1996, 1, 1), datetime(2030, 1, 1)))  # noqa: DTZ001  # wall-clock times
def test_a_naive_timestamp_is_never_read_as_earlier_than_it_may_have_been(wall: datetime) -> None:
    """Of the instants that a wall clock may have meant, the latest is taken: no leakage."""
    row = event_of(table_of({"at": wall}, at=pa.timestamp("us")), timezone="Europe/Berlin")
    meant = [wall.replace(tzinfo=BERLIN, fold=fold).astimezone(UTC) for fold in (0, 1)]
    real = [m for m in meant if m.astimezone(BERLIN).replace(tzinfo=None) == wall]
    if real:
        assert row["event_timestamp"] == max(real)
    else:  # a time that the clock skipped
        assert min(meant) <= row["event_timestamp"] <= max(meant)


def test_a_declared_zone_does_not_move_aware_timestamps() -> None:
    """`timezone` is for stamps stored without one, and for these alone."""
    assert event_of(table_of({}), timezone="Europe/Berlin")["event_timestamp"] == AT


# --- keys, amounts, names --------------------------------------------------------------------


TEXT_KEYS, NUMBER_KEYS = [None, "7", "7", "42"], [None, 7, 7, 42]


@pytest.mark.parametrize(
    "keys",
    [
        pa.array(NUMBER_KEYS, pa.int64()),
        pa.array(NUMBER_KEYS, pa.int32()),
        pa.array(NUMBER_KEYS, pa.uint8()),
        pa.array(TEXT_KEYS, pa.string()),
        pa.array(TEXT_KEYS, pa.large_string()),
        pa.array(TEXT_KEYS, pa.string()).dictionary_encode(),
        pa.array(NUMBER_KEYS, pa.int64()).dictionary_encode(),
    ],
    ids=lambda keys: str(keys.type),
)
def test_integer_and_dictionary_keys_become_the_same_text(tmp_path: Path, keys: Any) -> None:
    """The key 7 is one user, however a table stores it; a null stays a rejected row."""
    table = table_of({}, {}, {}, {}).set_column(0, "user", keys)
    pq.write_table(table, tmp_path / "visits.parquet")
    source = source_at(tmp_path / "visits.parquet")
    check_source(source)
    found = read_all(source)
    assert found["user"].to_pylist() == [None, "7", "7", "42"]
    assert found["rejected"].to_pylist() == ["null_key", None, None, None]


def test_a_null_inside_a_dictionary_is_a_null_key() -> None:
    """A valid index that points at a null value is rejected like any null."""
    keys = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array([None, "ada"]))
    table = table_of({}, {}).set_column(0, "user", keys)
    assert canonical(source_at("unused"), table)["rejected"].to_pylist() == ["null_key", None]


@pytest.mark.parametrize(
    ("value", "kind", "amount"),
    [
        (-3, pa.int64(), -3.0),
        (3, pa.uint8(), 3.0),
        (1.5, pa.float32(), 1.5),
        (Decimal("12.50"), pa.decimal128(9, 2), 12.5),
        (Decimal("0.10"), pa.decimal128(9, 2), float(np.float32(0.1))),
        (2**40 + 1, pa.int64(), float(2**40)),  # float32's nearest
    ],
)
def test_amounts_of_any_number_type_are_float32(
    value: Any, kind: pa.DataType, amount: float
) -> None:
    """Integers, decimals and floats are all amounts; what float32 cannot hold is rounded."""
    row = event_of(table_of({"spend": value}, spend=kind))
    assert (row["amount"], row["rejected"]) == (amount, None)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf"), 1e39])
def test_an_amount_that_is_not_finite_is_rejected(value: float | None) -> None:
    """Null, NaN, infinite and beyond float32 are one reason."""
    assert event_of(table_of({"spend": value}))["rejected"] == "amount_not_finite"


def test_without_a_declared_amount_the_column_is_not_looked_at() -> None:
    """A NaN in a column that nobody declared rejects nothing."""
    row = event_of(table_of({"spend": float("nan")}), amount=None)
    assert (row["amount"], row["rejected"]) == (0.0, None)


def test_a_field_mapping_reads_the_stored_names(tmp_path: Path) -> None:
    """Columns declared under one name and stored under another are found, checked and read."""
    stored = ["cust", "ts", "sku", "store", "eur"]
    table = table_of({}).rename_columns(stored)
    pq.write_table(table.append_column("other", pa.array([0])), tmp_path / "visits.parquet")
    mapping = tuple(zip(stored, SCHEMA.names, strict=True))
    source = source_at(tmp_path / "visits.parquet", field_mapping=mapping)
    check_source(source)
    (row,) = read_all(source).to_pylist()
    assert (row["user"], row["event_timestamp"], row["text"]) == ("ada", AT, "tea in mill")
    assert "has no column ['eur']" in refused(
        tmp_path, table.drop_columns("eur"), field_mapping=mapping
    )


def test_one_column_may_serve_two_purposes(tmp_path: Path) -> None:
    """An amount that the template also reads is read once and used twice."""
    pq.write_table(table_of({}), tmp_path / "visits.parquet")
    source = source_at(tmp_path / "visits.parquet", text="{user} spent {spend}")
    check_source(source)
    (row,) = read_all(source).to_pylist()
    assert (row["text"], row["amount"]) == ("ada spent 2.5", 2.5)


# --- hive partitions -------------------------------------------------------------------------


def partitioned(folder: Path, *names: str, **columns: Any) -> ParquetTable:
    """One `GOOD` row below each folder."""
    for number, name in enumerate(names):
        path = folder / name / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table_of({"user": f"u{number}", **columns}), path)
    return ParquetTable(str(folder))


def texts_of(source: EventSource) -> list[str | None]:
    """The text of every row of a checked source."""
    check_source(source)
    texts: list[str | None] = read_all(source)["text"].to_pylist()
    return texts


@pytest.mark.parametrize(
    "values",
    [
        ["7", "-12", "0"],
        ["007", "7", "8"],
        ["2017-01-01", "2017-12-31", "2018-01-01"],
        ["2017-01-01", "2017-13-01", "2017-01-02"],
        ["1", "one", "2017-01-01"],
        ["Köln", "a b", "50%"],
        ["999999999999999999", "9999999999999999999999", "0"],
    ],
)
def test_a_hive_partition_reads_as_its_folder_says(tmp_path: Path, values: list[str]) -> None:
    """Whatever type a partition column is given, its text is what stands in the folder's name."""
    names = [f"x={value.replace('%', '%25').replace(' ', '%20')}" for value in values]
    table = partitioned(tmp_path, *names)
    source = source_at("unused", table=table, text="{x}", amount=None)
    assert sorted(map(str, texts_of(source))) == sorted(values)


def test_hive_partitions_may_be_keys_and_amounts_and_null(tmp_path: Path) -> None:
    """Integers in folders are integers; Hive's own name for null is one; the deepest folder wins,
    and a column of the file before any folder.
    """
    table = partitioned(
        tmp_path, "user=x/shop_id=9/shop_id=7", "shop_id=__HIVE_DEFAULT_PARTITION__"
    )
    source = source_at("unused", table=table, key="shop_id", key_type="int64", amount="shop_id")
    check_source(source)
    rows = read_all(replace(source, text="{user}")).to_pylist()
    assert [(row["user"], row["rejected"]) for row in rows] == [(None, "null_key"), ("7", None)]
    assert [row["text"] for row in rows] == ["u1", "u0"]
    assert rows[1]["amount"] == 7.0


def test_a_partition_of_dates_as_timestamp_is_the_last_instant_of_the_day(tmp_path: Path) -> None:
    """An event known to the day alone is not seen before that day is over, in its own zone."""
    table = partitioned(tmp_path, "dt=2024-03-31", "dt=2024-10-27")
    source = source_at("unused", table=table, timestamp="dt", text="{dt} {item}")
    with pytest.raises(SourceError, match="'dt' is date32.* without a time zone"):
        check_source(source)
    source = replace(source, timezone="Europe/Berlin")
    assert texts_of(source) == ["2024-03-31 tea", "2024-10-27 tea"]
    ends = [datetime(2024, 4, 1, tzinfo=BERLIN), datetime(2024, 10, 28, tzinfo=BERLIN)]
    stamps = read_all(source)["event_timestamp"].to_pylist()
    assert stamps == [end.astimezone(UTC) - timedelta(microseconds=1) for end in ends]


def test_a_partition_that_one_file_lacks_is_a_missing_column(tmp_path: Path) -> None:
    """A file outside the partitioned folders is named."""
    table = partitioned(tmp_path, "x=1", "plain")
    with pytest.raises(SourceError, match=r"plain/part.parquet has no column \['x'\]"):
        check_source(source_at("unused", table=table, text="{x}"))
