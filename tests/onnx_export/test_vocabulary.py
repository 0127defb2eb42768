from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from feast_anchor.onnx_export.sentence import read_sentence_encoder
from feast_anchor.onnx_export.text_encoder import OwnTextEncoder, PretrainedTextEncoder
from feast_anchor.onnx_export.vocabulary import Words, special_ids, train_tokenizer

TEXTS = ["fresh milk", "wine", "a milk a wine a tomatoes", "tomatoes"]


def own_words(query_tokens: bool = True) -> Words:
    tokenizer = train_tokenizer(TEXTS, 300)
    special = special_ids(tokenizer)
    encoder = OwnTextEncoder(special.first_prompt, 4, special.pad)
    return Words(tokenizer, special, tokenizer, encoder, 6, 3, query_tokens)


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


def test_our_own_encoder_reads_token_ids() -> None:
    """Nothing of it can be computed in advance: `raw` are the ids, cut at the limit and padded."""
    words = own_words()
    raw = words.raw(TEXTS)
    for text, row in zip(TEXTS, raw.tolist(), strict=True):
        ids = words.tokenizer.encode(text).ids[:6]
        assert row == ids + [words.special.pad] * (raw.shape[1] - len(ids))


@torch.no_grad()
def test_a_pretrained_encoder_reads_with_its_own_tokenizer(bert: tuple[Path, Any]) -> None:
    """`raw` are its vectors of the texts in the order given, with its special tokens around them
    also where a text is cut.
    """
    encoder, text_tokenizer = read_sentence_encoder(bert[0])
    tokenizer = train_tokenizer(TEXTS, 300)
    texts = PretrainedTextEncoder(encoder)
    words = Words(tokenizer, special_ids(tokenizer), text_tokenizer, texts, 6, 3, True)
    raw = words.raw(TEXTS)
    for text, row in zip(TEXTS, raw, strict=True):
        ids = text_tokenizer.encode(text).ids
        cut = ids if len(ids) <= 6 else [*ids[:5], 3]  # [SEP] is 3
        torch.testing.assert_close(row, encoder(torch.tensor([cut]))[0], atol=1e-6, rtol=0)


def test_questions_are_cut_at_their_limit_or_not_read_at_all() -> None:
    """Three tokens of each at most; without query tokens, none."""
    ids, lengths = own_words().queries(TEXTS)
    full = [own_words().tokenizer.encode(text).ids for text in TEXTS]
    assert lengths.tolist() == [min(3, len(row)) for row in full]
    assert [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)] == [r[:3] for r in full]
    assert not np.any(own_words(query_tokens=False).queries(TEXTS)[1])


def test_answers_end_in_eos() -> None:
    """And are never cut."""
    words = own_words()
    ids, lengths = words.answers(TEXTS)
    for text, row, length in zip(TEXTS, ids.tolist(), lengths.tolist(), strict=True):
        assert row[:length] == [*words.tokenizer.encode(text).ids, words.special.eos]
