"""What the model reads of labelled users: each history cut strictly before its own as-of.

The rule: a label's reading is what a run would have read for that user at that instant, through the
same functions, so a prompt is tuned on what it will be served with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_anchor.onnx_export.bundle import Bundle
from feast_anchor.onnx_export.inputs import Moment, Numbers
from feast_anchor.onnx_export.states import Reading
from feast_anchor.transforms.events import ROW_SCHEMA
from feast_anchor.transforms.histories import History, build_histories

Array = np.ndarray[Any, Any]
Row = tuple[str, int]  # user, as-of in microseconds since the epoch, UTC


@dataclass(frozen=True)
class _Found:
    """One user's history, with the distinct texts that it indexes."""

    history: History
    texts: Sequence[str]


def readings_of(bundle: Bundle, events: pa.Table, rows: Sequence[Row]) -> list[Reading | None]:
    """The reading of each row, None where the user has no event before the as-of.

    Args:
        bundle: an opened bundle.
        events: canonical events (`inputs.EVENT_SCHEMA`), in any order.
        rows: users and as-of times; a pair that stands twice is read twice.
    """
    wanted: dict[str, set[int]] = {}
    for user, as_of in rows:
        wanted.setdefault(user, set()).add(as_of)
    found = list(_histories(bundle, events, wanted))
    texts = sorted({text for one in found for text in one.texts})
    vectors = bundle.encode_texts(texts)  # [N, E]
    place = {text: row for row, text in enumerate(texts)}
    is_table = np.array([spec.kind == "table" for spec in bundle.manifest.modalities])
    readings: dict[Row, Reading] = {}
    for one in found:
        own = vectors[[place[text] for text in one.texts]]
        for reading, as_of in _cuts(one, own, is_table):
            readings[reading.user, as_of] = reading
    return [readings.get(row) for row in rows]


def _histories(bundle: Bundle, events: pa.Table, wanted: dict[str, set[int]]) -> Iterator[_Found]:
    """One user at a time, because each has as-of times of its own."""
    known = pc.is_in(events.column("user"), value_set=pa.array(list(wanted), pa.string()))
    own = events.filter(known).sort_by("user")
    own = own.append_column(ROW_SCHEMA.field("rejected"), pa.nulls(own.num_rows, pa.string()))
    own = own.cast(ROW_SCHEMA).combine_chunks()
    users = np.asarray(own.column("user"), dtype=object)
    changes = np.flatnonzero(users[1:] != users[:-1]) + 1
    for start, end in pairwise([0, *changes.tolist(), len(users)]):
        if end > start:
            part, times = own.slice(start, end - start), sorted(wanted[users[start]])
            built = build_histories(part, times, bundle.manifest.modalities)
            yield from (_Found(history, built.texts) for history in built.histories)


def _cuts(found: _Found, vectors: Array, is_table: Array) -> Iterator[tuple[Reading, int]]:
    """The readings of one history, each with its as-of; vectors of its texts."""
    history = found.history
    for cut in history.cuts:
        at = cut.positions
        times, modality = history.times[at], history.modality[at]
        numbers = Numbers.of(times, history.amounts[at], is_table[modality])
        for as_of in cut.as_of:
            moment = Moment.of(numbers.clock, len(at), as_of)
            yield (
                Reading(
                    user=history.user,
                    texts=tuple(found.texts[number] for number in history.text[at].tolist()),
                    vectors=vectors[history.text[at]],
                    features=numbers.features,
                    modality=modality,
                    days=numbers.days,
                    now=moment.now,
                    context=moment.context,
                ),
                as_of,
            )
