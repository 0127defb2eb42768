"""A seeded marketplace: households whose hidden traits drive both their past and their future.

Rule: behaviour and labels come from the same traits, through chance. History therefore predicts
the labels, never perfectly. Traits are not written anywhere; a model sees only events.

Households are made a chunk at a time, each chunk from its own random stream, so memory does not
grow with the population. About one row in a thousand is broken on purpose, as real rows are.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feast_anchor.onnx_export.errors import SpecError
from feast_anchor.plugin.demo.tables import (
    DEMOGRAPHICS_COLUMNS,
    PROFILE_TIME,
    SCHEMAS,
    START,
    table_writer,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Column = NDArray[Any]

CHUNK = 4000  # households made at once: 180k purchase rows, below 200 MB at the peak
DAYS = 365
LINES_PER_BASKET = 1.8
SECOND = 1_000_000  # microseconds


@dataclass(frozen=True)
class Department:
    """One department: share of demand, season, money and what it sells."""

    name: str
    share: float  # relative demand of an average household
    peak: int  # day of the year on which demand is highest
    swing: float  # 0 = no season, 1 = demand falls to nothing half a year off the peak
    price: float  # median money per line
    fresh: float  # pull of the trait "cooks fresh"
    family: float  # pull of the trait "feeds a family"
    sells: str  # product types, comma separated

    @property
    def product_types(self) -> list[str]:
        """`sells` as a list, the most popular type first."""
        return self.sells.split(",")


# fmt: off
DEPARTMENTS = (
    Department("GROCERY", .37, 340, .10, 2.2, -.1, .3, "SOFT DRINKS,SHREDDED CHEESE,WHITE BREAD,"
               "POTATO CHIPS,CONDENSED SOUP,KIDS CEREAL,TORTILLA CHIPS,FROZEN VEGETABLES,COOKIES,"
               "TOILET TISSUE,PASTA,PEANUT BUTTER,GROUND COFFEE,RICE,CANNED TUNA,FROZEN PIZZA"),
    Department("DAIRY", .13, 20, .08, 2.1, .1, .5, "WHITE MILK,CHOCOLATE MILK,YOGURT,EGGS,BUTTER,"
               "SOUR CREAM,CREAM CHEESE,COTTAGE CHEESE,MARGARINE"),
    Department("PRODUCE", .07, 190, .55, 1.8, 1.1, .1, "BANANAS,STRAWBERRIES,HEAD LETTUCE,GRAPES,"
               "CUCUMBERS,BELL PEPPERS,SWEET ONIONS,RUSSET POTATOES,TOMATOES,NAVEL ORANGES,APPLES,"
               "BABY CARROTS"),
    Department("MEAT", .04, 180, .45, 5.0, .4, .7, "GROUND BEEF,CHOICE BEEF,CHICKEN BREAST,"
               "PORK CHOPS,LEAN BEEF,STEAK,RIBS,LAMB"),
    Department("MEAT-PCKGD", .05, 185, .30, 3.2, -.5, .5, "HOT DOGS,BACON,BOLOGNA,HAM,LUNCH COMBO,"
               "SMOKED SAUSAGE,BREADED CHICKEN"),
    Department("DRUG GM", .10, 15, .25, 2.9, -.3, .2, "CANDY BARS,CHEWING GUM,COLD REMEDY,SHAMPOO,"
               "BABY FOOD,BATTERIES,GREETING CARDS,TOOTHPASTE,NEWSPAPER,VITAMINS"),
    Department("DELI", .03, 355, .25, 4.1, .3, -.2, "BULK TURKEY,BULK HAM,BULK CHEESE,"
               "ROAST CHICKEN,POTATO SALAD,PARTY TRAY"),
    Department("PASTRY", .025, 350, .50, 2.6, -.2, .3, "DONUTS,BIRTHDAY CAKE,BAGELS,PIES,"
               "ITALIAN BREAD,MUFFINS"),
    Department("NUTRITION", .02, 10, .40, 3.0, .9, -.3, "ORGANIC CEREAL,SOY MILK,ENERGY BARS,"
               "PROTEIN POWDER,GLUTEN FREE BREAD"),
    Department("FUEL", .03, 200, .20, 23.0, .0, .2, "REGULAR UNLEADED,MIDGRADE UNLEADED,PREMIUM "
               "UNLEADED,DIESEL,CAR WASH"),
    Department("SEAFOOD", .015, 70, .60, 6.5, .9, -.2, "SALMON FILLET,SHRIMP,CATFISH,COD,"
               "CRAB LEGS"),
    Department("SALAD BAR", .015, 170, .40, 3.2, .8, -.5, "FRESH FRUIT CUP,GREEN SALAD,SOUP CUP,"
               "PASTA SALAD,WRAPS"),
    Department("COSMETICS", .012, 345, .35, 4.8, .0, -.2, "LIPSTICK,MASCARA,NAIL POLISH,FOUNDATION,"
               "HAIR COLOR"),
    Department("FLORAL", .01, 120, .70, 6.0, .3, -.1, "ROSES,TULIPS,POTTED PLANTS,MIXED BOUQUET,"
               "WREATHS"),
    Department("SPIRITS", .01, 355, .45, 9.5, .1, -.5, "RED WINE,WHITE WINE,WHISKEY,VODKA,LIQUEUR"),
)
# fmt: on

# Campaigns start every 15 days; A reaches many, B and C few but willing households.
CAMPAIGN_DAYS = np.arange(4, DAYS, 15)
CAMPAIGN_TYPES = np.array(["Type A", "Type B", "Type C"], dtype=object)
CAMPAIGN_KIND = np.arange(len(CAMPAIGN_DAYS)) % 3
CAMPAIGN_REACH = np.array([0.40, 0.12, 0.06])[CAMPAIGN_KIND]

_SHARES = np.array([d.share for d in DEPARTMENTS])
_TILT = np.array([(d.fresh, d.family) for d in DEPARTMENTS])  # [D, 2]
_PRICES = np.array([d.price for d in DEPARTMENTS])
_TYPE_COUNT = np.array([len(d.product_types) for d in DEPARTMENTS])
_TYPE_START = np.cumsum(_TYPE_COUNT) - _TYPE_COUNT
_DEPARTMENT_NAMES = np.array([d.name for d in DEPARTMENTS], dtype=object)
_TYPE_NAMES = np.array([t for d in DEPARTMENTS for t in d.product_types], dtype=object)
_BRANDS = np.array(["National", "Private"], dtype=object)

AGES = np.array(["19-24", "25-34", "35-44", "45-54", "55-64", "65+"], dtype=object)
INCOMES = np.array(
    ["Under 15K", "15-24K", "25-34K", "35-49K", "50-74K", "75-99K", "100-124K", "125K+"],
    dtype=object,
)
KIDS = np.array(["0", "1", "2", "3+"], dtype=object)
SIZES = np.array(["1", "2", "3", "4", "5+"], dtype=object)


def season() -> Floats:
    """Demand of each department on each day of the year, float64[365, D], 1 on average."""
    days = np.arange(DAYS)[:, None]
    peaks = np.array([d.peak for d in DEPARTMENTS])
    swings = np.array([d.swing for d in DEPARTMENTS])
    demand: Floats = 1.0 + swings * np.cos(2 * np.pi * (days - peaks) / DAYS)
    return demand


@dataclass(frozen=True, repr=False)
class Traits:
    """The hidden side of n households. Standard normal unless the comment says otherwise."""

    names: Column  # [n] household ids
    taste: Floats  # [n, D] > 0, relative demand per department
    favourite: Ints  # [n, D] the product type a household reaches for first
    fresh: Floats  # [n]
    family: Floats  # [n]
    coupon: Floats  # [n] coupon-proneness
    thrift: Floats  # [n] price sensitivity
    morning: Floats  # [n]
    basket_rate: Floats  # [n, 365] expected baskets per day, trend and leaving included
    first_day: Ints  # [n] first day as a customer
    last_day: Floats  # [n] the day on which the household has left; may lie after the year


def _traits(rng: np.random.Generator, names: Column, baskets_per_user: float) -> Traits:
    n, departments = len(names), len(DEPARTMENTS)
    fresh, family, thrift, morning, activity = rng.standard_normal((5, n))
    coupon = 0.5 * thrift + 0.866 * rng.standard_normal(n)
    pull = np.stack([fresh, family], axis=1) @ _TILT.T  # [n, D]
    taste = _SHARES * np.exp(pull + 0.7 * rng.standard_normal((n, departments)))
    first_day = np.where(rng.random(n) < 0.15, rng.integers(0, 200, n), 0)
    years_left = rng.exponential(1.0, n) * 6.0 * np.exp(0.6 * activity - rng.standard_normal(n))
    last_day = first_day + 120 + DAYS * years_left
    trend = 0.8 * rng.standard_normal(n)
    days = np.arange(DAYS)
    rate = np.exp(0.8 * activity[:, None] + trend[:, None] * (days / DAYS - 0.5))  # [n, 365]
    rate *= np.exp(0.6 * rng.standard_normal((n, 13)))[:, days // 30]  # busy and idle months
    rate *= np.clip((last_day[:, None] - days) / 60, 0, 1) * (days >= first_day[:, None])
    rate *= baskets_per_user * n / rate.sum()
    return Traits(
        names=names,
        taste=taste,
        favourite=rng.integers(0, _TYPE_COUNT, (n, departments)),
        fresh=fresh,
        family=family,
        coupon=coupon,
        thrift=thrift,
        morning=morning,
        basket_rate=rate,
        first_day=first_day,
        last_day=last_day,
    )


def _logistic(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))


def _pick(rng: np.random.Generator, weights: Floats) -> Ints:
    """One column per row of float64[L, D], with probability proportional to its weight."""
    edges = np.cumsum(weights, axis=1)
    chosen: Ints = (rng.random(len(weights))[:, None] * edges[:, -1:] > edges).sum(axis=1)
    return chosen


def _instants(day: Ints, second: Column) -> Ints:
    """Microseconds since the epoch, from a day of the data's year and a second of that day."""
    start = int(START.timestamp())
    return (start + day * 86_400 + second.astype(np.int64)) * SECOND


def _basket_seconds(rng: np.random.Generator, morning: Floats) -> Floats:
    """UTC second of the day: about 10:00 or 17:00 on the shop's clock, New York."""
    early = rng.random(len(morning)) < _logistic(1.2 * morning - 1.3)
    hour = np.where(early, rng.normal(14.5, 1.0, len(morning)), rng.normal(21.5, 1.6, len(morning)))
    return np.minimum(hour, 2 * 23.99 - hour) * 3600  # late shoppers are folded back into the day


def _purchases(rng: np.random.Generator, traits: Traits, chunk: int) -> dict[str, Column]:
    baskets = rng.poisson(traits.basket_rate)  # [n, 365]
    user, day = np.nonzero(baskets)
    count = baskets[user, day]
    user, day = np.repeat(user, count), np.repeat(day, count)  # one entry per basket
    at = _instants(day, _basket_seconds(rng, traits.morning[user]))
    lines = 1 + rng.poisson(LINES_PER_BASKET - 1, len(user))
    number = np.repeat(np.arange(len(user)) + chunk * 10_000_000, lines)
    user, day, at = (np.repeat(column, lines) for column in (user, day, at))
    rows = len(user)
    department = _pick(rng, traits.taste[user] * season()[day])
    kinds = _TYPE_COUNT[department]
    shift = traits.favourite[user, department] * (rng.random(rows) < 0.6)
    kind = ((rng.random(rows) ** 2 * kinds).astype(np.int64) + shift) % kinds
    thrift = traits.thrift[user]
    private = (rng.random(rows) < _logistic(0.9 * thrift - 1.0)).astype(np.int64)
    price = _PRICES[department] * np.exp(0.45 * rng.standard_normal(rows) - 0.15 * thrift)
    return {
        "household_id": traits.names[user],
        "event_timestamp": at,
        "product_type": _TYPE_NAMES[_TYPE_START[department] + kind],
        "department": _DEPARTMENT_NAMES[department],
        "brand": _BRANDS[private],
        "sales_value": np.round(price * (1 - 0.2 * private), 2),
        "basket_id": number.astype(str).astype(object),
    }


def _mailed(rng: np.random.Generator, traits: Traits) -> NDArray[np.bool_]:
    """Which household was mailed which campaign, bool[n, campaigns]."""
    reach = CAMPAIGN_REACH * np.exp(0.5 * traits.coupon)[:, None]
    customer = traits.first_day[:, None] <= CAMPAIGN_DAYS
    known = traits.last_day[:, None] + 60 > CAMPAIGN_DAYS  # leaving is noticed two months late
    return (rng.random(reach.shape) < reach) & customer & known


def _redemptions(
    rng: np.random.Generator, traits: Traits, mailed: NDArray[np.bool_]
) -> dict[str, Column]:
    willing = np.exp(1.1 * traits.coupon + 0.3 * traits.thrift - 2.3)[:, None]
    user, campaign = np.nonzero(rng.poisson(willing * mailed))
    day = CAMPAIGN_DAYS[campaign] + rng.integers(0, 40, len(user))
    kept = (day < DAYS) & (day < traits.last_day[user])
    user, campaign, day = user[kept], campaign[kept], day[kept]
    return {
        "household_id": traits.names[user],
        "event_timestamp": _instants(day, np.full(len(user), 86_399)),
        "campaign_type": CAMPAIGN_TYPES[CAMPAIGN_KIND[campaign]],
        "department": _DEPARTMENT_NAMES[_pick(rng, traits.taste[user])],
    }


def _mailings(traits: Traits, mailed: NDArray[np.bool_]) -> dict[str, Column]:
    user, campaign = np.nonzero(mailed)
    return {
        "household_id": traits.names[user],
        "event_timestamp": _instants(CAMPAIGN_DAYS[campaign], np.zeros(len(user))),
        "campaign_type": CAMPAIGN_TYPES[CAMPAIGN_KIND[campaign]],
    }


def _demographics(rng: np.random.Generator, traits: Traits) -> dict[str, Column]:
    """Profiles of six households in ten; a fifth of the cells are unknown."""
    n = len(traits.names)

    def level(lean: Floats, values: Column) -> Ints:
        mixed = 0.7 * lean + 0.7 * rng.standard_normal(n)
        return np.clip((_logistic(1.6 * mixed) * len(values)).astype(np.int64), 0, len(values) - 1)

    kids = np.maximum(level(traits.family, np.arange(6)) - 2, 0)
    couple = (rng.random(n) < _logistic(traits.family + 0.3)).astype(np.int64)
    owner = rng.random(n) < _logistic(0.8 - 0.8 * traits.thrift)
    adults = np.where(couple == 1, "2 Adults", "1 Adult").astype(object)
    values = (
        AGES[level(traits.morning, AGES)],
        INCOMES[level(-traits.thrift, INCOMES)],
        np.where(owner, "Homeowner", "Renter").astype(object),
        np.where(couple == 1, "Married", "Unmarried").astype(object),
        SIZES[np.minimum(couple + kids, len(SIZES) - 1)],
        adults + np.where(kids > 0, " Kids", " No Kids").astype(object),
        KIDS[kids],
    )
    kept = rng.random(n) < 0.6
    columns: dict[str, Column] = {
        "household_id": traits.names[kept],
        "event_timestamp": np.full(kept.sum(), int(PROFILE_TIME.timestamp()) * SECOND),
    }
    for name, column in zip(DEMOGRAPHICS_COLUMNS, values, strict=True):
        columns[name] = np.where(rng.random(n) < 0.2, "unknown", column)[kept]
    return columns


def _broken(rng: np.random.Generator, rows: int) -> dict[str, Ints]:
    """Column -> rows whose cell goes missing: 0.025 % per fault, at least five of a kind."""
    each = min(max(5, rows // 4000), rows // 4)
    household, time, words, money = rng.permutation(rows)[: 4 * each].reshape(4, each)
    return {
        "household_id": household,
        "event_timestamp": time,
        "product_type": words,
        "department": words,
        "brand": words,
        "sales_value": money,
    }


def _table(
    rng: np.random.Generator, name: str, columns: dict[str, Column], broken: dict[str, Ints]
) -> pa.Table:
    """The columns as table `name`, rows shuffled; a broken cell is null, broken money is NaN."""
    arrays = []
    for field in SCHEMAS[name]:
        column, lost = columns[field.name], broken.get(field.name, np.array([], dtype=np.int64))
        missing = np.zeros(len(column), dtype=bool)
        missing[lost] = True
        if pa.types.is_floating(field.type):
            array = pa.array(np.where(missing, np.nan, column), from_pandas=False)
        else:
            plain = pa.int64() if pa.types.is_timestamp(field.type) else field.type
            array = pa.array(column, plain, mask=missing).cast(field.type)
        arrays.append(array)
    order = rng.permutation(len(arrays[0]))
    return pa.Table.from_arrays(arrays, schema=SCHEMAS[name]).take(pa.array(order))


def _chunk_tables(
    rng: np.random.Generator, names: Column, chunk: int, events_per_user: float
) -> dict[str, pa.Table]:
    traits = _traits(rng, names, events_per_user / LINES_PER_BASKET)
    mailed = _mailed(rng, traits)
    made = {
        "purchases": _purchases(rng, traits, chunk),
        "redemptions": _redemptions(rng, traits, mailed),
        "mailings": _mailings(traits, mailed),
        "demographics": _demographics(rng, traits),
    }
    tables = {}
    for name, columns in made.items():
        faulty = name in ("purchases", "redemptions")
        broken = _broken(rng, len(columns["household_id"])) if faulty else {}
        tables[name] = _table(rng, name, columns, broken)
    return tables


def generate(out: Path, *, users: int = 2000, seed: int = 7, events_per_user: float = 45.0) -> None:
    """Write purchases, redemptions, mailings and demographics of a made-up year into `out`.

    `events_per_user` is the mean number of purchase rows per household in the year. The same
    arguments give the same rows in the same order. Raises SpecError for fewer than one user or
    an `events_per_user` that is not above zero.
    """
    if users < 1 or not events_per_user > 0:
        raise SpecError(
            f"users={users!r}, events_per_user={events_per_user!r}: expected at least one user "
            "and more than zero events; give larger numbers"
        )
    names = np.array([f"H{number:06d}" for number in range(users)], dtype=object)
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {
            name: stack.enter_context(table_writer(out, name))
            for name in ("purchases", "redemptions", "mailings", "demographics")
        }
        for chunk, some in enumerate(np.array_split(names, -(-users // CHUNK))):
            tables = _chunk_tables(
                np.random.default_rng([seed, chunk]), some, chunk, events_per_user
            )
            for name, table in tables.items():
                writers[name].write_table(table)
