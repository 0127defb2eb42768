"""Demo data: one set of Parquet tables, from a seeded generator or from Complete Journey.

Rule: whoever reads the folder cannot tell, and need not know, which maker wrote it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from feast_anchor.plugin.demo.complete_journey import convert
from feast_anchor.plugin.demo.evaluation_labels import write_evaluation_labels
from feast_anchor.plugin.demo.labels import SCENARIO_LABELS, write_labels
from feast_anchor.plugin.demo.marketplace import generate
from feast_anchor.plugin.demo.ranking import write_household_stats
from feast_anchor.plugin.demo.tables import CUT, HORIZON, SCHEMAS, check_cut, table_path

__all__ = ["CUT", "HORIZON", "SCENARIO_LABELS", "SCHEMAS", "make_tables", "table_path"]


def make_tables(
    out: Path, source: Path | None, users: int = 2000, seed: int = 7, cut: datetime = CUT
) -> dict[str, int]:
    """Write all seven demo tables into `out`; returns table name -> rows.

    `source` is the raw Complete Journey folder; without one, `users` households are generated
    from `seed`. `cut` is a tz-aware instant: labels look at what follows it. Raises SpecError for
    a naive cut or fewer than one user, SourceError for raw files that are missing or incomplete.
    """
    check_cut(cut)
    if source is None:
        generate(out, users=users, seed=seed)
    else:
        convert(source, out)
    write_household_stats(out, cut)
    write_evaluation_labels(out, cut)
    write_labels(out, cut)
    return {name: pq.read_metadata(table_path(out, name)).num_rows for name in SCHEMAS}
