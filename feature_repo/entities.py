"""Whose features these are."""

from feast import Entity, ValueType

household = Entity(
    name="household",
    join_keys=["household_id"],
    value_type=ValueType.STRING,
    description="A household with a loyalty card.",
)
