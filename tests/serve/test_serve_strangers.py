"""Who may talk to the server: Host, Origin, key; and which addresses it may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_server import SHORT, get, raw

from ayllu.errors import ModelFileMissingError, PortInUseError, RefusedError, UsageError
from ayllu.serve.app import checked_key, is_loopback, listen, serve
from ayllu.serve.guard import same_key
from ayllu.serve.routes import routes


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:8080"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "localhost:80@evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8080"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_host_and_origin(shared, headers, status):
    for path in ("/v1/models", "/healthz"):
        got, body, sent = get(shared, path, headers)
        assert got == status, body
        assert not [name for name in sent if name.lower().startswith("access-control")]
    assert get(shared, "/v1/models", {"Origin": "http://localhost:1"}, method="OPTIONS")[0] == 405


def test_two_host_headers(shared):
    answer = raw(
        shared.port,
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    )
    assert answer.split(b" ")[1] in (b"400", b"403")


def test_every_route_is_guarded_or_public(scripted):
    public = {"/healthz", "/readyz", "/version"}
    with scripted(*SHORT, api_key="a-key") as running:
        for route in routes(running.service, "a-key"):
            path = route.path.replace("{model:path}", "tiny")
            method = "POST" if "POST" in route.methods else "GET"
            for headers in (
                {}, {"Authorization": "Bearer a-kez"}, {"Authorization": "a-key"},
                {"Authorization": "Basic a-key"},
                {"x-api-key": "a-key"}, {"api-key": "a-key"}, {"Authorization": "Bearer "},
            ):  # fmt: skip
                status, body, _ = get(running, path, headers, method)
                if path in public:
                    assert status == 200
                else:
                    assert (status, body["error"]["code"]) == (401, "invalid_api_key"), path
        assert get(running, "/v1/models", {"Authorization": "bearer a-key"})[0] == 200
        two = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        two += b"Authorization: Bearer a-key\r\nAuthorization: Bearer other\r\n\r\n"
        assert raw(running.port, two).split(b" ")[1] == b"401"


@given(st.text(max_size=30), st.text(max_size=30))
def test_same_key(one, other):
    assert same_key(one, other) == (one.encode("utf-8", "replace") == other.encode("utf-8", "replace"))
    assert same_key(one, one)


def test_an_open_address_needs_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("AYLLU_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", ""):
        with pytest.raises(RefusedError) as caught:
            serve(tmp_path, host=host, port=0)
        assert caught.value.exit_code == 8 and "AYLLU_API_KEY" in caught.value.fix
    monkeypatch.setenv("AYLLU_API_KEY", "k" * 20)
    with pytest.raises(ModelFileMissingError):  # refused no longer: it goes on to the model
        serve(tmp_path, host="0.0.0.0", port=0)
    assert [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "8.8.8.8")] == [True] * 3 + [
        False
    ] * 2
    for wrong, match in (
        ("two words that are long", "without spaces"),
        ("k" * 15, "15 characters"),
        ("k", "1 ch"),
    ):
        with pytest.raises(UsageError, match=match):
            checked_key(wrong)
    assert checked_key("k" * 16) == "k" * 16 and checked_key("") is None


def test_a_port_in_use_is_seen_before_the_model_is_loaded(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            serve(tmp_path / "no-such-model", port=port)
        assert str(port) in str(caught.value) and caught.value.fix
    for host, number in (("no.such.host.invalid", 80), ("127.0.0.1", 70000)):
        with pytest.raises((UsageError, RefusedError)):
            serve(tmp_path, host=host, port=number)
