"""Vectors of two embedding spaces never meet under one name, nor scores of two meanings.

A view's offline folder may hold rows of one fingerprint per field only. Before a run writes, and
when `feast apply` changes a view, the fields and fingerprints that the folder's parts carry in
their Parquet schema are compared with those the view now declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FileSource, RepoConfig
from feast.data_format import ParquetFormat

from feast_anchor.onnx_export.errors import SpaceError
from feast_anchor.transforms.files import replace_file
from feast_anchor.transforms.job import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ViewRun
from feast_anchor.transforms.manifests import part_rows

from .catalog import Catalog, SpaceRecord
from .spec import ViewSpec

EMPTY_RUN = "run-empty"
SPACE = b"space"  # metadata of a field whose values belong to an embedding space


def sink_source(*, view: str, path: str, schema: pa.Schema, name: str) -> FileSource:
    """The source over a view's sink folder, which is made ready when Feast validates the source.

    With the local provider `feast apply` calls no engine, but it validates every source. Only this
    object is changed, not its class, which the registry notes by name: others must be able to read
    the registry without this package.
    """
    source = FileSource(
        name=name,
        path=path,
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED_TIMESTAMP,
    )
    feasts_own = source.validate

    def validate(config: RepoConfig) -> None:
        """Make the folder ready. Raises `SpaceError` if it holds another embedding space."""
        prepare_sink(view, Path(path), schema)
        feasts_own(config)

    source.validate = validate  # type: ignore[method-assign]  # meant, see above
    return source


def prepare_sink(view: str, folder: Path, schema: pa.Schema) -> None:
    """Make sure a view's sink can be joined: refuse another space, write a typed empty part.

    Feast's offline stores fail on a folder without any file, and people join right after apply.
    They also fail on files that lack a column, so rows from before a scenario was added get it as
    null.

    Raises:
        SpaceError: the folder holds rows of other fields or other embedding spaces.
    """
    empty = folder / EMPTY_RUN / "part-00000.parquet"
    older = [part for part in first_parts(folder) if part != empty]
    grown = [part.parent for part in older if check_part(view, schema, part)]
    for run in grown:
        for part in reversed([*_parts(run)]):  # the first part last: it is the one that is asked
            _add_fields(part, schema)
    if part_rows(empty) is None or not pq.read_schema(empty).equals(schema, check_metadata=True):
        replace_file(empty, lambda path: pq.write_table(schema.empty_table(), path))


def check_catalogue(catalog: Catalog, project: str, run: ViewRun) -> None:
    """Refuse a field whose name already stood for another embedding space in this project.

    The sink may be new, but online rows of the old space may still be served, and rows that were
    joined before are in somebody's training set.
    """
    declared = spaces_of(run.schema)
    scores = {scenario.score.name for scenario in run.scenarios if scenario.score is not None}
    for known in catalog.spaces(view=run.view):
        if known.project != project or declared.get(known.field) in (None, known.fingerprint):
            continue
        other = "scores with other answers or" if known.field in scores else "vectors"
        raise SpaceError(
            f"view {run.view!r}, field {known.field!r}: {other} of another embedding space were "
            f"computed under this name before (query {known.query!r}, bundle "
            f"{known.bundle_digest[:12]}…). Give the new declaration a new view name, such as "
            f"{run.view}_v2"
        )


def space_records(project: str, view: str, spec: ViewSpec) -> list[SpaceRecord]:
    """What the catalogue is told of a view's fields; a score is a field of one number."""
    records: list[SpaceRecord] = []
    for scenario in spec.scenarios:
        column = scenario.as_column()
        fields = [(column.name, column.space, spec.dim)]
        if column.score is not None:
            fields.append((column.score.name, column.score.space, 1))
        records += [
            SpaceRecord(
                fingerprint=space,
                project=project,
                view=view,
                field=name,
                bundle_digest=spec.digest,
                query=scenario.query,
                prompt=scenario.prompt,
                dim=dim,
            )
            for name, space, dim in fields
        ]
    return records


def first_parts(folder: Path) -> list[Path]:
    """One part of every run in a sink folder: all parts of a run have one schema."""
    found = [next(_parts(run), None) for run in folder.glob("run-*")]
    return sorted(part for part in found if part is not None)


def check_part(view: str, schema: pa.Schema, part: Path) -> bool:
    """Refuse a part whose fields or embedding spaces are not those of the view's schema.

    Returns:
        Whether the view has fields that the part has not.
    """
    where = str(part.parent.parent)
    return check_spaces(view, where, spaces_of(pq.read_schema(part)), spaces_of(schema))


def check_spaces(view: str, where: str, stored: dict[str, str], declared: dict[str, str]) -> bool:
    """Refuse fields or embedding spaces that are not those of the view; all by field name.

    Returns:
        Whether the view has fields that are not stored.
    """
    if stored == declared:
        return False
    both = stored.keys() & declared.keys()
    moved = sorted(name for name in both if stored[name] != declared[name])
    added, gone = sorted(declared.keys() - stored.keys()), sorted(stored.keys() - declared.keys())
    if stored and not moved and not gone:
        return True
    raise SpaceError(
        f"view {view!r} would mix embedding spaces in {where}: fields of another model, question "
        f"or answers {moved}, new fields {added}, fields no longer declared {gone}. Give the new "
        f"declaration a new view name, such as {view}_v2, and a sink of its own"
    )


def spaces_of(schema: pa.Schema) -> dict[str, str]:
    """Fingerprint of every field that has one."""
    return {
        field.name: (field.metadata or {})[SPACE].decode()
        for field in schema
        if SPACE in (field.metadata or {})
    }


def _parts(run: Path) -> Iterator[Path]:
    """The whole parts of a run; one that was cut short is for its run to make again."""
    return (part for part in sorted(run.glob("part-*.parquet")) if part_rows(part) is not None)


def _add_fields(part: Path, schema: pa.Schema) -> None:
    rows = pq.read_table(part)
    columns = [
        rows.column(field.name) if field.name in rows.column_names else _nulls(field, len(rows))
        for field in schema
    ]
    table = pa.table(columns, schema=schema)
    replace_file(part, lambda path: pq.write_table(table, path, compression="zstd"))


def _nulls(field: pa.Field, rows: int) -> pa.Array:
    return pa.nulls(rows, field.type)
