"""From a corpus to the tensors of one training step, by the same code that serving uses.

Histories are read with `inputs.window` and the two feature functions, texts are cut and padded
with `text.tokenize`: what a model is trained on is what it will be given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .corpus import Corpus
from .inputs import EVENT_FEATURES, Ints, Moment, Numbers, window
from .manifest import ModalitySpec
from .vocabulary import Words

Array = np.ndarray[Any, Any]

YES_NO = ("yes", "no")
_POOL = 16  # batches drawn together: none of their histories comes twice while others wait
_PARTS = 6  # of a batch, by length, so that little is padded


@dataclass(frozen=True)
class Batch:
    """One step's inputs. B histories, T events, Q questions, L tokens, A answers and two more.

    `texts`, `queries` and `answer_texts` hold distinct texts as `TextEncoder.raw` gave them.
    """

    texts: Tensor  # [N, ...] event texts
    text: Tensor  # int64 [B, T] position in texts, 0 at padding
    features: Tensor  # [B, T, F]
    modality: Tensor  # int64 [B, T], -1 at padding
    days: Tensor  # [B, T] days from the first event
    plen: Tensor  # int64 [B, Q] events of the history
    now: Tensor  # [B, Q] days from the first event to the as-of
    context: Tensor  # [B, Q, C]
    queries: Tensor  # [U, ...] the ways in which questions are put
    query: Tensor  # int64 [B, Q] position in queries, -1 where nothing is asked
    ids: Tensor  # int64 [B, Q, L], each ending in <USER_EMB>
    qlen: Tensor  # int64 [B, Q]
    answer_texts: Tensor  # [A + 2, ...]; the last two are a plain yes and a plain no
    answers: Tensor  # int64 [A + 2, L] distinct answers, at least one and two; <EOS> ends each
    answer_length: Tensor  # int64 [A + 2]
    target: Tensor  # int64 [B, Q] position in answers, -1 for none
    says: Tensor  # int64 [B, Q] 1 where the target says yes, 0 where it says no, -1 for others
    same: Tensor  # bool [Q, A] whether the answer belongs to the question

    def only(self, rows: Tensor) -> Batch:
        """Some of the histories, int64 [b], asked the same; event texts that they do not have go.

        They are padded to the longest of them.
        """
        part = self._rows(rows)
        distinct, text = torch.unique(part.text, return_inverse=True)
        return replace(part, texts=self.texts[distinct], text=text)

    def parts(self) -> list[Batch]:
        """The batch, whose histories are in order of length, in a few parts of equal size.

        A part's histories are about equally long, so that little of it is padding. Its `texts` are
        those of the batch.
        """
        rows = torch.arange(len(self.target), device=self.target.device)
        return [self._rows(part) for part in rows.tensor_split(min(_PARTS, len(rows)))]

    def _rows(self, rows: Tensor) -> Batch:
        own = {name: getattr(self, name)[rows] for name in _OF_HISTORIES}
        longest = max(1, int(own["plen"].max()))
        own |= {name: getattr(self, name)[rows, :longest] for name in _OF_EVENTS}
        return replace(self, **own)


_OF_EVENTS = ("text", "features", "modality", "days")
_OF_HISTORIES = ("plen", "now", "context", "query", "ids", "qlen", "target", "says")


@dataclass(frozen=True)
class _History:
    """One snapshot as the graphs read it; T events."""

    text: Ints  # [T] position in the corpus's texts
    modality: Ints  # [T]
    features: Array  # float32 [T, F]
    days: Array  # float32 [T]
    now: np.float32
    context: Array  # float32 [C]


class Batches:
    """Draws batches from a corpus. Everything a step needs is prepared once, as arrays."""

    def __init__(
        self,
        corpus: Corpus,
        modalities: Sequence[ModalitySpec],
        words: Words,
        even: float = 0.0,
    ) -> None:
        self.corpus, self.words = corpus, words
        self.histories = [_read(corpus, s, modalities) for s in range(len(corpus.user))]
        self.lengths = np.array([len(history.text) for history in self.histories])
        asked = [phrasing for question in corpus.questions for phrasing in question.phrasings]
        answers = [*corpus.answers, *YES_NO]
        self.texts = words.raw(corpus.events.texts)
        self.query_texts, self.answer_texts = words.raw(asked), words.raw(answers)
        self.queries, self.query_length = words.queries(asked)
        self.answers, self.answer_length = words.answers(answers)
        sizes = np.array([len(question.phrasings) for question in corpus.questions])
        self.phrasing_count, self.phrasing_start = sizes, np.cumsum(sizes) - sizes
        self.chance = _chance([question.family for question in corpus.questions], even)
        self.own_answers = np.zeros((len(sizes), len(corpus.answers)), dtype=bool)
        for question in range(len(sizes)):
            given = corpus.labels[:, question]
            self.own_answers[question, given[given >= 0]] = True

    def draw(
        self,
        size: int,
        questions: int,
        noise: float,
        seed: int,
        *,
        silent: float = 0.0,
        twice: bool = False,
        first: int = 0,
        among: Ints | None = None,
    ) -> Iterator[Batch]:
        """Batches without end: `size` histories, shortest first, each asked the same questions.

        Each batch is a pure function of its number and the other arguments, so that an
        interrupted training can go on where it stopped.

        Args:
            size: histories per batch.
            questions: questions per history, fewer where the corpus has fewer.
            noise: share of query tokens replaced by random ones, so that words a model never
                saw do not move its answers.
            seed: fixes every choice.
            silent: share of pairs whose question is left out: they train the general embedding.
            twice: columns come in pairs: half as many questions, each put in two ways where it
                has them, so that a loss can ask that both get the same vector.
            first: number of the first batch.
            among: snapshots to draw from, all by default.
        """
        rows = np.arange(len(self.histories)) if among is None else among
        for number in itertools.count(first):
            drawn = self._draw_rows(rows, size, number, seed)
            generator = np.random.default_rng((seed, 1, number))
            count = min(max(1, questions // 2) if twice else questions, len(self.chance))
            columns = generator.choice(len(self.chance), count, replace=False, p=self.chance)
            columns = np.repeat(columns, 2) if twice else columns
            yield self._batch(drawn, columns, noise, silent, generator)

    def _draw_rows(self, rows: Ints, size: int, number: int, seed: int) -> Ints:
        """The histories of one batch, shortest first.

        They are drawn at random, not alike: who never meets a busy user does not learn what tells
        busy users from quiet ones.
        """
        pool, turn = divmod(number, _POOL)
        generator = np.random.default_rng((seed, 0, pool))
        need = size * _POOL
        order = np.concatenate([generator.permutation(rows) for _ in range(-(-need // len(rows)))])
        drawn = order[turn * size : (turn + 1) * size]
        out: Ints = drawn[np.argsort(self.lengths[drawn], kind="stable")]
        return out

    def _batch(
        self,
        rows: Ints,
        columns: Ints,
        noise: float,
        silent: float,
        generator: np.random.Generator,
    ) -> Batch:
        shape = (len(rows), len(columns))
        pick = self.phrasing_start[columns] + (
            generator.random(shape) * self.phrasing_count[columns]
        ).astype(np.int64)
        distinct, query = np.unique(pick, return_inverse=True)
        quiet = generator.random(shape) < silent
        query = np.where(quiet, -1, query.reshape(shape))
        ids, qlen = self._suffixes(pick, quiet, noise, generator)
        labels = self.corpus.labels[np.ix_(rows, columns)]
        used = np.unique(labels[labels >= 0])
        used = used if len(used) else np.zeros(1, np.int64)  # losses look up at least one
        plain = np.arange(len(self.answers) - 2, len(self.answers))
        length = self.answer_length[np.append(used, plain)]
        context = np.stack([self.histories[row].context for row in rows])  # [B,C]
        return Batch(
            **self._history(rows),
            plen=_tensor(np.repeat(self.lengths[rows][:, None], shape[1], 1)),
            now=_tensor(np.array([self.histories[row].now for row in rows]))
            .unsqueeze(1)
            .expand(-1, shape[1]),
            context=_tensor(context).unsqueeze(1).expand(-1, shape[1], -1),  # [B,C] -> [B,Q,C]
            queries=self.query_texts[distinct],
            query=_tensor(query),
            ids=_tensor(ids),
            qlen=_tensor(qlen),
            answer_texts=self.answer_texts[np.append(used, plain)],
            answers=_tensor(self.answers[np.append(used, plain)][:, : int(length.max())]),
            answer_length=_tensor(length),
            target=_tensor(np.where(labels >= 0, np.searchsorted(used, labels), -1)),
            says=_tensor(np.where(labels >= 0, self.corpus.says[labels], -1)),
            same=_tensor(self.own_answers[np.ix_(columns, used)]),
        )

    def _suffixes(
        self, pick: Ints, quiet: Array, noise: float, generator: np.random.Generator
    ) -> tuple[Ints, Ints]:
        """Token ids [B,Q,L] and lengths [B,Q] of the picked phrasings, some of them silent."""
        special = self.words.special
        qlen = np.where(quiet, 0, self.query_length[pick]) + 1
        ids = np.full((*pick.shape, int(qlen.max())), special.pad, dtype=np.int64)
        width = min(ids.shape[2], self.queries.shape[1])
        ids[:, :, :width] = self.queries[pick][:, :, :width]
        swap = (generator.random(ids.shape) < noise) & (ids != special.pad)
        ids = np.where(swap, generator.integers(0, special.pad, ids.shape), ids)
        ids[np.arange(ids.shape[2]) >= qlen[..., None]] = special.pad
        np.put_along_axis(ids, qlen[..., None] - 1, special.user_emb, axis=2)
        return ids, qlen

    def _history(self, rows: Ints) -> dict[str, Tensor]:
        longest = int(self.lengths[rows].max())
        features = np.zeros((len(rows), longest, len(EVENT_FEATURES)), dtype=np.float32)
        days = np.zeros((len(rows), longest), dtype=np.float32)
        modality = np.full((len(rows), longest), -1, dtype=np.int64)
        text = np.zeros((len(rows), longest), dtype=np.int64)
        for out, row in enumerate(rows):
            history = self.histories[row]
            size = len(history.text)
            modality[out, :size], text[out, :size] = history.modality, history.text
            features[out, :size], days[out, :size] = history.features, history.days
        distinct, inverse = np.unique(text, return_inverse=True)
        return {
            "texts": self.texts[distinct],
            "text": _tensor(inverse.reshape(text.shape)),
            "features": _tensor(features),
            "modality": _tensor(modality),
            "days": _tensor(days),
        }


def _read(corpus: Corpus, snapshot: int, modalities: Sequence[ModalitySpec]) -> _History:
    events, user = corpus.events, corpus.user[snapshot]
    first, last = events.starts[user], events.starts[user + 1]
    as_of = int(corpus.as_of[snapshot])
    at = first + window(events.times[first:last], events.modality[first:last], as_of, modalities)
    times, modality = events.times[at], events.modality[at]
    is_table = np.array([m.kind == "table" for m in modalities])[modality]
    numbers = Numbers.of(times, events.amounts[at], is_table)
    moment = Moment.of(numbers.clock, len(times), as_of)
    return _History(
        text=events.text[at],
        modality=modality,
        features=numbers.features,
        days=numbers.days,
        now=moment.now,
        context=moment.context,
    )


def _chance(families: Sequence[str], even: float) -> Array:
    """How likely each question is to be drawn, float64 [K]; `even` as in `TrainConfig`."""
    _, which, size = np.unique(np.array(families), return_inverse=True, return_counts=True)
    weight: Array = size[which].astype(np.float64) ** -even
    weight /= weight.sum()
    return weight


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
