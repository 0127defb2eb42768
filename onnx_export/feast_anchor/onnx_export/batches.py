"""From a corpus to the tensors of one training step, by the same code that serving uses.

Histories are read with `inputs.window` and the two feature functions, texts are cut and padded
with `text.tokenize`: what a model is trained on is what it will be given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from .corpus import Corpus
from .inputs import CONTEXT_FEATURES, EVENT_FEATURES, Ints, context_features, event_features, window
from .manifest import ModalitySpec, SpecialIds
from .text import tokenize

Array = np.ndarray[Any, Any]

_PUNCTUATION = r"[!-*,-/:-@\[-`{-~]"
_POOL = 16  # batches drawn together and sorted by length, so that little is padded


@dataclass(frozen=True)
class Batch:
    """One step's inputs. B histories, T events, Q questions, L tokens, N texts, A answers."""

    texts: Tensor  # int64 [N, L] distinct event texts
    text: Tensor  # int64 [B, T] position in texts, 0 at padding
    features: Tensor  # [B, T, F]
    modality: Tensor  # int64 [B, T], -1 at padding
    plen: Tensor  # int64 [B, Q]
    context: Tensor  # [B, Q, C]
    ids: Tensor  # int64 [B, Q, L], each ending in <USER_EMB>
    qlen: Tensor  # int64 [B, Q]
    answers: Tensor  # int64 [A, L] distinct answers, each ending in <EOS>
    answer_length: Tensor  # int64 [A]
    target: Tensor  # int64 [B, Q] position in answers, -1 for none
    same: Tensor  # bool [Q, A] whether the answer belongs to the question


def train_tokenizer(texts: Sequence[str], vocab: int) -> Tokenizer:
    """Byte-level BPE over the given texts: lower-cased, without ASCII punctuation but "+".

    No text has unknown tokens. Punctuation goes because it makes questions longer, and time to
    train with them, without making them say more.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(_PUNCTUATION), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Ids just past the vocabulary: no text can produce them."""
    size = tokenizer.get_vocab_size()
    return SpecialIds(pad=size, user_emb=size + 1, eos=size + 2, first_prompt=size + 3)


class Batches:
    """Draws batches from a corpus. Everything a step needs is prepared once, as arrays."""

    def __init__(
        self,
        corpus: Corpus,
        modalities: Sequence[ModalitySpec],
        tokenizer: Tokenizer,
        special: SpecialIds,
        max_text_tokens: int,
        max_query_tokens: int,
    ) -> None:
        self.corpus, self.special = corpus, special
        self.prefix_tokens = 1 + len(modalities)
        self.is_table = np.array([m.kind == "table" for m in modalities])
        self.texts = tokenize(tokenizer, corpus.events.texts, max_text_tokens, special.pad)
        self.answers, self.answer_length = _padded(
            [[*e.ids, special.eos] for e in _encode(tokenizer, corpus.answers)], special.pad
        )
        asked = [phrasing for question in corpus.questions for phrasing in question.phrasings]
        queries = [e.ids[:max_query_tokens] for e in _encode(tokenizer, asked)]
        self.queries, self.query_length = _padded(queries, special.pad)
        sizes = np.array([len(question.phrasings) for question in corpus.questions])
        self.phrasing_count, self.phrasing_start = sizes, np.cumsum(sizes) - sizes
        self.rows = [self._row(s, modalities) for s in range(len(corpus.user))]
        self.lengths = np.array([len(row) for row in self.rows])
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
        first: int = 0,
        among: Ints | None = None,
        alike: bool = True,
    ) -> Iterator[Batch]:
        """Batches without end: `size` histories, each asked the same `questions` questions.

        Each batch is a pure function of its number and the other arguments, so that an
        interrupted training can go on where it stopped.

        Args:
            size: histories per batch.
            questions: questions per history, fewer where the corpus has fewer.
            noise: share of query tokens replaced by random ones, so that words a model never
                saw do not move its answers.
            seed: fixes every choice.
            first: number of the first batch.
            among: snapshots to draw from, all by default.
            alike: histories of one batch are about equally long, which saves padding. Not for
                measuring: then busy users would never meet quiet ones.
        """
        rows = np.arange(len(self.rows)) if among is None else among
        for number in itertools.count(first):
            drawn = self._draw_rows(rows, size, number, seed, alike)
            generator = np.random.default_rng((seed, 1, number))
            count = min(questions, len(self.phrasing_count))
            columns = generator.choice(len(self.phrasing_count), count, replace=False)
            yield self._batch(drawn, columns, noise, generator)

    def _draw_rows(self, rows: Ints, size: int, number: int, seed: int, alike: bool) -> Ints:
        """The histories of one batch: its part of a pool, sorted by length or not."""
        pool, turn = divmod(number, _POOL)
        generator = np.random.default_rng((seed, 0, pool))
        need = size * _POOL
        order = np.concatenate([generator.permutation(rows) for _ in range(-(-need // len(rows)))])
        order = order[:need]
        if alike:
            order = order[np.argsort(self.lengths[order], kind="stable")]
        part = generator.permutation(_POOL)[turn]
        return order[part * size : (part + 1) * size]

    def _row(self, snapshot: int, modalities: Sequence[ModalitySpec]) -> Array:
        """Positions in the event table that this history reads."""
        events, user = self.corpus.events, self.corpus.user[snapshot]
        first, last = events.starts[user], events.starts[user + 1]
        as_of = int(self.corpus.as_of[snapshot])
        times, modality = events.times[first:last], events.modality[first:last]
        rows: Array = first + window(times, modality, as_of, modalities)
        return rows

    def _batch(
        self, rows: Array, columns: Array, noise: float, generator: np.random.Generator
    ) -> Batch:
        history = self._history(rows)
        shape = (len(rows), len(columns))
        pick = self.phrasing_start[columns] + (
            generator.random(shape) * self.phrasing_count[columns]
        ).astype(np.int64)
        qlen = self.query_length[pick] + 1
        ids = np.full((*shape, int(qlen.max())), self.special.pad, dtype=np.int64)
        width = min(ids.shape[2], self.queries.shape[1])
        ids[:, :, :width] = self.queries[pick][:, :, :width]
        swap = (generator.random(ids.shape) < noise) & (ids != self.special.pad)
        ids = np.where(swap, generator.integers(0, self.special.pad, ids.shape), ids)
        np.put_along_axis(ids, qlen[..., None] - 1, self.special.user_emb, axis=2)
        labels = self.corpus.labels[np.ix_(rows, columns)]
        used = np.unique(labels[labels >= 0])
        target = np.where(labels >= 0, np.searchsorted(used, labels), -1)
        length = self.answer_length[used]
        return Batch(
            **history,
            plen=_tensor(
                np.repeat((self.prefix_tokens + self.lengths[rows])[:, None], shape[1], 1)
            ),
            context=self._context(rows, shape[1]),
            ids=_tensor(ids),
            qlen=_tensor(qlen),
            answers=_tensor(self.answers[used][:, : int(length.max(initial=1))]),
            answer_length=_tensor(length),
            target=_tensor(target),
            same=_tensor(self.own_answers[np.ix_(columns, used)]),
        )

    def _history(self, rows: Array) -> dict[str, Tensor]:
        events = self.corpus.events
        longest = int(self.lengths[rows].max())
        features = np.zeros((len(rows), longest, len(EVENT_FEATURES)), dtype=np.float32)
        modality = np.full((len(rows), longest), -1, dtype=np.int64)
        text = np.zeros((len(rows), longest), dtype=np.int64)
        for out, row in enumerate(rows):
            at = self.rows[row]
            kind = events.modality[at]
            modality[out, : len(at)], text[out, : len(at)] = kind, events.text[at]
            features[out, : len(at)] = event_features(
                events.times[at], events.amounts[at], self.is_table[kind]
            )
        distinct, inverse = np.unique(text, return_inverse=True)
        return {
            "texts": _tensor(self.texts[distinct]),
            "text": _tensor(inverse.reshape(text.shape)),
            "features": _tensor(features),
            "modality": _tensor(modality),
        }

    def _context(self, rows: Array, questions: int) -> Tensor:
        events = self.corpus.events
        out = np.empty((len(rows), len(CONTEXT_FEATURES)), dtype=np.float32)
        for index, row in enumerate(rows):
            at = self.rows[row]
            table = self.is_table[events.modality[at]]
            out[index] = context_features(events.times[at], table, int(self.corpus.as_of[row]))
        return _tensor(out).unsqueeze(1).expand(-1, questions, -1)  # [B,C] -> [B,Q,C]


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Any]:
    return list(tokenizer.encode_batch(list(texts), add_special_tokens=False))


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Array, Array]:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.full((len(rows), int(lengths.max(initial=1))), pad, dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return ids, lengths


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
