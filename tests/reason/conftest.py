"""Chats in the formats of other families, one for each template of family_templates.py."""

from __future__ import annotations

from typing import Any

import pytest
from family_templates import FAMILIES, family_folder

from ayllu.reason.foreign import TemplateChat, chat_of
from ayllu.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("families")
    return {name: family_folder(root / name, *parts) for name, parts in FAMILIES.items()}


@pytest.fixture(scope="module")
def chats(folders: dict[str, Any]) -> dict[str, TemplateChat]:
    found = {name: chat_of(folder, Tokenizer.load(folder)) for name, folder in folders.items()}
    assert all(isinstance(chat, TemplateChat) for chat in found.values())
    return found  # type: ignore[return-value]


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def chat(family: str, chats: dict[str, TemplateChat]) -> TemplateChat:
    return chats[family]
