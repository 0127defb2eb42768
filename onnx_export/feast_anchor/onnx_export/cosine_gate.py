"""How near int8 vectors are to those of fp32, measured on made-up users. No torch, no onnx.

The rule: both bundles read the very same histories and questions, and of the cosines between
their vectors the lowest hundredth decides: a mean would hide a kind of user that came out wrong,
the minimum of many draws would refuse a bundle for one odd user.

A bundle holds no events, so histories are drawn: texts are the modalities' templates with words of
the bundle's own vocabulary, encoded by its own event graph; every length up to the token budgets
occurs, with irregular times and skewed amounts. Questions are words of its vocabulary, and its
tuned prompts are asked as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .bundle import Bundle, empty_past
from .errors import BundleError
from .inputs import Clock, Floats, Ints, Moment, Numbers, suffix_ids
from .manifest import Manifest, ModalitySpec
from .text import render, template_columns

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GATE = 0.999  # least cosine of all but a hundredth of the vectors

Arrays = dict[str, np.ndarray[Any, Any]]

_DAY = 86_400_000_000  # microseconds
_START = 1_600_000_000_000_000  # in 2020, microseconds since the epoch
_TEXTS = 64  # texts per modality
_ASKED = 6  # questions beside the general one and the tuned prompts


@dataclass(frozen=True)
class Closeness:
    """Cosines between the vectors of two bundles for the same users and questions."""

    vectors: int
    minimum: float
    hundredth: float  # 1 % of the cosines are lower
    mean: float
    between_users: float  # mean of two users, same question: what to compare the others with
    speed: float  # how many times longer theirs took

    @classmethod
    def of(cls, ours: Floats, theirs: Floats, speed: float) -> Closeness:
        """Both [users, questions, dim], of unit length."""
        cosine = (ours.astype(np.float64) * theirs).sum(-1)  # [users, questions]
        total = theirs.astype(np.float64).sum(0)  # [questions, dim]
        count = len(theirs)
        between = ((total**2).sum(-1) - count) / max(1, count * (count - 1))  # [questions]
        return cls(
            vectors=cosine.size,
            minimum=float(cosine.min()),
            hundredth=float(np.quantile(cosine, 0.01)),
            mean=float(cosine.mean()),
            between_users=float(between.mean()),
            speed=speed,
        )


@dataclass(frozen=True)
class Drawn:
    """One history as the graphs read it, and what its questions are told; B = 1."""

    prefix: Arrays
    suffix: Arrays


def measure(ours: Bundle, theirs: Bundle, users: int, seed: int = 0) -> Closeness:
    """Compare two bundles of one model on as many made-up users, on one thread."""
    readings = draw(theirs, users, np.random.default_rng(seed))
    sides = [_Graphs(ours), _Graphs(theirs)]
    answers: list[list[Floats]] = [[], []]
    seconds = [0.0, 0.0]
    for reading in readings:  # in turn, so that a busy machine slows both
        for index, side in enumerate(sides):
            start = time.perf_counter()
            answers[index].append(side.answer(reading))
            seconds[index] += time.perf_counter() - start
    mine, others = (np.concatenate(own) for own in answers)
    return Closeness.of(mine, others, speed=seconds[1] / seconds[0])


class _Graphs:
    """Prefix and suffix of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.prefix, self.suffix = bundle.session("prefix"), bundle.session("suffix")
        self.state = list(bundle.manifest.state)

    def answer(self, reading: Drawn) -> Floats:
        """Vectors of every question, float32 [1, questions, dim]."""
        history = reading.prefix | empty_past(self.prefix, 1)
        state = self.prefix.run(self.state, _named(self.prefix, history))
        feed = reading.suffix | dict(zip(self.state, state, strict=True))
        vectors: Floats = self.suffix.run(["embedding"], _named(self.suffix, feed))[0]
        return vectors


def draw(bundle: Bundle, users: int, generator: np.random.Generator) -> list[Drawn]:
    """Made-up users of a bundle, each asked the same questions at an as-of of its own."""
    specs = bundle.manifest.modalities
    words = _words(bundle.text_tokenizer)
    texts = [text for spec in specs for text in _texts(spec, words, generator)]
    encoded = bundle.encode_texts(texts).reshape(len(specs), _TEXTS, -1)  # [M, texts, E]
    asked = _questions(bundle, generator)
    return [_reading(bundle.manifest, encoded, asked, generator) for _ in range(users)]


def _texts(spec: ModalitySpec, words: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Random rows of one modality, as its template renders them."""
    table = pa.table(
        {
            column: [_phrase(words, generator, 3) for _ in range(_TEXTS)]
            for column in template_columns(spec.text)
        }
    )
    rendered: list[str] = render(spec.text, table).to_pylist()
    return rendered


def _questions(bundle: Bundle, generator: np.random.Generator) -> Arrays:
    """The suffix inputs that are the same for all users: the questions [1, Q, ...] and prompts."""
    manifest = bundle.manifest
    words = [word for word in _words(bundle.tokenizer) if _is_read(bundle, word)]
    texts: list[str | None] = [None, *(_question(bundle, words, generator) for _ in range(_ASKED))]
    table = [np.zeros((1, manifest.dims.hidden), dtype=np.float32)]  # graphs want a row
    rows = [range(0)] * len(texts)
    for prompt in bundle.prompts.values():
        start = sum(map(len, table))
        table.append(prompt)
        rows.append(range(start, start + len(prompt)))
        texts.append(_question(bundle, words, generator))
    ids, lengths = suffix_ids(
        [bundle.query_ids(text) for text in texts], rows, manifest.special_ids
    )
    return {
        "ids": ids[None],
        "qlen": lengths[None],
        "query": bundle.query_vectors(texts)[None],
        "prompt": np.concatenate(table),
    }


def _question(bundle: Bundle, words: Sequence[str], generator: np.random.Generator) -> str:
    """Random words, as many as the model reads."""
    phrase = _phrase(words, generator, 10).split()
    while len(phrase) > 1 and not _is_read(bundle, " ".join(phrase)):
        phrase.pop()
    return " ".join(phrase)


def _is_read(bundle: Bundle, query: str) -> bool:
    try:
        bundle.query_ids(query)
    except BundleError:
        return False
    return True


def _reading(
    manifest: Manifest, encoded: Floats, asked: Arrays, generator: np.random.Generator
) -> Drawn:
    """One random user of encoded[M, texts, E]."""
    modality = _modalities(manifest.modalities, generator)
    events = len(modality)
    taste = generator.dirichlet(np.full(_TEXTS, 0.2))  # some texts again and again
    text = generator.choice(_TEXTS, events, p=taste)
    gaps = generator.exponential(generator.choice([0.1, 2.0, 20.0]) * _DAY, events)
    times = _START + gaps.astype(np.int64).cumsum()
    has_amount = np.array([spec.amount for spec in manifest.modalities])[modality]
    amounts = (generator.lognormal(1.0, 1.5, events) * has_amount).astype(np.float32)
    is_table = np.array([spec.kind == "table" for spec in manifest.modalities])[modality]
    seen = int(generator.integers(1, events + 1)) if manifest.shares_prefixes else events
    numbers = Numbers.of(times, amounts, is_table)
    as_of = int(times[seen - 1] + generator.exponential(20 * _DAY)) + 1
    moment = Moment.of(Clock.of(times[:seen], is_table[:seen]), seen, as_of)
    number = asked["ids"].shape[1]
    return Drawn(
        prefix={
            "vectors": encoded[modality, text][None],  # [1, T, E]
            "features": numbers.features[None],
            "modality": modality[None],
            "days": numbers.days[None],
        },
        suffix=asked
        | {
            "plen": np.full((1, number), moment.events, dtype=np.int64),
            "now": np.full((1, number), moment.now),
            "context": np.tile(moment.context, (1, number, 1)),
        },
    )


def _modalities(specs: Sequence[ModalitySpec], generator: np.random.Generator) -> Ints:
    """The modality of each event of one user, at least one [T]."""
    share = generator.random()
    counts = [
        1 if spec.kind == "table" else round(share * generator.uniform(0.5, 1) * spec.max_events)
        for spec in specs
    ]
    if not any(counts):
        counts[0] = 1
    return generator.permutation(np.repeat(np.arange(len(specs)), counts))


def _phrase(words: Sequence[str], generator: np.random.Generator, most: int) -> str:
    return " ".join(generator.choice(words, generator.integers(1, most + 1)))


def _words(tokenizer: Tokenizer) -> list[str]:
    """What a tokenizer's single tokens read as."""
    read = (tokenizer.decode([token]).strip() for token in range(tokenizer.get_vocab_size()))
    return sorted({word for word in read if word.isalnum()}) or ["a"]


def _named(session: Any, arrays: Arrays) -> Arrays:
    return {value.name: arrays[value.name] for value in session.get_inputs()}
