from __future__ import annotations

import pytest
import torch

from feast_anchor.onnx_export.words import OwnWords, PretrainedWords


@pytest.mark.parametrize("tied", [True, False])
def test_pretrained_words_are_the_tables_and_three_rows_more(tied: bool) -> None:
    """Ids below the vocabulary read the frozen table, the next three the new rows; scores of the
    next token come from the same rows, or from the head's where it is another table.
    """
    tokens, head = torch.randn(2, 5, 4)
    words = PretrainedWords(tokens, None if tied else head)
    ids, hidden = torch.tensor([[0, 4, 5], [6, 7, 2]]), torch.randn(2, 3, 4)
    every = torch.cat((tokens, words.new))  # [8,D]
    scores = every if words.new_head is None else torch.cat((head, words.new_head))
    torch.testing.assert_close(words(ids), every[ids])
    torch.testing.assert_close(words.logits(hidden), hidden @ scores.T)
    plain = words.plain()
    assert torch.equal(plain(ids), every[ids])
    torch.testing.assert_close(plain.logits(hidden), words.logits(hidden))


def test_only_the_new_rows_of_pretrained_words_get_a_gradient() -> None:
    """The frozen tables get none, whatever is read or scored."""
    words = PretrainedWords(*torch.randn(2, 5, 4))
    words.logits(words(torch.arange(8))).square().sum().backward()
    assert words.known.grad is None
    assert words.known_head is not None
    assert words.known_head.grad is None
    assert words.new.grad is not None
    assert words.new.grad.any(dim=1).all()


@pytest.mark.parametrize("tied", [True, False])
def test_own_words_score_with_their_own_table_unless_told(tied: bool) -> None:
    """Tied, input and output are one table; untied, training moves them apart."""
    words = OwnWords(6, 4, tied=tied)
    assert len(list(words.parameters())) == (1 if tied else 2)
    assert words.logits(torch.randn(2, 4)).shape == (2, 6)
