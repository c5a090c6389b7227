"""Prefixes are shared between the holders of one key, and with nobody else."""

import pytest
from running_server import SHORT, USER
from starlette.datastructures import Headers

from ayllu.serve.guard import cache_salt


def salt(*values: str) -> str:
    return cache_salt(Headers(raw=[(b"authorization", value.encode()) for value in values]))


def test_a_salt_for_each_key():
    keys = ["Bearer a", "Bearer b", "bearer ab", "Bearer a b"]
    assert len({salt(key) for key in keys}) == len(keys)
    assert salt("Bearer a") == salt("bearer  a ") and salt("Bearer a") != "a"


@pytest.mark.parametrize("values", [(), ("Bearer",), ("Bearer ",), ("Basic a",), ("Bearer a", "Bearer a")])
def test_no_key_no_salt(values):
    assert salt(*values) == ""


def test_the_engine_gets_it(scripted):
    with scripted(*SHORT) as running:
        for key in ("one", "two", "one"):
            client = running.client(api_key=key)
            client.chat.completions.create(model=running.service.name, messages=USER)
            client.close()
        first, second, third = [params.cache_salt for params in running.engine.params]
        assert first == third == salt("Bearer one") and second == salt("Bearer two")
