"""A small shop to disturb, attempts at materializing it, and one judge for all faults.

The rule: whatever the fault was, after a rerun of the same command `judge` must find exactly what
an undisturbed run leaves. Before it, `untouched` or `all_or_nothing` say what may be joined.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feast import FeatureStore

from faults.attempt import PAUSED, Conditions
from faults.forkserver import ForkServer
from shop import entity, make_tables, modalities, shop_view, write_tables

USERS = 40
SHARDS = 8
VIEW = "taste_v1"
FULL = os.environ.get("FEAST_ANCHOR_FAULTS") == "full"
"""Whether to try the many points of `make test-faults` instead of a few."""
UNDISTURBED = Conditions()
_PATIENCE_S = 180.0


@dataclass(frozen=True)
class Attempt:
    """A running or ended attempt: a real process."""

    server: ForkServer
    pid: int
    log: Path

    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.server.poll(self.pid)

    def kill(self) -> None:
        """SIGKILL to its whole process group, if it still runs."""
        if self.code() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        deadline = time.monotonic() + _PATIENCE_S
        while (code := self.code()) is None:
            assert time.monotonic() < deadline, f"the attempt does not end:\n{self.said()}"
            time.sleep(0.005)
        return code

    def succeed(self) -> None:
        """Wait for its end, which must be a good one."""
        assert self.wait() == 0, self.said()

    def fail(self, *words: str) -> None:
        """Wait for its end, which must be an error that says all these words."""
        assert self.wait() == 1, self.said()
        assert [word for word in words if word not in self.said()] == [], self.said()

    def said(self) -> str:
        """The end of its output."""
        return self.log.read_text("utf-8", "replace")[-6000:] if self.log.exists() else ""


@dataclass(frozen=True)
class Shop:
    """An applied repo of the small shop in a folder of its own."""

    path: Path
    server: ForkServer

    def start(self, conditions: Conditions = UNDISTURBED) -> Attempt:
        """Start an attempt at materializing the shop's window."""
        log = self.path / "logs" / f"{time.monotonic_ns()}.log"
        log.parent.mkdir(exist_ok=True)
        return Attempt(self.server, self.server.start(self.path, log, conditions.to_json()), log)

    def pause(self, where: str, call: int = 1, **conditions: Any) -> Attempt:
        """Start an attempt and return when it waits before a call of a function of ours."""
        attempt = self.start(Conditions(pause_at=where, pause_call=call, **conditions))
        deadline = time.monotonic() + _PATIENCE_S
        while not (self.path / PAUSED).exists():
            assert attempt.code() is None, f"it never came to {where}:\n{attempt.said()}"
            assert time.monotonic() < deadline, f"it never came to {where}:\n{attempt.said()}"
            time.sleep(0.005)
        return attempt

    def go_on(self) -> None:
        """Let the attempt that waits go on."""
        (self.path / PAUSED).unlink()

    def kill_at(self, where: str, call: int = 1) -> None:
        """Kill an attempt before a call of a function of ours."""
        self.pause(where, call).kill()
        self.go_on()

    def store(self) -> FeatureStore:
        """The repo's feature store, opened anew."""
        return FeatureStore(str(self.path))

    @property
    def sink(self) -> Path:
        """Where the view's rows are joined from."""
        return self.path / "sinks" / VIEW

    @property
    def state(self) -> Path:
        """The engine's state folder."""
        return self.path / "state"

    def shards_done(self) -> int:
        """How many shards have a manifest."""
        return len(list(self.state.glob("run-*/shard-*.json")))


def new_shop(
    path: Path, server: ForkServer, bundle: Path, online: Any = None, **engine: Any
) -> Shop:
    """Write the tables and the settings of a shop, and apply it."""
    path.mkdir(parents=True)
    write_tables(path / "tables", make_tables(USERS))
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": "registry.db",
        "offline_store": {"type": "duckdb"},
        "online_store": online or {"type": "sqlite", "path": "online.db"},
        "entity_key_serialization_version": 3,
        "batch_engine": {
            "type": "feast_anchor.plugin.BeamComputeEngine",
            "shards": SHARDS,
            "threads": 1,
            "catalog": "sqlite:///anchor.db",
            "state": "state",
            **engine,
        },
    }
    (path / "feature_store.yaml").write_text(json.dumps(settings), "utf-8")  # JSON is YAML
    raw = [modality.view for modality in modalities(path / "tables")]
    shop = Shop(path, server)
    shop.store().apply([entity(), *raw, shop_view(path, bundle)])
    return shop


NewShop = Callable[..., Shop]
"""Makes an applied shop with some engine settings."""
