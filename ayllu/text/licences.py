"""Licences by name: a slip of the pen is found, words of one's own are left alone.

A licence is an SPDX identifier (spdx.org/licenses), an expression of several, or words: "private", "public
domain (author died before 1956)". Nobody knows all of them, so no list can say what is wrong. But a name that
is nearly one of those below, with the same numbers, is a misspelt one: it would stand in the manifest, the
card and the attribution as a licence that doesn't exist.
"""

from __future__ import annotations

import difflib
import re
from functools import lru_cache

_CC = ("CC-BY", "CC-BY-SA", "CC-BY-NC", "CC-BY-ND", "CC-BY-NC-SA", "CC-BY-NC-ND")
KNOWN = (
    "CC0-1.0", "PDM-1.0", "Unlicense", "PDDL-1.0", "ODC-By-1.0", "ODbL-1.0", "CDLA-Permissive-1.0",
    "CDLA-Permissive-2.0", "CDLA-Sharing-1.0", "GFDL-1.1", "GFDL-1.2", "GFDL-1.3", "FAL-1.3", "OGL-UK-3.0",
    "etalab-2.0", "DL-DE-BY-2.0", "DL-DE-ZERO-2.0", "Apache-2.0", "MIT", "MIT-0", "ISC", "0BSD", "Zlib",
    "BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause", "BSL-1.0", "Artistic-2.0", "MPL-1.1", "MPL-2.0",
    "EPL-1.0", "EPL-2.0", "ECL-2.0", "EUPL-1.0", "EUPL-1.1", "EUPL-1.2", "GPL-1.0", "GPL-2.0", "GPL-3.0",
    "LGPL-2.0", "LGPL-2.1", "LGPL-3.0", "AGPL-1.0", "AGPL-3.0", "AFL-3.0", "OSL-3.0", "NPOSL-3.0",
    "CC-SA-1.0", "OFL-1.1", "WTFPL", "NCSA", "UPL-1.0", "PSF-2.0", "Python-2.0",
    *(f"{name}-{version}" for name in _CC for version in ("1.0", "2.0", "2.5", "3.0", "4.0")),
)  # fmt: skip
_NEAR = 0.82  # of difflib's ratio: below it are licences that exist and only resemble one of these
_LONGEST = 24  # characters: what is longer is a sentence, not a name


@lru_cache(maxsize=1024)
def misspelt(licence: str) -> str:
    """The known licence that a part of `licence` nearly is; "" where nothing is near or all is well.

    Capitals, spaces and hyphens don't count, and an identifier may go on ("GPL-3.0-or-later").
    """
    words = re.sub(r"\([^)]*\)", " ", licence)
    for part in re.split(r"\s+(?:AND|OR|WITH)\s+|[,;/]", words, flags=re.IGNORECASE):
        plain = _plain(part)
        longer = "-".join(part.lower().split()).startswith(_BEGINNINGS)
        if not plain or len(plain) > _LONGEST or plain in _PLAIN or longer:
            continue
        alike = [one for one in _PLAIN if _numbers(one) == _numbers(plain)]
        if found := difflib.get_close_matches(plain, alike, n=1, cutoff=_NEAR):
            return _PLAIN[found[0]]
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _numbers(plain: str) -> str:
    return re.sub(r"[^0-9]", "", plain)


_PLAIN = {_plain(name): name for name in KNOWN}
_BEGINNINGS = tuple(f"{name.lower()}-" for name in KNOWN)
