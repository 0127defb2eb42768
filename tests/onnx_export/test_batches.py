from __future__ import annotations

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch

from feast_anchor.onnx_export.batches import Batch, Batches, special_ids, train_tokenizer
from feast_anchor.onnx_export.corpus import Corpus
from feast_anchor.onnx_export.questions import build_corpus
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """The triples of the tiny shop."""
    return build_corpus(
        tiny_events(), TINY_MODALITIES, cut=TINY_CUT, entity="customer", snapshots_per_user=3
    )


def draw(corpus: Corpus, seed: int, noise: float = 0.0) -> tuple[Batch, Batches]:
    asked = [text for question in corpus.questions for text in question.phrasings]
    tokenizer = train_tokenizer([*corpus.events.texts, *asked, *corpus.answers], 600)
    batches = Batches(corpus, TINY_MODALITIES, tokenizer, special_ids(tokenizer), 12, 24)
    return next(batches.draw(6, 5, noise, seed)), batches


def test_special_ids_cannot_be_written() -> None:
    """No text, not even one that looks like a special token, reaches an id past the vocabulary."""
    tokenizer = train_tokenizer(["tea in dry"], 400)
    special = special_ids(tokenizer)
    for text in ("<USER_EMB>", "[PAD] </s>", "日本語 ☂", "\x00\x1f"):
        assert max(tokenizer.encode(text).ids, default=0) < special.pad


def test_tokenizer_is_the_same_each_time() -> None:
    """Training twice, in another order of texts, gives the same file."""
    texts = ["tea in dry", "ham in meat", "tea", "will this customer have tea?"]
    assert train_tokenizer(texts, 300).to_str() == train_tokenizer(texts[::-1], 300).to_str()


def test_case_and_punctuation_do_not_matter() -> None:
    """Questions with and without a question mark are one question."""
    tokenizer = train_tokenizer(["will tea be bought"], 400)
    assert tokenizer.encode("Will TEA be bought?").ids == tokenizer.encode("will tea be bought").ids


def test_each_question_ends_in_user_emb(corpus: Corpus) -> None:
    """<USER_EMB> stands at qlen - 1 and nowhere else; padding follows it."""
    batch, batches = draw(corpus, 0, noise=0.5)
    special = batches.special
    at = (batch.ids == special.user_emb).nonzero()[:, 2].reshape(batch.qlen.shape)
    assert (at == batch.qlen - 1).all()
    assert ((batch.ids == special.pad).sum(-1) == batch.ids.shape[2] - batch.qlen).all()


def test_targets_are_the_corpus_labels(corpus: Corpus) -> None:
    """Each target is one of its own question's answers, and each answer ends in <EOS>."""
    batch, batches = draw(corpus, 1)
    asked = batch.target >= 0
    questions = np.broadcast_to(np.arange(batch.target.shape[1]), batch.target.shape)
    assert bool(asked.any())
    assert batch.same[questions[asked.numpy()], batch.target[asked]].all()
    last = batch.answers[np.arange(len(batch.answers)), batch.answer_length - 1]
    assert (last == batches.special.eos).all()


def test_plen_counts_real_events(corpus: Corpus) -> None:
    """A plen is one user token, one per modality and the real events."""
    batch, _ = draw(corpus, 2)
    real = (batch.modality >= 0).sum(1)
    assert (batch.plen == (1 + len(TINY_MODALITIES) + real).unsqueeze(1)).all()


def test_noise_only_swaps_words(corpus: Corpus) -> None:
    """Noise replaces tokens of questions and leaves their lengths alone."""
    clean, _ = draw(corpus, 3)
    noisy, _ = draw(corpus, 3, noise=0.5)
    assert (clean.qlen == noisy.qlen).all()
    assert (clean.ids != noisy.ids).any()


def test_a_batch_depends_on_its_number_alone(corpus: Corpus) -> None:
    """Drawing from number 15 on gives batches 15, 16 and 17 of the whole, across a pool's end."""
    _, batches = draw(corpus, 0)
    whole = list(itertools.islice(batches.draw(6, 5, 0.1, 3), 18))[15:]
    later = list(itertools.islice(batches.draw(6, 5, 0.1, 3, first=15), 3))
    for one, two in zip(whole, later, strict=True):
        assert all(torch.equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(Batch))
    assert not torch.equal(whole[0].plen, whole[1].plen)


def test_only_the_snapshots_asked_for_are_drawn(corpus: Corpus) -> None:
    """With `among`, no other history enters a batch, however many are needed."""
    _, batches = draw(corpus, 0)
    wanted = np.array([2, 5])
    batch = next(batches.draw(6, 5, 0.0, 0, among=wanted))
    lengths = batch.plen[:, 0] - batches.prefix_tokens
    assert set(lengths.tolist()) <= set(batches.lengths[wanted].tolist())


def test_batches_for_measuring_mix_long_and_short_histories(corpus: Corpus) -> None:
    """Alike, a batch spans little of the lengths there are; unlike, most of them."""
    _, batches = draw(corpus, 0)

    def spread(alike: bool) -> float:
        drawn = itertools.islice(batches.draw(6, 5, 0.0, 0, alike=alike), 16)
        return float(np.mean([np.ptp(batch.plen[:, 0].numpy()) for batch in drawn]))

    assert spread(alike=True) < 0.25 * np.ptp(batches.lengths)
    assert spread(alike=False) > 0.5 * np.ptp(batches.lengths)
