"""The training objective: contrast a user with answers, and write the answer out.

Every contrastive loss here is InfoNCE: of a positive similarity and many negative ones, the
negative log-probability of the positive. They differ in what they count as negative.

`contrastive` is what training uses unless told otherwise ("split" in the settings). It tells two
sorts of negatives apart. Answers of the *same* question ("yes, produce", "no, produce") are
negatives by construction. Answers of *other* questions may happen to be true of this user.

`infonce` is the loss of Query-as-Anchor (arXiv 2602.14492) in the two forms in which its authors
give it, for comparison.

The rule of the mask: a pair is kept as a negative if its similarity is at most that of the
positive plus `margin`. One that is more similar than that is taken for true and left out.
`margin=None` masks nothing. Whoever has the right answer's own text is never a negative.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
MARGIN = 0.1
WITHIN = 0.7  # weight of the negatives of the same question

Form = Literal["paper", "demo"]


def contrastive(
    users: Tensor, answers: Tensor, target: Tensor, same: Tensor, margin: float | None = MARGIN
) -> Tensor:
    """Mean over all (history, question) pairs that have an answer.

    Args:
        users: vectors of length 1 [B, Q, N].
        answers: vectors of the batch's distinct answer texts, of length 1 [A, N].
        target: right answer of each pair, int64 [B, Q], -1 for none.
        same: bool [Q, A], whether the answer is one of the question's own.
        margin: of the mask; it applies to answers of other questions only. None: no mask.

    Returns:
        `WITHIN` * InfoNCE over the question's own answers + the rest * InfoNCE over all answers
        and over users who answer the question differently; float32, whatever autocast says.
    """
    with torch.autocast(users.device.type, enabled=False):
        users, answers = users.float(), answers.float()
        asked = target >= 0  # [B,Q]
        similarity = users @ answers.T  # [B,Q,A]
        positive, other = _positive(similarity, target.clamp(min=0))  # [B,Q,1], [B,Q,A]
        by_question = users.transpose(0, 1)  # [Q,B,N]
        between = (by_question @ by_question.transpose(1, 2)).transpose(0, 1)  # [B,Q,B]
        differs = (target.unsqueeze(-1) != target.T) & asked.T  # [B,Q,B]: pair b,q against user c
        wide = other & (same | _below(similarity, positive, margin))
        loss = WITHIN * _nll(positive, (similarity, other & same)) + (1 - WITHIN) * _nll(
            positive, (similarity, wide), (between, differs)
        )  # [B,Q]
        return (loss * asked).sum() / asked.sum().clamp(min=1)


def infonce(
    users: Tensor, answers: Tensor, target: Tensor, form: Form, margin: float | None = MARGIN
) -> Tensor:
    """Query-as-Anchor's contrastive loss: one softmax per (history, question) pair with an answer.

    Pair i has the user vector u_i and the right answer y_i. Beside the positive u_i . y_i its
    softmax sums, each masked against u_i . y_i:

    * both forms: user-answer, u_i . a over the distinct answers a of the batch but y_i; and
      user-user, u_i . u_j over the pairs j whose right answer is another.
    * "paper": answer-answer as well, y_i . a over the distinct answers a but y_i.
    * "demo", as the authors' published code: no answer-answer, but user-answer seen from the
      answer as well, y_i . u_j over the pairs j whose right answer is another.

    Pairs of all questions meet, of the same user too. In the authors' batches every pair has an
    answer text of its own; ours share texts, so equal answers are counted once and pairs with
    equal answers do not repel each other.

    Args:
        users, answers, target: as in `contrastive`.
        form: "paper" or "demo".
        margin: of the mask, for every sort of negative. None: no mask.

    Returns:
        Mean over the pairs, 0 when there is none; float32, whatever autocast says.
    """
    with torch.autocast(users.device.type, enabled=False):
        asked = target >= 0
        right = target[asked]  # [P]
        users, answers = users[asked].float(), answers.float()  # [P,N], [A,N]
        similarity = users @ answers.T  # [P,A]
        positive, other = _positive(similarity, right)  # [P,1], [P,A]
        differs = right.unsqueeze(-1) != right  # [P,P]
        sorts = [(similarity, other), (users @ users.T, differs)]
        if form == "paper":
            sorts.append(((answers @ answers.T)[right], other))
        else:
            sorts.append((similarity.T[right], differs))  # [P,P]: answer of i, user of j
        kept = [(score, keep & _below(score, positive, margin)) for score, keep in sorts]
        return _nll(positive, *kept).sum() / max(1, len(right))


def yes_or_no(users: Tensor, yes: Tensor, no: Tensor, says: Tensor) -> Tensor:
    """InfoNCE of users against a plain yes and a plain no, over the pairs that say one of them.

    Args:
        users: vectors of length 1 [B, Q, N].
        yes, no: vectors of length 1 [N].
        says: int64 [B, Q], 1 for yes, 0 for no, -1 for neither.

    Returns:
        Mean over those pairs, 0 when there is none; float32, whatever autocast says.
    """
    with torch.autocast(users.device.type, enabled=False):
        logit = (users.float() @ (yes.float() - no.float())) / TEMPERATURE  # [B,Q]
        said, target = (says >= 0).float(), says.clamp(min=0).float()
        loss = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
        return (loss * said).sum() / said.sum().clamp(min=1)


def next_token(logits: Tensor, tokens: Tensor, pad: int) -> Tensor:
    """Mean cross-entropy of the answer's tokens: logits [..., L, V], tokens int64 [..., L].

    0 where all tokens are padding.
    """
    logits, tokens = logits.flatten(0, -2), tokens.flatten()
    total = F.cross_entropy(logits, tokens, ignore_index=pad, reduction="sum")
    return total / (tokens != pad).sum().clamp(min=1)


def _positive(similarity: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity to the right answer [..., 1], and which answers are others, bool [..., A]."""
    column = right.unsqueeze(-1)
    other = torch.arange(similarity.shape[-1], device=similarity.device) != column
    return similarity.gather(-1, column), other


def _below(similarity: Tensor, positive: Tensor, margin: float | None) -> Tensor:
    """Bool like `similarity`: whether the mask keeps a pair as a negative."""
    if margin is None:
        return torch.ones_like(similarity, dtype=torch.bool)
    return similarity <= positive + margin


def _nll(positive: Tensor, *negatives: tuple[Tensor, Tensor]) -> Tensor:
    """InfoNCE [...] of positive [..., 1] among negatives: (scores [..., n], which to keep)."""
    kept = [scores.masked_fill(~keep, -torch.inf) for scores, keep in negatives]
    scaled = torch.cat((positive, *kept), dim=-1) / TEMPERATURE
    return scaled.logsumexp(-1) - scaled[..., 0]
