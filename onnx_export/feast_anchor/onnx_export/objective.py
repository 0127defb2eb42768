"""From a batch to the number that training lowers, and its gradient: `backward`.

Four terms: a user's vector is contrasted with answers (`losses`), it must lie nearer
to a plain "yes" than to a plain "no" where the answer says yes (that is what the zero-shot score
reads, and what all yes-or-no questions have in common), it must be the same however the question is
put, and now and then the answer is written out. Noise on the questions' text vectors stands for the
phrasings that nobody wrote down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .batches import Batch
from .losses import MARGIN, contrastive, infonce, next_token, yes_or_no
from .model import Anchor
from .negatives import cached_backward
from .settings import TrainConfig


@dataclass(frozen=True)
class Asked:
    """Histories of a batch, the questions that they are asked [B,Q,E], and their user states."""

    batch: Batch
    query: Tensor
    state: tuple[Tensor, ...]


def backward(
    model: Anchor, batch: Batch, config: TrainConfig, write: int, share: float = 1.0
) -> float:
    """Add `share` of a batch's gradient to the parameters and return the loss times `share`.

    `write` questions also take the next-token loss, 0 for none. With `config.chunk` only so many
    histories are in memory at once, whatever the batch holds, and all of them are still each
    other's negatives (`negatives.cached_backward`). The gradient is that of the batch as a whole,
    but for noise and dropout, which are drawn by the chunk, and anew for the next-token loss.
    """
    chunks = _chunks(batch, config.chunk)
    if len(chunks) == 1:
        with _autocast(batch):
            loss = share * batch_loss(model, batch, config, write)
        loss.backward()
        return float(loss.detach())
    seed = int(torch.randint(2**31, ()))  # the same noise and dropout both times

    def answers() -> Tensor:
        with _seeded(batch, seed):
            return _answers(model, batch)

    def users(number: int, chunk: Batch) -> Tensor:
        with _seeded(batch, seed + 1 + number):
            return _users(model, _asked(model, chunk, _noisy_query(model, chunk, config)))

    def loss_of(vectors: Sequence[Tensor]) -> Tensor:
        with _autocast(batch):
            return share * _vector_loss(torch.cat(tuple(vectors[1:])), vectors[0], batch, config)

    parts = [partial(users, number, chunk) for number, chunk in enumerate(chunks)]
    total = float(cached_backward([answers, *parts], loss_of))
    tokens = [_tokens(chunk, write) for chunk in chunks]
    for chunk, own in zip(chunks, tokens, strict=True):
        if own:
            with _autocast(batch):
                asked = _asked(model, chunk, _noisy_query(model, chunk, config))
                written = answer_loss(model, asked, write) * (share * own / sum(tokens))
            written.backward()
            total += float(written.detach())
    return total


def batch_loss(model: Anchor, batch: Batch, config: TrainConfig, write: int) -> Tensor:
    """The objective of one batch; `write` questions also take the next-token loss, 0 for none."""
    asked = _asked(model, batch, _noisy_query(model, batch, config))
    loss = _vector_loss(_users(model, asked), _answers(model, batch), batch, config)
    return loss + answer_loss(model, asked, write) if write else loss


def contrasted(users: Tensor, answers: Tensor, batch: Batch, config: TrainConfig) -> Tensor:
    """The contrastive term in the form of the settings: users [B,Q,N], answers [A,N]."""
    margin = MARGIN if config.mask else None
    if config.loss == "split":
        return contrastive(users, answers, batch.target, batch.same, margin)
    return infonce(users, answers, batch.target, config.loss, margin)


def _vector_loss(users: Tensor, answers: Tensor, batch: Batch, config: TrainConfig) -> Tensor:
    """The terms that need every vector of the batch: users [B,Q,N], answers [A + 2,N]."""
    loss = config.contrastive * contrasted(users, answers[:-2], batch, config)
    loss = loss + config.plain * yes_or_no(users, answers[-2], answers[-1], batch.says)
    return loss + config.alike * _apart(users, batch) if config.alike else loss


def _apart(users: Tensor, batch: Batch) -> Tensor:
    """Mean of 1 - cosine between the two phrasings of each question, where both were asked."""
    both = ((batch.query[:, 0::2] >= 0) & (batch.query[:, 1::2] >= 0)).to(users.dtype)
    cosine = (users[:, 0::2] * users[:, 1::2]).sum(-1)  # [B,Q/2]
    return ((1.0 - cosine) * both).sum() / both.sum().clamp(min=1.0)


def embed(model: Anchor, batch: Batch, chunk: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 of the batch's histories and questions [B,Q,N] and its answers [A,N].

    Of `chunk` histories at a time, 0 for all.
    """
    users = [_users(model, _asked(model, one, _query(model, one))) for one in _chunks(batch, chunk)]
    return torch.cat(users), _answers(model, batch)[:-2]


@torch.no_grad()
def evidence_numbers(model: Anchor, batch: Batch, chunk: int = 0) -> Tensor:
    """What the questions of a batch read of their histories: [B * Q,X]. No decoder runs.

    Of `chunk` histories at a time, 0 for all. Only for a model with evidence.
    """
    assert model.evidence is not None
    numbers = []
    for one in _chunks(batch, chunk):
        texts = model.texts.vectors(one.texts)
        for part, query in _parts(one, _query(model, one)):
            vectors, member = _event_vectors(part, texts), model.member(part.modality)
            kept = model.evidence.keep(vectors, part.features, member, part.days)
            found, _ = model.find_evidence(part.plen, part.now, query, kept)
            assert found is not None
            numbers.append(found.flatten(0, 1))
    return torch.cat(numbers)


def _chunks(batch: Batch, size: int) -> list[Batch]:
    """The batch in parts of `size` histories; itself where that is 0 or no less than it has."""
    if not 0 < size < len(batch.target):
        return [batch]
    return [batch.only(rows) for rows in torch.arange(len(batch.target)).split(size)]


def answer_loss(model: Anchor, asked: Sequence[Asked], write: int) -> Tensor:
    """Next-token loss of the answers of the first `write` questions."""
    hidden, tokens = zip(*(answer_hidden(model, part, write) for part in asked), strict=True)
    return next_token(model.logits(torch.cat(hidden)), torch.cat(tokens), model.special.pad)


def answer_hidden(model: Anchor, asked: Asked, write: int) -> tuple[Tensor, Tensor]:
    """Hidden states [B,W,A,D] and the token that each has to predict [B,W,A].

    The answer stands behind `<USER_EMB>`, which is the first row and cannot see it: blocks are
    causal. Pairs without an answer have padding to predict, which counts for nothing.
    """
    batch, pad, width = asked.batch, model.special.pad, asked.batch.answers.shape[1]
    target = batch.target[:, :write]  # [B,W]
    tokens = batch.answers[target.clamp(min=0)]  # [B,W,A]
    tokens = torch.where((target >= 0).unsqueeze(-1), tokens, pad)
    ids, qlen, plen = batch.ids[:, :write], batch.qlen[:, :write], batch.plen[:, :write]
    now, context, query = batch.now[:, :write], batch.context[:, :write], asked.query[:, :write]
    block = torch.cat((ids, torch.full_like(tokens, pad)), dim=-1)  # [B,W,L+A]
    rows = qlen.unsqueeze(-1) - 1 + torch.arange(width, device=ids.device)  # [B,W,A]
    block = block.scatter(2, rows + 1, tokens)
    found, summary = model.find_evidence(plen, now, query, asked.state)
    x = model.suffix_tokens(block, context, query, found, summary, _no_prompt(model))
    return model.decoder.suffix(x, rows, model.lead + plen, asked.state), tokens


def _answers(model: Anchor, batch: Batch) -> Tensor:
    spoken = model.texts.vectors(batch.answer_texts)
    return model.answer(batch.answers, batch.answer_length, spoken)


def _asked(model: Anchor, batch: Batch, query: Tensor) -> list[Asked]:
    """A batch with its questions encoded, query [B,Q,E], in parts of little padding."""
    texts = model.texts.vectors(batch.texts)  # [N,E]
    return [Asked(part, own, _state(model, part, texts)) for part, own in _parts(batch, query)]


def _parts(batch: Batch, query: Tensor) -> list[tuple[Batch, Tensor]]:
    parts = batch.parts()
    return list(zip(parts, query.split([len(part.target) for part in parts]), strict=True))


def _users(model: Anchor, asked: Sequence[Asked]) -> Tensor:
    return torch.cat([_vectors(model, part) for part in asked])


def _vectors(model: Anchor, asked: Asked) -> Tensor:
    batch, prompt = asked.batch, _no_prompt(model)
    told = (batch.ids, batch.qlen, batch.plen, batch.now, batch.context, asked.query)
    return model.suffix(*told, prompt, asked.state)


def _noisy_query(model: Anchor, batch: Batch, config: TrainConfig) -> Tensor:
    query = _query(model, batch)
    if not config.query_noise:
        return query
    asked = (batch.query >= 0).unsqueeze(-1)
    return query + config.query_noise * query.std() * torch.randn_like(query) * asked


def _query(model: Anchor, batch: Batch) -> Tensor:
    """Text vectors of the questions [B,Q,E], zero where nothing is asked."""
    vectors = model.texts.vectors(batch.queries)[batch.query.clamp(min=0)]
    return vectors * (batch.query >= 0).unsqueeze(-1)


def _no_prompt(model: Anchor) -> Tensor:
    return torch.zeros(1, model.config.hidden, device=model.decoder.frequencies.device)


def _state(model: Anchor, batch: Batch, texts: Tensor) -> tuple[Tensor, ...]:
    vectors = _event_vectors(batch, texts)
    return model.prefix(vectors, batch.features, batch.modality, batch.days)


def _event_vectors(batch: Batch, texts: Tensor) -> Tensor:
    """Of the vectors of distinct texts [N,E] those of the events, zero at padding: [B,T,E]."""
    return texts[batch.text] * (batch.modality >= 0).unsqueeze(-1)


def _tokens(batch: Batch, write: int) -> int:
    """Tokens of answers that the next-token loss of `write` questions is a mean over."""
    target = batch.target[:, :write]
    return int(batch.answer_length[target.clamp(min=0)][target >= 0].sum())


def _autocast(batch: Batch) -> torch.autocast:
    kind = batch.target.device.type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")


@contextmanager
def _seeded(batch: Batch, seed: int) -> Iterator[None]:
    torch.manual_seed(seed)
    with _autocast(batch):
        yield
