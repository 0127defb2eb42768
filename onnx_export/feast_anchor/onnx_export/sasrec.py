"""A sequence encoder that nobody asks anything: the unconditioned rival of our decoder's size.

The rule: it reads what our model reads, no more and no less. Its window, its numbers beside each
event and what it is told about the as-of come from `inputs`; it learns from the events of the
users it is given, before the cut, by predicting each next event (a modality and its text) from
those before it, and a user's vector at an as-of time sees only events strictly before that.

After "Self-Attentive Sequential Recommendation" (arXiv 1808.09781): causal self-attention, learned
positions, output weights tied to the item embedding; full softmax instead of one sampled negative.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from .corpus import Events, read_events
from .inputs import (
    CONTEXT_FEATURES,
    EVENT_FEATURES,
    Clock,
    Floats,
    context_features,
    event_features,
    window,
)
from .manifest import ModalitySpec
from .threads import one_thread

Progress = Callable[[str, float], None]
Item = tuple[int, str]

_PAD, _OTHER = 0, 1  # item ids of nothing, and of a text too rare to be an item
_FIRST = 2


@dataclass(frozen=True)
class SasrecConfig:
    """How large the encoder is and how long it learns."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = 0.3
    items: int = 1500  # most texts that are told apart, the most frequent ones
    epochs: int = 8  # passes over the training users; more only learnt them by heart
    batch: int = 32  # users per step
    learning_rate: float = 1e-3  # AdamW; falls to nothing in a straight line
    seed: int = 0  # of weights, dropout and the order of users


@dataclass(frozen=True)
class Sequences:
    """Histories as padded tensors. B users, T events of the longest."""

    item: Tensor  # [B,T], _PAD behind the last event
    modality: Tensor  # [B,T]
    features: Tensor  # [B,T,F] of `inputs.event_features`


@dataclass(frozen=True)
class _History:
    """One user's window as arrays [T], and what the suffix of our model is told of the as-of."""

    item: list[int]
    modality: list[int]
    features: Floats  # [T,F]
    context: Floats  # [C]


class Sasrec(nn.Module):
    """The encoder and the items it knows; make one with `train_sasrec`."""

    def __init__(
        self, modalities: Sequence[ModalitySpec], items: Sequence[Item], config: SasrecConfig
    ) -> None:
        super().__init__()
        self.modalities, self.config = tuple(modalities), config
        self.place = {item: number for number, item in enumerate(items, _FIRST)}
        wide, longest = config.hidden, sum(spec.max_events for spec in modalities)
        self.item = nn.Embedding(_FIRST + len(items), wide)
        self.modality = nn.Embedding(len(modalities), wide)
        self.position = nn.Embedding(longest, wide)
        self.features = nn.Linear(len(EVENT_FEATURES), wide)
        self.drop = nn.Dropout(config.dropout)
        block = nn.TransformerEncoderLayer(
            wide, config.heads, 4 * wide, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, config.layers, nn.LayerNorm(wide), enable_nested_tensor=False
        )
        for table in (self.item, self.modality, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, rows: Sequences) -> Tensor:
        """Hidden states [B,T,D]; a row sees itself and the rows before it."""
        width = rows.item.shape[1]
        x = self.item(rows.item) + self.modality(rows.modality) + self.features(rows.features)
        x = self.drop(x + self.position.weight[:width])  # [B,T,D]
        mask = nn.Transformer.generate_square_subsequent_mask(width)  # [T,T]
        hidden: Tensor = self.blocks(x, mask=mask, is_causal=True)
        return hidden

    def loss(self, rows: Sequences) -> Tensor:
        """Mean cross-entropy of each next known item given the events before it."""
        target = rows.item[:, 1:]  # [B,T-1]
        known = target >= _FIRST
        hidden = self(rows)[:, :-1][known]  # [N,D]
        logits = hidden @ self.item.weight.T  # [N,V]
        return nn.functional.cross_entropy(logits, target[known])

    def vectors(self, events: pa.Table, users: Sequence[str], as_of: datetime) -> Floats:
        """Users as float32 [users, hidden + context].

        The mean of the hidden states and `inputs.context_features`. The last state alone, as in
        the paper, or beside the mean, served linear probes of validation users less well. Users
        without an event before `as_of` get zeros.
        """
        out = np.zeros((len(users), self.config.hidden + len(CONTEXT_FEATURES)), np.float32)
        found = _histories(events, self.modalities, users, as_of, self.place)
        known = sorted(found, key=lambda row: len(found[row].item))
        with one_thread(), torch.inference_mode():
            self.eval()
            for start in range(0, len(known), self.config.batch):
                part = known[start : start + self.config.batch]
                out[part] = self._pooled([found[row] for row in part])
        return out

    def _pooled(self, histories: Sequence[_History]) -> Floats:
        rows = _padded(histories)
        hidden = self(rows)  # [B,T,D]
        real = (rows.item != _PAD).unsqueeze(-1)  # [B,T,1]
        mean = (hidden * real).sum(1) / real.sum(1)  # [B,D]
        context = np.stack([history.context for history in histories])  # [B,C]
        return np.concatenate((mean.numpy(), context), axis=1)


def train_sasrec(
    events: pa.Table,
    modalities: Sequence[ModalitySpec],
    cut: datetime,
    fit_users: Collection[str],
    config: SasrecConfig | None = None,
    on_progress: Progress | None = None,
) -> Sasrec:
    """Train on the events of `fit_users` before `cut`; the same seed gives the same weights.

    Args:
        events: canonical events (`inputs.EVENT_SCHEMA`), in any order.
        modalities: what the column `modality` indexes.
        cut: tz-aware; nothing at or after it is read.
        fit_users: the users that are learnt from.
        config: sizes, budget and seed.
        on_progress: called with what is being done and the share done, 0 to 1.

    Raises:
        SourceError: none of the users has an event before the cut.
    """
    config = config or SasrecConfig()
    report = on_progress or (lambda message, fraction: None)
    items = _frequent(_read(events, modalities, cut, fit_users), config.items)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Sasrec(modalities, items, config)
        users = sorted(fit_users)
        found = _histories(events, modalities, users, cut, model.place)
        histories = [found[row] for row in sorted(found) if len(found[row].item) > 1]
        _fit(model, histories, report)
    return model.eval()


def _fit(model: Sasrec, histories: Sequence[_History], report: Progress) -> None:
    config, rng = model.config, np.random.default_rng(model.config.seed)
    steps = config.epochs * -(-len(histories) // config.batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    model.train()
    step = 0
    for epoch in range(config.epochs):
        for part in _batches(histories, config.batch, rng):
            rows = _padded(part)
            if not (rows.item[:, 1:] >= _FIRST).any():
                continue  # nothing to predict but rare texts
            loss = model.loss(rows)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            report(
                f"epoch {epoch + 1} of {config.epochs}, loss {float(loss.detach()):.2f}",
                step / steps,
            )


def _batches(
    histories: Sequence[_History], size: int, rng: np.random.Generator
) -> Iterator[list[_History]]:
    """All histories once, those of like length together, in an order that chance decides."""
    order = rng.permutation(len(histories))
    order = order[np.argsort([len(histories[n].item) // 16 for n in order], kind="stable")]
    starts = np.arange(0, len(order), size)
    for start in rng.permutation(starts):
        yield [histories[n] for n in order[start : start + size]]


def _read(
    events: pa.Table, modalities: Sequence[ModalitySpec], as_of: datetime, users: Collection[str]
) -> Events:
    held = pc.invert(
        pc.is_in(events.column("user"), value_set=pa.array(sorted(users), pa.string()))
    )
    others = pc.unique(events.column("user").filter(held)).to_pylist()
    return read_events(events, modalities, as_of, others)


def _frequent(events: Events, limit: int) -> list[Item]:
    """The most frequent (modality, text) pairs that occur at least twice."""
    pairs = zip(events.modality.tolist(), events.text.tolist(), strict=True)
    ranked = sorted(Counter(pairs).items(), key=lambda entry: (-entry[1], entry[0]))
    return [(m, events.texts[text]) for (m, text), count in ranked[:limit] if count > 1]


def _histories(
    events: pa.Table,
    modalities: Sequence[ModalitySpec],
    users: Sequence[str],
    as_of: datetime,
    place: dict[Item, int],
) -> dict[int, _History]:
    """Position in `users` -> what is read of that user; those without events are left out."""
    read = _read(events, modalities, as_of, users)
    instant = round(as_of.timestamp() * 1e6)
    tables = np.array([spec.kind == "table" for spec in modalities])
    spans = {u: slice(*read.starts[n : n + 2]) for n, u in enumerate(read.users)}
    found = {}
    for row, user in enumerate(users):
        if user in spans:
            own = spans[user]
            kept = own.start + window(read.times[own], read.modality[own], instant, modalities)
            found[row] = _history(read, kept, tables[read.modality[kept]], instant, place)
    return found


def _history(
    read: Events,
    kept: np.ndarray[tuple[int], np.dtype[np.int64]],
    is_table: np.ndarray[tuple[int], np.dtype[np.bool_]],
    as_of: int,
    place: dict[Item, int],
) -> _History:
    times, modality = read.times[kept], read.modality[kept].tolist()
    texts = [read.texts[text] for text in read.text[kept]]
    return _History(
        item=[place.get(item, _OTHER) for item in zip(modality, texts, strict=True)],
        modality=modality,
        features=event_features(times, read.amounts[kept], is_table),
        context=context_features(Clock.of(times, is_table), as_of),
    )


def _padded(histories: Sequence[_History]) -> Sequences:
    shape = len(histories), max(len(history.item) for history in histories)
    item, modality = torch.full(shape, _PAD), torch.zeros(shape, dtype=torch.int64)
    features = torch.zeros(*shape, len(EVENT_FEATURES))  # [B,T,F]
    for row, history in enumerate(histories):
        length = len(history.item)
        item[row, :length] = torch.tensor(history.item)
        modality[row, :length] = torch.tensor(history.modality)
        features[row, :length] = torch.from_numpy(history.features)
    return Sequences(item, modality, features)
