"""What goes into one run of the graphs: the batching policy, and nothing else.

The rule: packing decides how fast vectors come, never what they are. Any packing gives the same
bits (`scoring` says why), so a policy may be chosen for a device alone.

On CPU short histories are pooled, because a run of few tokens is mostly overhead, and long ones run
nearly alone, because a run that outgrows the cache is slower per token. A GPU wants thousands of
tokens at once. Everywhere histories of like length stand together, so that little is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_FULL = 0.8  # a history shorter than this share of the longest in its pack begins another one


@dataclass(frozen=True)
class Policy:
    """How much one run may hold, padding included; it bounds memory as well."""

    events: int  # in one run of the prefix
    tokens: int  # of questions, at every as-of time, in one run of the suffix
    histories: int


CPU = Policy(events=512, tokens=512, histories=16)
CUDA = Policy(events=32_768, tokens=32_768, histories=1_024)


def pack(
    lengths: Sequence[int], moments: Sequence[int], tokens: int, policy: Policy
) -> list[list[int]]:
    """Split pieces of work into packs that run together.

    Args:
        lengths: events that each piece's prefix reads, at least 1.
        moments: as-of times that ask about it; pieces of one pack have equally many.
        tokens: of questions, as they are padded, that run together at one as-of time.
        policy: how much a pack may hold. A piece that is larger has a pack to itself.

    Returns:
        The numbers of the pieces of each pack; every piece stands in exactly one.
    """
    packs: list[list[int]] = []
    order = sorted(range(len(lengths)), key=lambda n: (moments[n], lengths[n]), reverse=True)
    for number in order:
        last = packs[-1] if packs else None
        if last is not None and _fits(number, last, lengths, moments, tokens, policy):
            last.append(number)
        else:
            packs.append([number])
    return packs


def _fits(
    number: int,
    pack: Sequence[int],
    lengths: Sequence[int],
    moments: Sequence[int],
    tokens: int,
    policy: Policy,
) -> bool:
    longest, size = lengths[pack[0]], len(pack) + 1
    return (
        moments[number] == moments[pack[0]]
        and lengths[number] >= _FULL * longest
        and size <= policy.histories
        and size * longest <= policy.events
        and size * moments[number] * tokens <= policy.tokens
    )
