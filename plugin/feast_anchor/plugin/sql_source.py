"""`SqlSource`: a table or view of any database that SQLAlchemy reads, as a Feast data source.

What is stored in a registry is the declaration. Secrets are not part of it: the URL is a template
whose variables are looked up in the environment of whoever opens a connection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from feast import ValueType
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import RepoConfig
from feast.type_map import pa_to_feast_value_type

from feast_anchor.onnx_export.errors import SourceError, SpecError
from feast_anchor.transforms.sql_table import SqlTable


class SqlSource(DataSource):
    """An event table in a SQL database, for the feature view behind a `Modality`.

    Args:
        name: unique in the project.
        url: SQLAlchemy URL without a password: "${EVENTS_DB}", or
            "postgresql+psycopg://reader:${EVENTS_PASSWORD}@db/shop". `$VAR` and `${VAR}` are
            looked up when a connection is opened. A relative SQLite path starts at the repo.
        table: table or view: "orders" or "schema.orders".
        timestamp_field: column of the event timestamp.
        field_mapping: name in the table -> name used in views and templates.
        partition_column: integer column whose ranges are read side by side.
        partitions: how many ranges; 1 reads the table in one piece.
        created_timestamp_column, description, tags, owner: as in any Feast source.

    Raises:
        SpecError: no URL, a password written into it, no timestamp, or partitions without a column.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        table: str,
        timestamp_field: str,
        field_mapping: dict[str, str] | None = None,
        partition_column: str | None = None,
        partitions: int = 1,
        created_timestamp_column: str = "",
        description: str = "",
        tags: dict[str, str] | None = None,
        owner: str = "",
    ) -> None:
        super().__init__(
            name=name,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping,
            description=description,
            tags=tags,
            owner=owner,
        )
        self.url = url
        self.table = table
        self.partition_column = partition_column
        self.partitions = partitions
        _check(self)

    def reader(self, repo: Path) -> SqlTable:
        """How the table is read. Raises `SpecError` for a URL that cannot be stored."""
        return SqlTable(
            self.url, self.table, self.partition_column, self.partitions, str(repo.absolute())
        )

    def source_type(self) -> Any:
        """A source that Feast knows by its class."""
        return DataSourceProto.CUSTOM_SOURCE

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> SqlSource:
        """Read a registry's entry."""
        return SqlSource(
            name=data_source.name,
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            field_mapping=dict(data_source.field_mapping),
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
            **json.loads(data_source.custom_options.configuration),
        )

    def _to_proto_impl(self) -> DataSourceProto:
        configuration = json.dumps(self._configuration()).encode()
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{__name__}.{type(self).__name__}",
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
            custom_options=DataSourceProto.CustomSourceOptions(configuration=configuration),
        )

    def _configuration(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "table": self.table,
            "partition_column": self.partition_column,
            "partitions": self.partitions,
        }

    def validate(self, config: RepoConfig) -> None:
        """What `feast apply` asks: the table is there and has its timestamp.

        `feast apply --skip-source-validation` needs no database.
        """
        names = [name for name, _ in self.get_table_column_names_and_types(config)]
        if self.timestamp_field not in names:
            raise SourceError(
                f"source {self.name!r}: table {self.table!r} has no column "
                f"{self.timestamp_field!r}, its timestamp_field; it has {names}"
            )

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        """Feast's type of an Arrow type's name."""
        return pa_to_feast_value_type

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        """Columns and the Arrow types that they are read as, from the database."""
        reader = self.reader(Path(config.repo_path or Path.cwd()))
        return [(field.name, str(field.type)) for _, schema in reader.schemas() for field in schema]

    def get_table_query_string(self) -> str:
        """The table's quoted name."""
        parts = self.table.rpartition(".")
        return ".".join('"' + part.replace('"', '""') + '"' for part in parts[::2] if part)

    def __eq__(self, other: object) -> bool:
        same: bool = super().__eq__(other)  # type: ignore[no-untyped-call]  # Feast's has no types
        return (
            same
            and isinstance(other, SqlSource)
            and self._configuration() == other._configuration()
        )

    def __hash__(self) -> int:
        return hash((self.name, self.timestamp_field))


def _check(source: SqlSource) -> None:
    if not source.timestamp_field:
        raise SpecError(
            f"source {source.name!r} has no timestamp_field; say which column holds the event "
            "timestamp"
        )
    if source.partitions < 1 or (source.partitions > 1 and source.partition_column is None):
        raise SpecError(
            f"source {source.name!r}: partitions={source.partitions!r} with partition_column="
            f"{source.partition_column!r}; expected at least 1, and an integer column to cut by"
        )
    source.reader(Path.cwd())  # checks the URL
