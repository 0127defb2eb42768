"""Packs hold every piece once and never more than their policy allows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from feast_anchor.transforms.packing import CPU, CUDA, Policy, pack

PIECES = st.lists(st.tuples(st.integers(1, 700), st.integers(1, 5)), max_size=60)


@given(pieces=PIECES, tokens=st.integers(1, 600), policy=st.sampled_from((CPU, CUDA)))
def test_packs_hold_every_piece_once_within_bounds(
    pieces: list[tuple[int, int]], tokens: int, policy: Policy
) -> None:
    """Padded events, tokens and histories stay within the policy, but for a piece by itself."""
    lengths, moments = [length for length, _ in pieces], [moment for _, moment in pieces]
    packs = pack(lengths, moments, tokens, policy)
    assert sorted(number for numbers in packs for number in numbers) == list(range(len(pieces)))
    for numbers in packs:
        longest = max(lengths[number] for number in numbers)
        assert len({moments[number] for number in numbers}) == 1
        assert min(lengths[number] for number in numbers) >= 0.8 * longest
        if len(numbers) > 1:
            assert len(numbers) * longest <= policy.events
            assert len(numbers) * moments[numbers[0]] * tokens <= policy.tokens
            assert len(numbers) <= policy.histories


def test_short_histories_are_pooled_and_long_ones_are_not() -> None:
    """On CPU: sixteen of 20 events and one question together, one of 512 alone."""
    assert [len(numbers) for numbers in pack([20] * 32, [1] * 32, 1, CPU)] == [16, 16]
    assert [len(numbers) for numbers in pack([512] * 3, [1] * 3, 1, CPU)] == [1, 1, 1]
    assert pack([], [], 1, CPU) == []
