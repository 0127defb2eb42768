from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feast_anchor.onnx_export.corpus import Corpus
from feast_anchor.onnx_export.corpus_store import REPLIES, build_or_read, read_corpus
from feast_anchor.onnx_export.endpoint import KEY_VARIABLE, Client, Endpoint
from feast_anchor.onnx_export.errors import RunError, SpecError
from feast_anchor.onnx_export.facts import KIND, Facts, user_facts
from feast_anchor.onnx_export.families import general_corpus, join
from feast_anchor.onnx_export.future import find_kinds
from feast_anchor.onnx_export.scope import Scope, make_scope
from feast_anchor.onnx_export.writer import (
    Statement,
    Writer,
    WriterConfig,
    objection,
    phrasing_objection,
)
from tiny import TINY_CUT, TINY_MODALITIES, tiny_events

KEY = "sk-very-secret-0123456789"
HELD = ("u000", "u007")
FEW = WriterConfig(users=4, statements=2, questions=3, phrasings=2, max_requests=40)
Say = Callable[[dict[str, Any]], Any]


class Stub:
    """A chat endpoint that answers with `say(content)`; statuses in `failures` come first."""

    def __init__(self) -> None:
        self.say: Say = honest
        self.failures: list[int] = []
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.seen.append(body)
                stub.keys.append(self.headers.get("Authorization"))
                if stub.failures:
                    self.send_response(stub.failures.pop(0))
                    self.send_header("Retry-After", "0")
                    self.send_header("Location", "/elsewhere")
                    self.end_headers()
                    self.wfile.write(f"no use: {self.headers.get('Authorization')}".encode())
                    return
                said = stub.say(json.loads(body["messages"][1]["content"]))
                text = said if isinstance(said, str) else json.dumps(said)
                self.send_response(200)
                self.end_headers()
                envelope = {"choices": [{"message": {"role": "assistant", "content": text}}]}
                self.wfile.write(json.dumps(envelope).encode())

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def contents(self) -> list[dict[str, Any]]:
        return [json.loads(body["messages"][1]["content"]) for body in self.seen]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A running stub; the key is set as a user would set it."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    found = Stub()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def told(fact: str, value: Any) -> dict[str, Any]:
    """A statement that says a fact as it is."""
    topic = fact.removeprefix(KIND)
    return {
        "question": f"tell me of the {topic}, please?",
        "answer": f"{value} for {topic}" if isinstance(value, str) else f"{topic}: {value}",
        "fact": fact,
        "value": value,
    }


def honest(content: dict[str, Any]) -> Any:
    """A model that tells the truth and confirms everything."""
    for asked in ("statements", "candidates"):
        if asked in content:
            return {"verdicts": [True] * len(content[asked])}
    if "question" in content:
        return {"phrasings": [f"put otherwise: {content['question']}"]}
    visits = "number of visits"
    return {"statements": [told(visits, content["facts"][visits])]}


def tiny_scope(events: pa.Table | None = None) -> Scope:
    table = tiny_events() if events is None else events
    return make_scope(
        table, TINY_MODALITIES, cut=TINY_CUT, entity="customer", held_out=HELD, topics=5
    )


@pytest.fixture(scope="module")
def scope() -> Scope:
    return tiny_scope()


@pytest.fixture(scope="module")
def corpus(scope: Scope) -> Corpus:
    return join([general_corpus(scope)])


def writer(scope: Scope, stub: Stub, folder: Path, config: WriterConfig = FEW) -> Writer:
    endpoint = Endpoint(stub.url, "stub", timeout=5.0, attempts=3, wait=0.01)
    return Writer(scope, Client(endpoint, folder, config.max_requests), config)


def test_what_stands_the_checks_enters_the_corpus(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path
) -> None:
    """Phrasings join their questions; statements become one question with an answer per user."""
    writing = writer(scope, stub, tmp_path)
    out = writing.extend(corpus)
    longer = [
        after.phrasings[len(before.phrasings) :]
        for before, after in zip(corpus.questions, out.questions, strict=False)
    ]
    assert sum(map(bool, longer)) == FEW.questions
    assert all(new[0].startswith("put otherwise: ") for new in longer if new)
    question = out.questions[-1]
    assert question.family == "written"
    assert question.phrasings == ("tell me of the number of visits, please?",)
    rows = np.flatnonzero(out.labels[:, -1] >= 0)
    assert len(rows) == FEW.users
    for row in rows:
        facts = user_facts(scope, find_kinds(scope), int(row))
        said = out.answers[out.labels[row, -1]]
        assert said == f"number of visits: {facts['number of visits']}"
    np.testing.assert_array_equal(out.labels[:, :-1], corpus.labels)
    assert writing.kept == FEW.users + FEW.questions
    assert not writing.rejected
    assert stub.keys[0] == f"Bearer {KEY}"


def test_joining_a_family_unsays_nothing(corpus: Corpus) -> None:
    """An answer that a writer gave too, unread, stays the yes or no that it is."""
    mute = replace(corpus, says=np.full_like(corpus.says, -1))
    assert set(corpus.says.tolist()) == {-1, 0, 1}
    np.testing.assert_array_equal(join([corpus, mute]).says, corpus.says)


def test_a_second_run_sends_nothing(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path
) -> None:
    """Replies on disk answer for the endpoint, and the corpus is the same."""
    first = writer(scope, stub, tmp_path).extend(corpus)
    sent = len(stub.seen)
    again = writer(scope, stub, tmp_path, replace(FEW, max_requests=0))
    second = again.extend(corpus)
    assert len(stub.seen) == sent == 2 * (FEW.users + FEW.questions)
    assert again.complete
    assert (second.questions, second.answers) == (first.questions, first.answers)
    np.testing.assert_array_equal(second.labels, first.labels)


def test_a_stored_corpus_resumes_where_the_endpoint_failed(
    scope: Scope, stub: Stub, tmp_path: Path
) -> None:
    """The replies before a failure are in the folder; the next build asks for the others only."""
    folder = tmp_path / "corpus"

    def build() -> Corpus:
        writing = writer(scope, stub, folder / REPLIES)
        families = {"general": general_corpus}
        return build_or_read(
            folder, scope, families=families, extend=writing.extend, extend_key="stub"
        )

    stub.say = lambda content: stub.failures.append(401) if len(stub.seen) == 5 else honest(content)
    with pytest.raises(RunError, match="refused with status 401"):
        build()
    kept = len(list((folder / REPLIES).glob("*.json")))
    assert kept >= 4
    stub.say, stub.failures, stub.seen = honest, [], []
    built = build()
    assert len(stub.seen) == 2 * (FEW.users + FEW.questions) - kept
    assert "written" in {question.family for question in read_corpus(folder).questions}
    assert build().questions == built.questions
    assert len(stub.seen) == 2 * (FEW.users + FEW.questions) - kept


def test_requests_are_bounded(scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path) -> None:
    """Failed attempts count too; what came before the bound is kept, and a later run goes on."""
    stub.failures = [503]
    bounded = writer(scope, stub, tmp_path, replace(FEW, max_requests=6))
    bounded.extend(corpus)
    assert len(stub.seen) == 6
    assert not bounded.complete
    writer(scope, stub, tmp_path).extend(corpus)
    assert len(stub.seen) == 2 * (FEW.users + FEW.questions) + 1


def test_a_malformed_reply_is_dropped(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path
) -> None:
    """Text that is no JSON, or JSON of another shape, adds nothing and is not kept on disk."""
    replies = iter(["I would love to!", {"statements": [{"question": "?"}]}] * 100)
    stub.say = lambda content: next(replies)
    writing = writer(scope, stub, tmp_path)
    out = writing.extend(corpus)
    assert out.questions == corpus.questions
    assert writing.client.malformed == FEW.users + FEW.questions
    assert not list(tmp_path.iterdir())


def test_reflection_rejects(scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path) -> None:
    """What the model itself does not confirm stays out, though our check finds nothing wrong."""

    def doubting(content: dict[str, Any]) -> Any:
        said = honest(content)
        return {"verdicts": [False] * len(said["verdicts"])} if "verdicts" in said else said

    stub.say = doubting
    writing = writer(scope, stub, tmp_path)
    assert writing.extend(corpus).questions == corpus.questions
    assert writing.rejected == {"reflection said no": FEW.users + FEW.questions}


def test_the_data_overrules_a_confirmed_statement(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path
) -> None:
    """A number that is not ours stays out although the model confirmed it."""

    def lying(content: dict[str, Any]) -> Any:
        said = honest(content)
        if "statements" in said:
            said["statements"] = [told("number of visits", 9999)]
        return said

    stub.say = lying
    writing = writer(scope, stub, tmp_path)
    assert "written" not in {q.family for q in writing.extend(corpus).questions}
    assert writing.rejected == {"contradicts the data": FEW.users}


def test_too_few_verdicts_reject_all(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path
) -> None:
    """Verdicts that cannot be matched with items confirm none."""
    stub.say = lambda content: {"verdicts": []} if "verdicts" in (said := honest(content)) else said
    writing = writer(scope, stub, tmp_path)
    assert writing.extend(corpus).questions == corpus.questions
    assert writing.kept == 0


FACTS: Facts = {
    "number of visits": 12,
    KIND + "7up": 5,
    "usual part of the day of visits": "evening",
}


@pytest.mark.parametrize(
    ("question", "answer", "fact", "value", "why"),
    [
        ("how many visits?", "12 visits", "number of visits", 12, ""),
        ("how many visits?", "12 or so", "number of visits", 12.0, ""),
        ("how many visits?", "none at all", "number of visits", 12, "does not say the fact"),
        ("how many visits?", "13 visits", "number of visits", 12, "tells another number"),
        ("how many visits?", "13 visits", "number of visits", 13, "contradicts the data"),
        ("are 12 visits many?", "yes", "number of visits", 12, "question with numbers"),
        ("how many flights?", "3", "number of flights", 3, "no such fact"),
        ("how much 7up?", "5 times", KIND + "7up", 5, ""),
        ("how much lemonade?", "5 times", KIND + "7up", 5, "does not name its topic"),
        ("when?", "in the evening", "usual part of the day of visits", "evening", ""),
        ("when?", "late", "usual part of the day of visits", "evening", "does not say the fact"),
        ("when?", "at night", "usual part of the day of visits", "night", "contradicts the data"),
    ],
)
def test_statements_are_checked(
    question: str, answer: str, fact: str, value: int | float | str, why: str
) -> None:
    """Fact, value, topic and every number that is told must be those of the data."""
    statement = Statement(question=question, answer=answer, fact=fact, value=value)
    assert objection(statement, FACTS) == why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("any tea in 28 days?", ""),
        ("TEA within 28 days", "phrasing in use"),
        ("tea in 91 days?", "phrasing with another number"),
        ("t" * 200, "phrasing too long or too short"),
    ],
)
def test_phrasings_are_checked(text: str, why: str) -> None:
    """A phrasing is new, of a fair length, and speaks of no other number of days."""
    known = ("tea within 28 days?",)
    assert phrasing_objection(text, known, {"tea within 28 days"}) == why


def test_facts_are_of_the_past_of_training_users() -> None:
    """Late events, events after the as-of and held-out users change no fact."""
    scope, events = tiny_scope(), tiny_events()
    kinds, row = find_kinds(scope), 5
    user, as_of = scope.events.users[scope.user[row]], int(scope.as_of[row])
    micros = events.column("event_timestamp").cast(pa.int64())
    later = pc.or_(
        pc.is_in(events.column("user"), value_set=pa.array(HELD)),
        pc.greater_equal(micros, as_of),
    )
    amount = pc.if_else(later, pa.scalar(999.0, pa.float32()), events.column("amount"))
    changed = tiny_scope(events.set_column(4, events.schema.field(4), amount))
    facts = user_facts(scope, kinds, row)
    assert user_facts(changed, find_kinds(changed), row) == facts
    own = [
        r
        for r in events.to_pylist()
        if r["user"] == user
        and r["modality"] == 0
        and r["event_timestamp"].timestamp() * 1e6 < as_of
    ]
    assert facts["number of visits"] == len(own)
    assert facts["median amount of visits"] == round(
        float(np.median([r["amount"] for r in own])), 2
    )


def test_no_held_out_user_reaches_the_endpoint(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path
) -> None:
    """Poisoned late events and held-out users change no byte of any request."""
    writer(scope, stub, tmp_path / "clean").extend(corpus)
    clean, stub.seen = stub.seen, []
    events = tiny_events()
    late = pc.greater_equal(events.column("event_timestamp"), pa.scalar(TINY_CUT))
    poison = pc.or_(late, pc.is_in(events.column("user"), value_set=pa.array(HELD)))
    text = pc.if_else(poison, pa.scalar("gold in jewels"), events.column("text"))
    changed = tiny_scope(events.set_column(3, events.schema.field(3), text))
    writer(changed, stub, tmp_path / "poisoned").extend(join([general_corpus(changed)]))
    assert stub.seen == clean


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path, status: int
) -> None:
    """A status that passes costs an attempt and nothing else."""
    stub.failures = [status]
    writing = writer(scope, stub, tmp_path)
    writing.extend(corpus)
    assert writing.kept == FEW.users + FEW.questions
    assert writing.client.sent == 2 * (FEW.users + FEW.questions) + 1


def test_an_endpoint_that_stays_busy_is_a_run_error(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path
) -> None:
    """After the last attempt the message says how often and that replies are kept."""
    stub.failures = [503] * 3
    with pytest.raises(RunError, match="failed 3 times, last with status 503"):
        writer(scope, stub, tmp_path).extend(corpus)


@pytest.mark.parametrize("status", [302, 401, 404])
def test_a_refusal_is_not_repeated(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path, status: int
) -> None:
    """A wrong key, URL or a redirect ends the run after one request, without the reply's text."""
    stub.failures = [status]
    with pytest.raises(RunError, match=f"refused with status {status}") as caught:
        writer(scope, stub, tmp_path).extend(corpus)
    assert len(stub.seen) == 1
    assert KEY not in str(caught.value)


def test_a_closed_port_is_a_run_error(scope: Scope, corpus: Corpus, tmp_path: Path) -> None:
    """Nobody there: as many attempts as allowed, then one readable error."""
    endpoint = Endpoint("http://127.0.0.1:9/v1", "stub", timeout=2.0, attempts=2, wait=0.01)
    with pytest.raises(RunError, match="failed 2 times, last with URLError"):
        Writer(scope, Client(endpoint, tmp_path, 9), FEW).extend(corpus)


def test_the_key_is_written_nowhere(
    scope: Scope, corpus: Corpus, stub: Stub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither logs of any level, files, errors nor the client's attributes hold the key."""
    caplog.set_level(logging.DEBUG)
    stub.failures = [429]
    writing = writer(scope, stub, tmp_path)
    writing.extend(corpus)
    assert caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(vars(writing.client))
    assert all(KEY not in path.read_text("utf-8") for path in tmp_path.rglob("*.json"))
    assert KEY not in json.dumps(stub.seen)


def test_another_scheme_is_a_spec_error() -> None:
    """Only HTTP is spoken."""
    with pytest.raises(SpecError, match="expected a URL such as"):
        Endpoint("file:///etc/passwd", "stub")
