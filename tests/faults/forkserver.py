"""A process that has imported everything and forks one attempt after the other.

Importing Feast and Beam takes seconds, an attempt of a small shop less than one. Every attempt is
a real process with its own process group, which the kernel kills for real; only its imports are
shared. Requests and answers are lines of JSON on stdin and stdout.

    {"start": {"repo": path, "log": path, "conditions": text}}  ->  {"pid": 12}
    {"poll": 12}                                  ->  {"code": null}, or its exit code once over
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

_IMPORTS = (
    "faults.attempt",
    "feast_anchor.plugin.engine",
    "feast_anchor.plugin.migrations.upgrade",
    "feast_anchor.transforms.pipeline",
    "feast.infra.offline_stores.duckdb",
    "feast.infra.online_stores.redis",
    "feast.infra.online_stores.sqlite",
    "psycopg",
)


class ForkServer:
    """The test's side: starts the server, asks it for attempts, ends it."""

    def __init__(self, log: Path) -> None:
        self._codes: dict[int, int] = {}
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "faults.forkserver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path, "TZ": "UTC"},
                text=True,
                start_new_session=True,
            )
        assert self._ask({"poll": None}) == {"ready": True}

    def start(self, repo: Path, log: Path, conditions: str) -> int:
        """Start an attempt; returns its process id, which is its group's too."""
        request = {"repo": str(repo), "log": str(log), "conditions": conditions}
        return int(self._ask({"start": request})["pid"])

    def poll(self, pid: int) -> int | None:
        """The exit code of an attempt, negative for a signal, or None while it runs."""
        if pid not in self._codes:
            code: int | None = self._ask({"poll": pid})["code"]
            if code is None:
                return None
            self._codes[pid] = code
        return self._codes[pid]

    def close(self) -> None:
        """End the server; attempts that still run are not its business."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _serve() -> None:
    _import_everything()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    if "start" in request:
        return {"pid": _fork(request["start"])}
    if request["poll"] is None:
        return {"ready": True}
    pid, status = os.waitpid(int(request["poll"]), os.WNOHANG)
    return {"code": os.waitstatus_to_exitcode(status) if pid else None}


def _import_everything() -> None:
    for name in _IMPORTS:
        importlib.import_module(name)


def _fork(request: Mapping[str, str]) -> int:
    pid = os.fork()
    if pid == 0:
        _attempt(request)
    os.setpgid(pid, pid)  # here too, as the child may be killed before it says so itself
    return pid


def _attempt(request: Mapping[str, str]) -> NoReturn:
    from faults.attempt import Conditions, materialize

    code = 1
    try:
        os.setpgid(0, 0)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        materialize(Path(request["repo"]), Conditions.from_json(request["conditions"]))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # what the server has open is not this process's to tidy


if __name__ == "__main__":
    _serve()
