"""Text that others wrote (a model, a corpus, a recipe), made safe to stand in a page.

Markup is escaped, and characters that steer a terminal or disguise what is written (controls,
bidirectional overrides, private use) are shown by their number: see "Trojan Source" (Boucher and
Anderson 2021).
"""

from __future__ import annotations

import html
import unicodedata

_JOINERS = "\u200c\u200d"  # ordinary letters' glue in Telugu and its sisters
_ODD = ("Cc", "Cf", "Co", "Cs")


def safe(value: object) -> str:
    """`value` as text for HTML and SVG, in element content or between double quotes."""
    return html.escape("".join(_visible(character) for character in str(value)), quote=True)


def _visible(character: str) -> str:
    if character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _ODD:
        return character
    return f"⟨U+{ord(character):04X}⟩"
