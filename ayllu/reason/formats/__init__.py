"""The chat formats of other models' families, and which one a template is of."""

from __future__ import annotations

from ayllu.reason.formats.deepseek import DEEPSEEK
from ayllu.reason.formats.form import THINKING, Format, Parts, UnreadableError
from ayllu.reason.formats.hermes import HERMES
from ayllu.reason.formats.llama import LLAMA
from ayllu.reason.formats.mistral import MISTRAL
from ayllu.reason.transcript import Heard, Kind


def _no_calls(parts: Parts) -> list[Heard]:
    raise UnreadableError("this format has no calls")


# Templates of families that have no file here: turns of text, and thoughts where they are marked.
PLAIN = Format(name="plain", signs=(), marks=THINKING, read=_no_calls, begins=Kind.USER)
FORMATS = (DEEPSEEK, HERMES, MISTRAL, LLAMA)


def format_of(template: str) -> Format:
    """The family of a chat template, by the marks that stand in it; PLAIN when it is of none."""
    return next((one for one in FORMATS if any(sign in template for sign in one.signs)), PLAIN)
