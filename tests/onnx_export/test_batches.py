from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from feast_anchor.onnx_export.batches import YES_NO, Batch, Batches
from feast_anchor.onnx_export.corpus import Corpus
from feast_anchor.onnx_export.inputs import Ints
from feast_anchor.onnx_export.losses import contrastive
from tiny import TINY_CUT, TINY_MODALITIES, build_corpus, tiny_events, tiny_words


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """The triples of the tiny shop."""
    return build_corpus(
        tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer", snapshots_per_user=3
    )


@pytest.fixture(scope="module")
def batches(corpus: Corpus) -> Batches:
    """What draws from it, for a model that reads questions word by word."""
    return Batches(corpus, TINY_MODALITIES, replace(tiny_words(corpus), query_tokens=True))


def draw(batches: Batches, seed: int, noise: float = 0.0, silent: float = 0.0) -> Batch:
    return next(batches.draw(6, 8, noise, seed, silent=silent))


@pytest.mark.parametrize("silent", [0.0, 0.5])
def test_each_question_ends_in_user_emb(batches: Batches, silent: float) -> None:
    """<USER_EMB> stands at qlen - 1 and nowhere else; padding follows it."""
    batch = draw(batches, 0, noise=0.5, silent=silent)
    special = batches.words.special
    at = (batch.ids == special.user_emb).nonzero()[:, 2].reshape(batch.qlen.shape)
    assert (at == batch.qlen - 1).all()
    assert ((batch.ids == special.pad).sum(-1) == batch.ids.shape[2] - batch.qlen).all()


def test_targets_are_the_corpus_labels(batches: Batches) -> None:
    """Each target is one of its own question's answers, and each answer ends in <EOS>."""
    batch = draw(batches, 1)
    asked = batch.target >= 0
    questions = np.broadcast_to(np.arange(batch.target.shape[1]), batch.target.shape)
    assert bool(asked.any())
    assert batch.same[questions[asked.numpy()], batch.target[asked]].all()
    last = batch.answers[np.arange(len(batch.answers)), batch.answer_length - 1]
    assert (last == batches.words.special.eos).all()


def test_what_a_target_says_is_what_its_answer_says(batches: Batches) -> None:
    """Each pair says yes, no or neither as its answer does, and neither where there is none; the
    batch's last two answers are a plain yes and a plain no.
    """
    known: dict[str, set[int]] = {}  # answers that read the same may say different things
    for row, says in zip(batches.answers, batches.corpus.says, strict=False):
        known.setdefault(decoded(batches, row), set()).add(int(says))
    said = set()
    for seed in range(8):
        batch = draw(batches, seed)
        texts = [decoded(batches, row) for row in batch.answers.numpy()]
        assert tuple(texts[-2:]) == YES_NO
        assert int(batch.target.max()) < len(texts) - 2 == batch.same.shape[1]
        for target, says in zip(batch.target.flatten(), batch.says.flatten(), strict=True):
            assert int(says) in (known[texts[target]] if target >= 0 else {-1})
            said.add(int(says))
    assert said == {-1, 0, 1}


def decoded(batches: Batches, ids: np.ndarray[Any, Any]) -> str:
    """The text of an answer as the decoder reads it."""
    special, tokenizer = batches.words.special, batches.words.tokenizer
    text: str = tokenizer.decode([i for i in ids.tolist() if i < special.pad])
    return text.strip()


def test_a_batch_without_any_answer_has_a_loss(corpus: Corpus) -> None:
    """Where no history drawn has an answer to what is asked, training goes on."""
    silent = replace(corpus, labels=np.full_like(corpus.labels, -1))
    batch = draw(Batches(silent, TINY_MODALITIES, tiny_words(corpus)), 0)
    assert (batch.target == -1).all()
    users = torch.zeros(*batch.target.shape, 4)
    answers = torch.zeros(batch.same.shape[1], 4)
    assert float(contrastive(users, answers, batch.target, batch.same)) == 0.0


def test_a_questions_text_vector_is_of_its_own_words(batches: Batches) -> None:
    """`query` points at the phrasing whose tokens stand in `ids`."""
    batch = draw(batches, 4, silent=0.3)
    pad = batches.words.special.pad
    for query, ids, length in zip(
        batch.query.flatten(), batch.ids.flatten(0, 1), batch.qlen.flatten(), strict=True
    ):
        read = [i for i in batch.queries[query].tolist() if i != pad] if query >= 0 else []
        assert ids[: length - 1].tolist() == read


def test_nothing_is_asked_of_silent_pairs(batches: Batches) -> None:
    """About the asked share has only <USER_EMB> and no query; the other pairs have both, and
    the right answers are what they would have been.
    """
    shares = []
    for seed in range(20):
        batch, spoken = draw(batches, seed, silent=0.3), draw(batches, seed)
        quiet = batch.query < 0
        assert torch.equal(quiet, batch.qlen == 1)
        assert (batch.ids[quiet][:, 0] == batches.words.special.user_emb).all()
        assert (batch.ids[quiet][:, 1:] == batches.words.special.pad).all()
        assert torch.equal(batch.target >= 0, spoken.target >= 0)
        assert (spoken.query >= 0).all()
        shares.append(float(quiet.float().mean()))
    assert np.mean(shares) == pytest.approx(0.3, abs=0.06)


def test_a_model_without_query_tokens_reads_user_emb_alone(corpus: Corpus) -> None:
    """Then no question has words, and each keeps its text vector."""
    words = replace(tiny_words(corpus), query_tokens=False)
    batch = draw(Batches(corpus, TINY_MODALITIES, words), 0)
    assert batch.ids.shape[2] == 1
    assert (batch.ids == words.special.user_emb).all()
    assert (batch.query >= 0).all()


@pytest.mark.parametrize("even", [0.0, 0.6, 1.0])
def test_a_familys_share_follows_even(corpus: Corpus, even: float) -> None:
    """A family of n questions is drawn in proportion to n ** (1 - even), its questions alike."""
    chance = Batches(corpus, TINY_MODALITIES, tiny_words(corpus), even).chance
    families = np.array([question.family for question in corpus.questions])
    names, which, size = np.unique(families, return_inverse=True, return_counts=True)
    assert len(np.unique(size)) > 2
    share = np.bincount(which, weights=chance, minlength=len(names))
    expected = size ** (1 - even)
    np.testing.assert_allclose(share, expected / expected.sum())
    np.testing.assert_allclose(chance, (share / size)[which])


@pytest.mark.parametrize("questions", [8, 9])
def test_twice_gives_pairs_of_columns_of_one_question(batches: Batches, questions: int) -> None:
    """Four questions in eight columns: each pair has the same answers and asks in two ways that
    are both the question's own, some of them in different words.
    """
    batch = next(batches.draw(6, questions, 0.0, 0, twice=True))
    assert batch.query.shape == (6, 8)
    assert torch.equal(batch.target[:, 0::2], batch.target[:, 1::2])
    assert torch.equal(batch.same[0::2], batch.same[1::2])
    asked = question_of(batches, batch)
    np.testing.assert_array_equal(asked[:, 0::2], asked[:, 1::2])
    np.testing.assert_array_equal(asked, np.broadcast_to(asked[0], asked.shape))
    assert len(set(asked[0])) == 4
    assert (batch.query[:, 0::2] != batch.query[:, 1::2]).any()


def question_of(batches: Batches, batch: Batch) -> Ints:
    """The question [B,Q] whose phrasing each pair's text is, found by the text alone."""
    found = (batches.query_texts == batch.queries.unsqueeze(1)).all(-1)  # [U,K]
    assert (found.sum(1) == 1).all()
    phrasing = found.int().argmax(1).numpy()[batch.query.numpy()]  # [B,Q]
    question: Ints = np.searchsorted(batches.phrasing_start, phrasing, side="right") - 1
    return question


def test_a_batch_without_any_answer_has_one_candidate(corpus: Corpus) -> None:
    """When nobody in a batch can answer what is asked, there are no targets, yet no empty axis."""
    nothing = replace(corpus, labels=np.full_like(corpus.labels, -1))
    batch = draw(Batches(nothing, TINY_MODALITIES, tiny_words(corpus)), 0)
    assert (batch.target == -1).all()
    assert (batch.says == -1).all()
    assert batch.same.shape[1] == 1
    assert len(batch.answers) == 3


def test_days_count_to_the_newest_event(batches: Batches) -> None:
    """Every history's newest event is at 0 days, none is negative, and padding is 0."""
    batch = draw(batches, 5)
    real = batch.modality >= 0
    assert (batch.days[~real] == 0).all()
    assert (batch.days >= 0).all()
    timed = real & (batch.modality != 2)
    assert (batch.days.masked_fill(~timed, 999.0).amin(1)[timed.any(1)] == 0).all()


def test_plen_counts_real_events(batches: Batches) -> None:
    """A plen is the real events, and the as-of comes after them."""
    batch = draw(batches, 2)
    real = (batch.modality >= 0).sum(1)
    assert (batch.plen == real.unsqueeze(1)).all()
    timed = batch.days.masked_fill(batch.modality != 0, 0.0).amax(1, keepdim=True)
    assert (batch.now >= timed).all()


def test_noise_only_swaps_words(batches: Batches) -> None:
    """Noise replaces tokens of questions and leaves their lengths alone."""
    clean, noisy = draw(batches, 3), draw(batches, 3, noise=0.5)
    assert (clean.qlen == noisy.qlen).all()
    assert (clean.ids != noisy.ids).any()


def test_a_batch_depends_on_its_number_alone(batches: Batches) -> None:
    """Drawing from number 15 on gives batches 15, 16 and 17 of the whole, across a pool's end."""
    whole = list(itertools.islice(batches.draw(6, 5, 0.1, 3, silent=0.2), 18))[15:]
    later = list(itertools.islice(batches.draw(6, 5, 0.1, 3, silent=0.2, first=15), 3))
    for one, two in zip(whole, later, strict=True):
        assert all(torch.equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(Batch))
    assert not torch.equal(whole[0].plen, whole[1].plen)


def test_only_the_snapshots_asked_for_are_drawn(batches: Batches) -> None:
    """With `among`, no other history enters a batch, however many are needed."""
    wanted = np.array([2, 5])
    batch = next(batches.draw(6, 5, 0.0, 0, among=wanted))
    lengths = batch.plen[:, 0]
    assert set(lengths.tolist()) <= set(batches.lengths[wanted].tolist())


def test_a_batch_mixes_long_and_short_histories_shortest_first(batches: Batches) -> None:
    """A batch spans most of the lengths there are: busy users meet quiet ones. A pool draws
    without putting back.
    """
    drawn = list(itertools.islice(batches.draw(6, 5, 0.0, 0), 16))
    lengths = [batch.plen[:, 0].numpy() for batch in drawn]
    assert all((np.diff(own) >= 0).all() for own in lengths)
    assert np.mean([np.ptp(own) for own in lengths]) > 0.5 * np.ptp(batches.lengths)
    found = np.bincount(np.concatenate(lengths), minlength=1)
    whole = np.bincount(batches.lengths, minlength=len(found))
    turns = 6 * 16 / len(batches.lengths)
    assert (found <= np.ceil(turns) * whole).all()
    assert (found >= np.floor(turns) * whole).all()
