"""One question to a chat model behind any OpenAI-compatible endpoint, answered once and kept.

The law of this module: every reply that passed its schema is on disk under the hash of its
request before anybody sees it, so a run that is started again pays for nothing twice; no more
requests are sent than were allowed, failed attempts included; and the API key is read from the
environment when a request is sent, goes into one header, and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from .errors import RunError, SpecError
from .manifest import canonical_sha256

KEY_VARIABLE = "FEAST_ANCHOR_WRITER_KEY"

_AGAIN = frozenset({408, 429, 500, 502, 503, 504})  # worth another attempt
_LONGEST_WAIT = 30.0  # seconds
_LARGEST_REPLY = 1 << 20  # bytes

log = logging.getLogger(__name__)
Reply = TypeVar("Reply", bound=BaseModel)


@dataclass(frozen=True)
class Endpoint:
    """Where a chat model is asked, and how patiently."""

    url: str  # such as "http://localhost:8000/v1"; "/chat/completions" is added
    model: str
    timeout: float = 60.0  # seconds per attempt
    attempts: int = 4
    wait: float = 1.0  # seconds before the second attempt; doubles with each

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise SpecError(
                f"endpoint {self.url!r}, expected a URL such as http://localhost:8000/v1"
            )


class SpentError(Exception):
    """The allowed number of requests is used up."""


class _AgainError(Exception):
    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait  # seconds the server asked for


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the key's header on to wherever a redirect points."""

    def redirect_request(self, *args: Any) -> None:
        """Follow none: a redirect is an error."""


class Client:
    """Asks an endpoint; `sent` and `malformed` count requests and replies that were no use."""

    def __init__(self, endpoint: Endpoint, folder: Path, max_requests: int) -> None:
        self.endpoint, self.folder, self.max_requests = endpoint, folder, max_requests
        self.sent = self.reused = self.malformed = 0
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, kind: type[Reply], task: str, content: Any) -> Reply | None:
        """The model's reply to a task, None if it is not of the schema `kind`.

        Args:
            kind: what the reply must be; its JSON schema is sent along.
            task: what to do with the content.
            content: any JSON value.

        Raises:
            SpentError: another request would be one too many.
            RunError: the endpoint refused, or failed at every attempt.
        """
        body = self._body(kind, task, content)
        path = self.folder / f"{canonical_sha256([self.endpoint.url, body])}.json"
        if path.is_file():
            self.reused += 1
            return kind.model_validate_json(path.read_bytes())
        reply = _parsed(kind, self._patiently(json.dumps(body).encode()))
        if reply is None:
            self.malformed += 1
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_text(reply.model_dump_json(), "utf-8")
        beside.replace(path)
        return reply

    def _body(self, kind: type[BaseModel], task: str, content: Any) -> dict[str, Any]:
        schema = json.dumps(kind.model_json_schema(), sort_keys=True)
        system = f"{task} Reply with one JSON object of this schema and nothing else: {schema}"
        return {
            "model": self.endpoint.model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": json.dumps(content, sort_keys=True)},
            ],
            "temperature": 0.7,
            "seed": 0,
            "response_format": {"type": "json_object"},
        }

    def _patiently(self, body: bytes) -> bytes:
        retrying = Retrying(
            stop=stop_after_attempt(self.endpoint.attempts),
            wait=self._pause,
            retry=retry_if_exception_type(_AgainError),
            reraise=True,
        )
        try:
            return retrying(self._send, body)
        except _AgainError as error:
            raise RunError(
                f"{self.endpoint.url} failed {self.endpoint.attempts} times, last with {error}; "
                "run again later: replies so far are kept"
            ) from error

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _AgainError) else 0.0
        grown: float = self.endpoint.wait * 2 ** (state.attempt_number - 1)
        return min(max(asked, grown), _LONGEST_WAIT)

    def _send(self, body: bytes) -> bytes:
        """One attempt. The status and reason of a failure are told, never its text or headers."""
        if self.sent >= self.max_requests:
            raise SpentError
        self.sent += 1
        log.info("request %d of at most %d", self.sent, self.max_requests)
        url = self.endpoint.url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - Endpoint checks the scheme
        try:
            with self._opener.open(request, timeout=self.endpoint.timeout) as reply:
                content: bytes = reply.read(_LARGEST_REPLY)
                return content
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _AGAIN:
                    after = error.headers.get("Retry-After", "")
                    wait = float(after) if after.isdecimal() else 0.0
                    raise _AgainError(f"status {error.code}", wait) from None
                raise RunError(
                    f"{url} refused with status {error.code}; check URL, model and the key in "
                    f"{KEY_VARIABLE}"
                ) from None
        except (OSError, http.client.HTTPException) as error:
            raise _AgainError(type(error).__name__) from None


def _parsed(kind: type[Reply], content: bytes) -> Reply | None:
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
        return kind.model_validate_json(text)
    except (ValueError, LookupError, TypeError, ValidationError):
        return None
