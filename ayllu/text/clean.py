"""Cleaning: one normal form for text, markers in place of private data, and quality rules as a table.

The rules are those of Gopher (Rae et al. 2021, appendix A), C4 (Raffel et al. 2020) and CCNet
(Wenzek et al. 2020) in spirit, but not in their numbers: those are typed in for English, and on clean
text they drop 94-100 % of German novels, German laws and Telugu verse. Here each language has a
profile that is learnt from the corpus (medians, which junk can't move while most text is sound) and
the thresholds follow from it. Each verdict carries the measured value and the threshold.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
import statistics
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ayllu.text.document import words
from ayllu.text.language import UNDETERMINED, declaration

VERSION = 1  # of the rules below: raise it when a rule or a threshold changes

# ---- normal form
# Control characters except tab and line end; the byte order mark, soft hyphens, zero-width spaces and
# direction marks. The zero-width joiners stay: Telugu and other Indic scripts spell with them.
_STRIP = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_BLANKS = re.compile(r"\n{4,}")


def normalise(text: str) -> str:
    """NFC, `\\n` line ends, no control characters, no trailing spaces, at most two blank lines; unwrapped."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n\n")
    text = _STRIP.sub("", unicodedata.normalize("NFC", text))
    lines = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return unwrap(_BLANKS.sub("\n\n\n", lines).strip())


# A line that begins like this is laid out on purpose: lists, headings, tables, quotes, code, verse numbers.
_LAID_OUT = re.compile(r"[ \t>|#*+=~`.:_-]|\d+[.)]|\(\w{1,3}\)|[A-Za-z-]+: ")
NARROWEST, WIDEST = 60, 100  # columns that people wrap at
SLACK = 8  # characters: people and old editors don't fill every line to the last column
NEARLY_ALL = 0.82  # of the breaks: 0.83 to 1.00 in wrapped novels and laws, 0.2 to 0.8 in Telugu verse
EVIDENCE = 20  # line breaks; fewer can look wrapped by chance (a short poem)


def unwrap(text: str) -> str:
    """Join the lines of paragraphs that were wrapped at a fixed column; leave verse, lists and code alone.

    A line was wrapped by a machine when the next line's first word would not have fitted any more. The
    width is the text's own (95 % of lines stay within). Nearly all breaks of the text's plain paragraphs
    must look like that before any is joined: long words at the line ends make verse look wrapped, too.
    """
    paragraphs = [p.split("\n") for p in text.split("\n\n")]
    lengths = sorted(len(line) for lines in paragraphs if len(lines) > 1 for line in lines)
    if not lengths:
        return text
    width = lengths[int((len(lengths) - 1) * 0.95)]
    if not NARROWEST <= width <= WIDEST:
        return text
    breaks = full = 0
    wrapped: list[bool] = []
    for lines in paragraphs:
        fits = [
            len(line) + 1 + len(following.split(" ", 1)[0]) > width - SLACK
            for line, following in itertools.pairwise(lines)
        ]
        plain = not any(map(_LAID_OUT.match, lines[1:]))
        if plain:
            breaks, full = breaks + len(fits), full + sum(fits)
        wrapped.append(plain and bool(fits) and all(fits))
    if breaks < EVIDENCE or full < NEARLY_ALL * breaks:
        return text
    joined = (" ".join(p) if w else "\n".join(p) for p, w in zip(paragraphs, wrapped, strict=True))
    return "\n\n".join(joined)


# ---- private data
@dataclass(frozen=True)
class PrivateKind:
    """A kind of private data: what it looks like, what makes it certain, and what stands in its place."""

    name: str
    pattern: re.Pattern[str]
    certain: Callable[[str], bool]

    @property
    def marker(self) -> str:
        return f"[{self.name}]"


def luhn(number: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    digits = [int(c) for c in number if c.isdecimal()]
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def iban(number: str) -> bool:
    """The check digits of account numbers (ISO 13616): the rearranged number is 1 modulo 97."""
    plain = re.sub(r"\s", "", number)
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def public_address(number: str) -> bool:
    """A routable IPv4 address; 127.0.0.1, 192.168.x.x and documentation addresses are nobody's."""
    try:
        return ipaddress.IPv4Address(number).is_global
    except ValueError:
        return False


def telephone(number: str) -> bool:
    """Seven to fifteen digits (ITU-T E.164)."""
    return 7 <= sum(c.isdecimal() for c in number) <= 15


# In this order: an IBAN or a card would otherwise be taken for a telephone number.
PRIVATE = (
    PrivateKind("email", re.compile(r"[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"), bool),
    PrivateKind("iban", re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,4})?\b"), iban),
    PrivateKind("card", re.compile(r"(?<![\w.])[0-9](?:[ -]?[0-9]){12,18}(?![\w.]?[0-9])"), luhn),
    PrivateKind("ip", re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])"), public_address),
    PrivateKind(
        "phone",
        re.compile(
            r"(?<![\w.+/-])(?:"
            r"(?:\+|00)[1-9][0-9]{0,2}[ /.-]?(?:\(0?[0-9]{1,5}\)[ /.-]?)?"  # +49 30 1234567, 0091 ...
            r"[0-9]{1,5}(?:[ /.-]?[0-9]{2,5}){1,4}"
            r"|\(0?[0-9]{2,5}\)[ /-]?[0-9]{3,4}[ -]?[0-9]{3,5}"  # (030) 1234567, (555) 123-4567
            r"|0[1-9][0-9]{1,4}[ /-][0-9]{3,5}(?:[ -]?[0-9]{2,5}){0,2}"  # 030 1234567, 0171/1234567
            r"|[2-9][0-9]{2}[-.][2-9][0-9]{2}[-.][0-9]{4}"  # 555-123-4567
            r")(?![\w-]|[.,][0-9])"
        ),
        telephone,
    ),
)


def remove_private(text: str) -> tuple[str, dict[str, int]]:
    """`text` with a marker such as `[email]` for each piece of private data, and how many of each kind."""
    found: dict[str, int] = {}
    for kind in PRIVATE:

        def mark(match: re.Match[str], kind: PrivateKind = kind) -> str:
            if not kind.certain(match[0]):
                return match[0]
            found[kind.name] = found.get(kind.name, 0) + 1
            return kind.marker

        text = kind.pattern.sub(mark, text)
    return text, found


# ---- quality
@dataclass(frozen=True)
class Facts:
    """What the rules look at, measured once per document."""

    characters: int
    letters: float  # letters and their marks, of all characters that are not white space
    symbols: float  # neither letters, digits nor common punctuation, of the same
    broken: float  # U+FFFD and the traces of a wrong decoding, per character
    word_length: float  # characters per word
    repeated_lines: float  # characters in lines that occurred before, of all
    repeated_phrases: float  # five-word phrases that occurred before, of all
    surprise: float  # nats per character n-gram under the document's language (language.py)


# UTF-8 read as Latin-1 or Windows-1252: "Ã¼" for "ü", "â€œ" for a quotation mark, "à°" for Telugu.
_BROKEN = re.compile("\ufffd|[\u00c3\u00c2][\u0080-\u00bf]|\u00e2\u20ac|\u00e0[\u00b0\u00b1]")
_PUNCTUATION = frozenset(".,;:!?'\"()-\u2013\u2014\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb\u2026\u0964")
SHORT_LINE = 12  # characters; shorter lines repeat in sound text ("}", "* * *")


def measure(text: str, surprise: float = 0.0) -> Facts:
    """The facts of a normalised text."""
    visible = "".join(text.split())
    kinds: dict[str, int] = {}
    for character in set(visible):
        kind = _kind(character)
        kinds[kind] = kinds.get(kind, 0) + visible.count(character)
    amount = max(len(visible), 1)
    names = words(text)
    seen: set[str] = set()
    repeated = 0
    for line in text.split("\n"):
        if len(line) >= SHORT_LINE:
            repeated += len(line) if line in seen else 0
            seen.add(line)
    phrases = list(zip(*(names[i:] for i in range(5)), strict=False))
    return Facts(
        characters=len(text),
        letters=kinds.get("letter", 0) / amount,
        symbols=kinds.get("symbol", 0) / amount,
        broken=len(_BROKEN.findall(text)) / max(len(text), 1),
        word_length=sum(map(len, names)) / max(len(names), 1),
        repeated_lines=repeated / max(len(text), 1),
        repeated_phrases=1 - len(set(phrases)) / len(phrases) if phrases else 0.0,
        surprise=surprise,
    )


def _kind(character: str) -> str:
    if unicodedata.category(character)[0] in "LM" or character in "\u200c\u200d":
        return "letter"
    if character.isnumeric() or character in _PUNCTUATION:
        return "plain"
    return "symbol"


@dataclass(frozen=True)
class Profile:
    """What is usual in a language: medians over its documents."""

    letters: float
    word_length: float
    symbols: float
    surprise: float
    learnt_from: int  # documents; 0: from the declaration's passage alone


FEW = 8  # documents; with fewer, a median is no evidence and the declaration's passage stands in


def learn_profiles(facts: Iterable[tuple[str, Facts]]) -> dict[str, Profile]:
    """A profile per language from (language, facts) of the corpus' documents."""
    groups: dict[str, list[Facts]] = {}
    for language, fact in facts:
        if language != UNDETERMINED:
            groups.setdefault(language, []).append(fact)
    profiles = {}
    for language, group in sorted(groups.items()):
        learnt = len(group)
        if learnt < FEW and language in declaration():
            # The passage's surprise is that of text the identifier has read, so it is not taken over.
            group, learnt = [measure(declaration()[language])], 0
        profiles[language] = Profile(
            letters=statistics.median(f.letters for f in group),
            word_length=statistics.median(f.word_length for f in group),
            symbols=statistics.median(f.symbols for f in group),
            surprise=statistics.median(f.surprise for f in group),
            learnt_from=learnt,
        )
    return profiles


@dataclass(frozen=True)
class Rule:
    """A rule: what is measured, and the bounds that a language's profile gives."""

    name: str
    value: Callable[[Facts], float]
    low: Callable[[Profile], float] | None
    high: Callable[[Profile], float] | None
    why: str


MIN_CHARACTERS = 120

RULES = (
    Rule("too_short", lambda f: f.characters, lambda p: MIN_CHARACTERS, None, "too little to learn from"),
    Rule("broken_characters", lambda f: f.broken, None, lambda p: 0.001, "decoded wrongly, or damaged"),
    Rule("few_letters", lambda f: f.letters, lambda p: 0.6 * p.letters, None, "numbers, tables, markup"),
    Rule("many_symbols", lambda f: f.symbols, None, lambda p: max(0.3, 4 * p.symbols), "markup, drawings"),
    Rule("short_words", lambda f: f.word_length, lambda p: 0.6 * p.word_length, None, "single letters"),
    Rule("long_words", lambda f: f.word_length, None, lambda p: 2.5 * p.word_length, "encoded data"),
    Rule("repeated_lines", lambda f: f.repeated_lines, None, lambda p: 0.3, "menus, footers, loops"),
    Rule("repeated_phrases", lambda f: f.repeated_phrases, None, lambda p: 0.5, "the same again and again"),
    Rule("gibberish", lambda f: f.surprise, None, lambda p: 1.25 * p.surprise or math.inf, "no such words"),
)


@dataclass(frozen=True)
class Failed:
    """The first rule that a document breaks."""

    rule: str
    value: float
    threshold: float


def judge(facts: Facts, profile: Profile) -> Failed | None:
    """None when all rules hold."""
    for rule in RULES:
        value = rule.value(facts)
        low = rule.low(profile) if rule.low else -math.inf
        high = rule.high(profile) if rule.high else math.inf
        if not low <= value <= high:
            return Failed(rule.name, round(value, 4), round(low if value < low else high, 4))
    return None
