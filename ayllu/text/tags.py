"""Names of languages: BCP 47's primary tags, whatever a corpus writes.

Corpora label German "de", "de-AT", "de_DE", "deu", "ger" or "deu_Latn". Where a two-letter code exists, BCP
47 (RFC 5646, section 2.2.1) wants it, and so the three-letter codes of ISO 639-2 and 639-3 become it here:
two names for one language would be two languages to balance and to hold out. Codes without a shorter form
stay.
"""

from __future__ import annotations

_SHORTER = {
    "ar": "ara arb", "bn": "ben", "cs": "ces cze", "da": "dan", "de": "deu ger", "el": "ell gre", "en": "eng",
    "es": "spa", "eu": "eus baq", "fa": "fas per pes", "fi": "fin", "fr": "fra fre", "gu": "guj", "he": "heb",
    "hi": "hin", "hu": "hun", "id": "ind", "it": "ita", "ja": "jpn", "kn": "kan", "ko": "kor", "ml": "mal",
    "mr": "mar", "nl": "nld dut", "pa": "pan", "pl": "pol", "pt": "por", "qu": "que", "ro": "ron rum",
    "ru": "rus", "sv": "swe", "sw": "swa swh", "ta": "tam", "te": "tel", "tr": "tur", "uk": "ukr",
    "vi": "vie", "zh": "zho chi cmn",
}  # fmt: skip
_PRIMARY = {longer: short for short, names in _SHORTER.items() for longer in names.split()}


def primary_tag(label: str) -> str:
    """ "de" for "de-AT", "de_DE", "deu" and "deu_Latn"; a private "x-mine" stays whole; "" for no label."""
    tag = label.strip().replace("_", "-").lower()
    if tag.startswith("x-"):
        return tag
    primary = tag.split("-")[0]
    return _PRIMARY.get(primary, primary)
