"""What is asked about a profile table: its columns, by name."""

from __future__ import annotations

import numpy as np

from .manifest import ModalitySpec
from .questions import Maker
from .topics import field_values

_MOST_VALUES = 20  # a column with more is a number or an identifier, not a class


def ask_about_profile(maker: Maker, index: int, spec: ModalitySpec) -> None:
    """What a profile row says, column by column; rows after the as-of are not known."""
    rows = np.flatnonzero(maker.events.modality == index)
    newest = np.searchsorted(rows, maker.now) - 1  # position in rows of the last one before
    known = newest >= 0
    known &= rows[newest] >= maker.first if len(rows) else False
    if not known.any():
        return
    texts = [maker.events.texts[t] for t in maker.events.text[rows[newest[known]]]]
    parsed = [field_values(spec.text, text) for text in texts]
    for column in sorted({name for values in parsed for name in values}):
        name = column.replace("_", " ")
        values = [f"{name} {entry.get(column, '')}" for entry in parsed]
        distinct, codes = np.unique(values, return_inverse=True)
        if len(distinct) > _MOST_VALUES:
            continue
        which = np.full(len(maker.now), -1)
        which[known] = codes
        asked = (
            f"what is the {name} of this {maker.entity}?",
            f"{spec.name}: {name}?",
            f"which {name} does this {maker.entity} have?",
        )
        maker.ask("profile", asked, distinct.tolist(), which)
