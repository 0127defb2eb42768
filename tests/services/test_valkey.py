from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from services.valkey import ValkeyServer, valkey_server


@pytest.fixture
def own_valkey(valkey: ValkeyServer) -> Iterator[ValkeyServer]:
    """A server of this test's own, because it is going to be killed."""
    with valkey_server() as server:
        assert server.port != valkey.port
        yield server


def test_what_was_set_is_read_back(valkey: ValkeyServer) -> None:
    """The server answers a ping and gives back the bytes it was given."""
    with valkey.client() as client:
        assert client.ping()
        client.set("services:test", b"\x00\x01")
        assert client.get("services:test") == b"\x00\x01"


def test_a_killed_server_refuses_and_comes_back_empty(own_valkey: ValkeyServer) -> None:
    """After SIGKILL clients get an error at once; after a start the store is empty."""
    with own_valkey.client() as client:
        client.set("lost", "1")
        own_valkey.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("lost")
        own_valkey.start()
        assert client.get("lost") is None
