"""The main job from raw tables to a ranked list, as `make demo` runs it.

It does what a team would do by hand, with the same commands: tables, `feast-anchor train`,
`feast apply`, `feast materialize`, the ranker, a training-set join. Then it measures what came out
and writes `summary.json`. It works inside the feature repo it is given, so that afterwards the
reader can go there and try any command.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from feast import FeatureStore
from pyarrow.dataset import dataset
from rich.console import Console
from rich.table import Table

from feast_anchor.onnx_export.errors import RunError, SpecError
from feast_anchor.plugin.catalog import Catalog
from feast_anchor.plugin.config import parse_config
from feast_anchor.plugin.demo import CUT, SCENARIO_LABELS, make_tables, table_path
from feast_anchor.plugin.demo.tables import START
from feast_anchor.plugin.online import to_numpy
from feast_anchor.plugin.spec import spec_of
from feast_anchor.plugin.train import (
    inside,
    load_modalities,
    read_events,
    sources_of,
    train_bundle_from_repo,
)
from feast_anchor.transforms.job import HISTORY_END

VIEW = "shopper_v1"
CONTROL = "general"  # the scenario without a question
MODALITIES = "events:MODALITIES"
MARKER = ".feast-anchor-demo"  # only folders with this file are emptied
LABEL = "_label"  # labels are named like the scenarios they test
_CHECK_ROWS = 1_000
_LENGTH_TOLERANCE = 1e-5


@dataclass
class Demo:
    """One demo run: where it works, what it found and how long each stage took."""

    repo: Path
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and time it."""
        self.console.rule(f"[bold]{name}", align="left")
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)
        self.console.print(f"{name}: {self.seconds[name]:.1f} s", style="dim")


def run_demo(
    repo: Path,
    data: Path | None,
    out: Path,
    *,
    until: Literal["tables", "bundle", "report"] = "report",
) -> dict[str, Any]:
    """Run the demo and return its summary.

    Args:
        repo: the feature repo; its `data` and `models` folders are made anew.
        data: raw Complete Journey folder, or None for the seeded generator.
        out: folder for `summary.json`.
        until: where to stop; after "tables" or "bundle" the rest can be done by hand.
    """
    demo = Demo(repo.absolute(), Console(soft_wrap=True))
    with demo.stage("tables"):
        _fresh_folders(demo.repo)
        rows = make_tables(demo.repo / "data", data.absolute() if data else None)
        demo.console.print(", ".join(f"{name} {count:,}" for name, count in rows.items()))
    if until == "tables":
        return {}
    with demo.stage("train"):
        _train(demo)
    if until == "bundle":
        demo.console.print(f"Ready: cd {repo} && feast apply")
        return {}
    with demo.stage("feast apply"):
        _feast(demo.repo, "apply")
    with demo.stage("feast materialize"):
        _feast(demo.repo, "materialize", _stamp(START), _stamp(CUT))
    with inside(demo.repo):
        store = FeatureStore(str(demo.repo))
        with demo.stage("ranker, online"):
            _python(demo.repo, "ranker.py")
            _check_online(demo, store)
        with demo.stage("training join, offline"):
            joined = _join(demo, store)
        with demo.stage("linear probe"):
            _probe(demo, joined)
    _from_catalogue(demo, store)
    _finish(demo, out)
    return demo.summary


def _fresh_folders(repo: Path) -> None:
    for name in ("data", "models"):
        folder = repo / name
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise SpecError(
                f"{folder} holds files that the demo did not make; move them away or point --repo "
                "at another copy of the feature repo"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / MARKER).write_text("Made by `feast-anchor demo`, which empties this folder.\n")


def _train(demo: Demo) -> None:
    labels = pd.read_parquet(table_path(demo.repo / "data", "labels"))
    shown = 0.0

    def report(message: str, fraction: float) -> None:
        nonlocal shown
        if fraction >= 1.0 or time.monotonic() - shown >= 5.0:
            shown = time.monotonic()
            demo.console.print(f"  {fraction:4.0%} {message}", highlight=False)

    manifest = train_bundle_from_repo(
        demo.repo,
        MODALITIES,
        cut=CUT,
        out=demo.repo / "models" / "shopper",
        held_out=set(labels.loc[labels["held_out"], "household_id"]),
        on_progress=report,
    )
    demo.summary["bundle"] = {"digest": manifest.digest, "parity": manifest.parity}


def _feast(repo: Path, *arguments: str) -> None:
    _run(repo, str(Path(sys.executable).with_name("feast")), *arguments)


def _python(repo: Path, script: str) -> None:
    _run(repo, sys.executable, script)


def _run(repo: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # so that progress shows in a pipe
    subprocess.run(command, cwd=repo, env=environment, check=True)  # noqa: S603  # our own words


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S")


def _check_online(demo: Demo, store: FeatureStore) -> None:
    """Look every labelled household up: a unit vector for each, of the declared dimension."""
    labels = pd.read_parquet(table_path(demo.repo / "data", "labels"))
    feature = f"{VIEW}:{next(iter(SCENARIO_LABELS))}"
    response = store.get_online_features(
        features=[feature],
        entity_rows=[{"household_id": household} for household in labels["household_id"]],
    )
    vectors = to_numpy(response, feature)
    found = ~np.isnan(vectors[:, 0])
    lengths = np.linalg.norm(vectors[found], axis=1)
    demo.summary["online_lookups"] = {
        "asked": len(vectors),
        "found": int(found.sum()),
        "dim": vectors.shape[1],
        "max_length_error": float(np.abs(lengths - 1).max()),
    }


def _join(demo: Demo, store: FeatureStore) -> pd.DataFrame:
    """Join the labels, and 1,000 random instants of the window, and look for leakage in both."""
    labels = pd.read_parquet(table_path(demo.repo / "data", "labels"))
    features = [f"{VIEW}:{name}" for name in (*SCENARIO_LABELS, CONTROL, HISTORY_END)]
    keys = ["household_id", "event_timestamp"]
    joined = store.get_historical_features(entity_df=labels[keys], features=features).to_df()
    joined = joined.merge(labels.drop(columns="event_timestamp"), on=keys[0], suffixes=("", LABEL))
    checked = store.get_historical_features(
        entity_df=_random_moments(demo.repo), features=features
    ).to_df()
    both = pd.concat([joined, checked], ignore_index=True)
    leaks = ~(pd.to_datetime(both[HISTORY_END], utc=True) < both["event_timestamp"])  # null leaks
    lengths = np.linalg.norm(_matrix(both[CONTROL].dropna()), axis=1)
    demo.summary["max_length_error"] = float(np.abs(lengths - 1).max())
    demo.summary["labels"] = len(labels)
    demo.summary["training_rows_joined"] = int(joined[CONTROL].notna().sum())
    demo.summary["point_in_time_rows_checked"] = len(both)
    demo.summary["leakage_violations"] = int(leaks.sum())
    return joined


def _random_moments(repo: Path) -> pd.DataFrame:
    """Households at random times between their first vector and the cut."""
    sink = dataset(repo / "data" / VIEW).to_table(["household_id", "event_timestamp"])
    first = sink.to_pandas().groupby("household_id")["event_timestamp"].min().sort_index()
    rng = np.random.default_rng(0)
    picked: pd.DataFrame = first.iloc[rng.integers(0, len(first), _CHECK_ROWS)].reset_index()
    picked["event_timestamp"] += (CUT - picked["event_timestamp"]) * rng.random(_CHECK_ROWS)
    picked["event_timestamp"] = picked["event_timestamp"].dt.floor("s")
    return picked


def _probe(demo: Demo, joined: pd.DataFrame) -> None:
    """AUC on held-out households of a linear probe: right query, no query, counts."""
    from feast_anchor.onnx_export.evaluation import count_features, frequent_texts
    from feast_anchor.onnx_export.probe import NO_VECTOR, fit_probe

    joined = joined[joined[CONTROL].notna()].sort_values("household_id", ignore_index=True)
    test = joined["held_out"].to_numpy(dtype=bool)
    users = joined["household_id"].tolist()
    modalities = load_modalities(demo.repo, MODALITIES)
    sources, _ = sources_of(modalities, demo.repo, CUT)
    specs = [modality.declaration().as_spec() for modality in modalities]
    events = read_events(sources, CUT)
    texts = frequent_texts(events, joined.loc[~test, "household_id"].tolist(), CUT)
    counts = count_features(events, users, CUT, specs, texts)
    general = _matrix(joined[CONTROL])
    vector = slice(None)
    together = {"right_query": vector, "no_query": vector, "counts": NO_VECTOR}
    result = {}
    for name in SCENARIO_LABELS:
        y = joined[name + LABEL].to_numpy(dtype=bool)
        inputs = {
            "right_query": _matrix(joined[name]),
            "no_query": general,
            "counts": counts,
        }
        scores = {
            variant: fit_probe(x[~test], y[~test], vector=together[variant]).score(x[test])
            for variant, x in inputs.items()
        }
        result[name] = {"positives": float(y.mean())} | {
            variant: _with_interval(y[test], score) for variant, score in scores.items()
        }
    demo.summary["auc"] = result
    demo.summary["auc_households"] = {"train": int((~test).sum()), "held_out": int(test.sum())}


def _with_interval(y: np.ndarray[Any, Any], score: np.ndarray[Any, Any]) -> dict[str, float]:
    """AUC and its 95 % interval over resampled households."""
    from feast_anchor.onnx_export.evaluation import auc, bootstrap_auc_interval

    low, high = bootstrap_auc_interval(y, score, seed=0, rounds=200)
    return {"auc": auc(y, score), "low": low, "high": high}


def _matrix(vectors: pd.Series) -> np.ndarray[Any, Any]:
    """A column of vectors as one matrix, float32 [rows, dim]."""
    return np.stack(vectors.tolist())


def _from_catalogue(demo: Demo, store: FeatureStore) -> None:
    config = parse_config(store.config.batch_engine_config)
    with Catalog.open(config.catalog_url(demo.repo)) as catalog:
        run = catalog.runs(view=VIEW)[0]
        letters = catalog.dead_letters(run.run_id)
    reasons: Counter[str] = Counter()
    for letter in letters:
        reasons[f"{letter.kind}:{letter.reason}"] += letter.rows
    spec = spec_of(store.get_feature_view(VIEW))
    demo.summary |= {
        "users": run.users_in,
        "users_embedded": run.users_embedded,
        "users_rejected": run.users_rejected,
        "events_in": run.events_in,
        "events_used": run.events_used,
        "events_rejected": run.events_rejected,
        "events_outside_window": run.events_outside,
        "events_over_budget": run.events_over_budget,
        "dead_letters": dict(sorted(reasons.items())),
        "rows_offline": run.rows_offline,
        "rows_online": run.rows_online,
        "scenarios": {scenario.name: scenario.query for scenario in spec.scenarios},
        "space_fingerprints": {scenario.name: scenario.space for scenario in spec.scenarios},
        "run_id": run.run_id,
        "seconds": demo.seconds,
    }


def _finish(demo: Demo, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "summary.json"
    path.write_text(json.dumps(demo.summary, indent=2, sort_keys=True) + "\n", "utf-8")
    summary = demo.summary
    facts = Table(title="What happened", show_header=False, title_justify="left")
    for name in (
        "users", "users_embedded", "users_rejected", "events_in", "events_used", "events_rejected",
        "events_outside_window", "events_over_budget", "rows_offline", "rows_online",
        "training_rows_joined", "point_in_time_rows_checked", "leakage_violations",
    ):  # fmt: skip
        facts.add_row(name.replace("_", " "), f"{summary[name]:,}")
    for reason, count in summary["dead_letters"].items():
        facts.add_row(f"dead letter {reason}", f"{count:,}")
    for stage, seconds in summary["seconds"].items():
        facts.add_row(f"seconds: {stage}", f"{seconds:.1f}")
    held_out = summary["auc_households"]["held_out"]
    probe = Table(title=f"AUC on {held_out} held-out households, future window (95 % interval)")
    for column in ("scenario", "positives", "right query", "no query", "counts"):
        probe.add_column(column, justify="left" if column == "scenario" else "right")
    for name, row in summary["auc"].items():
        found = (row[variant] for variant in ("right_query", "no_query", "counts"))
        scores = (f"{x['auc']:.3f} ({x['low']:.2f}-{x['high']:.2f})" for x in found)
        probe.add_row(name, f"{row['positives']:.1%}", *scores)
    demo.console.print(facts, probe, f"Wrote {path}")
    _require(summary)


def _require(summary: dict[str, Any]) -> None:
    """A demo that shows something wrong must not exit as if all were well."""
    online = summary["online_lookups"]
    wrong = {
        "leakage_violations": summary["leakage_violations"],
        "labels without a vector": summary["labels"] - summary["training_rows_joined"],
        "households not found online": online["asked"] - online["found"],
        "vectors not of unit length": int(
            max(online["max_length_error"], summary["max_length_error"]) > _LENGTH_TOLERANCE
        ),
    }
    found = {name: count for name, count in wrong.items() if count}
    if found:
        raise RunError(f"the demo ran, but its result is wrong: {found}; please report it")
