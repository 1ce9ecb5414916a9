"""What the licence of a track says: the terms of Creative Commons in it, its SPDX id, and which tracks may stay.

Sources write one licence in many ways: «Attribution-Noncommercial-Share Alike 3.0 United States» (FMA),
«CC-BY-NC-SA-4.0» (SPDX), «https://creativecommons.org/licenses/by-nc-sa/3.0/us/». What is none of these, nor CC0 or the
public domain, or has a word beside it, is not understood: no term is known of it, so a filter by terms does not take it
for free.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgc.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN = "unknown"
"""The licence of a track whose source names none."""
TERMS = {
    "BY": r"attribution|\bby\b",
    "NC": r"non[ -]?commercial|\bnc\b",
    "ND": r"non?[ -]?deriv|\bnd\b",
    "SA": r"share[ -]?alike|\bsa\b",
}
"""The terms of Creative Commons, in the order of its ids, and how names, ids and URLs write them."""
_WEB, _CREATIVE_COMMONS = r"^(?:https?://)?(?:www\.)?creativecommons\.org", r"^(?:creative commons )?(?:cc )?"
_FAMILIES = {
    "CC0": re.compile(rf"^(?:creative commons |cc[ -]?)+(?:0|zero)\b|{_WEB}/publicdomain/zero"),
    "public domain": re.compile(rf"{_CREATIVE_COMMONS}public domain|{_WEB}/(?:licenses/)?publicdomain"),
    "CC": re.compile(rf"{_CREATIVE_COMMONS}(?:attribution|cc[ -]by\b|by\b)|{_WEB}/licenses/by\b"),
}
"""How texts begin that are understood."""
_VERSION = re.compile(r"(?<![\d.])([1-4]\.\d)(?!\.?\d)")
_COUNTRIES = (
    "argentina|australia|austria|belgium|brazil|bulgaria|canada|chile|china mainland|china|colombia|costa rica|croatia|"
    "czech republic|denmark|ecuador|egypt|england (?:and|&) wales|estonia|finland|france|georgia|germany|greece|"
    "guatemala|hong kong|hungary|india|ireland|israel|italy|japan|luxembourg|macedonia|malaysia|malta|mexico|"
    "netherlands|new zealand|norway|peru|philippines|poland|portugal|puerto rico|romania|scotland|serbia|singapore|"
    "slovenia|south africa|south korea|korea|spain|sweden|switzerland|taiwan|thailand|uganda|united kingdom|"
    "united states|venezuela|vietnam|igo"
)
_CODES = (
    "ar|at|au|be|bg|br|ca|ch|cl|cn|co|cr|cz|de|dk|ec|ee|eg|es|fi|fr|ge|gr|gt|hk|hr|hu|ie|il|in|it|jp|kr|lu|mk|mt|mx|"
    "my|nl|no|nz|pe|ph|pl|pr|pt|ro|rs|se|sg|si|th|tw|ug|uk|us|ve|vn|za"
)
_COUNTRY = re.compile(rf"\b(?:{_COUNTRIES})\b|(?<=[1-4]\.\d[ /-])(?:{_CODES})\b")
"""To whose law a licence was ported: Creative Commons' jurisdictions, and their codes behind a version."""
_KNOWN = re.compile(
    r"https?://|www\.|creativecommons\.org|\b(?:creative commons|(?:cc[ -]?)?(?:0|zero)(?!\.)|cc|public ?domain|mark|"
    r"dedication|attribution|by|non[ -]?commercial|nc|no[ -]?deriv(?:atives?(?: works?)?|s)?|nd|share[ -]?alike|sa|"
    r"international|universal|unported|generic|public|licen[sc]es?|legalcode|deed(?:\.\w+)?)\b|" + _VERSION.pattern
)
"""What may stand in a text that is understood; whatever else is there may take back what it seems to give."""


@dataclass(frozen=True)
class Licence:
    """What is understood of a licence's text."""

    terms: frozenset[str]
    """Those of ``TERMS`` that are in it."""
    family: str | None
    """``"CC-BY-NC-SA"``, ``"CC0"`` or ``"public domain"``; None where the text is none of Creative Commons'."""
    version: str | None = None
    """``"3.0"``, where the text has one."""
    country: str | None = None
    """The country to whose law it was ported, as the text names it."""

    @property
    def spdx(self) -> str | None:
        """The id in SPDX's list, as ``"CC-BY-NC-SA-3.0"``; None without a version, and of a country's own text."""
        if self.family in (None, "public domain") or self.version is None or self.country:
            return None
        return f"{self.family}-{self.version}"

    @property
    def url(self) -> str | None:
        """Where the text of the licence is; None where that does not follow from what is understood."""
        if self.family is None or self.country or self.version is None:
            return None
        base = "https://creativecommons.org"
        if self.family.startswith("CC-"):
            return f"{base}/licenses/{self.family.removeprefix('CC-').lower()}/{self.version}/"
        return f"{base}/publicdomain/{'zero' if self.family == 'CC0' else 'mark'}/{self.version}/"

    def covers(self, other: Licence) -> bool:
        """Whether ``other`` is of this family and, where they are named here, of this version and this country."""
        same = all(mine in (None, its) for mine, its in ((self.version, other.version), (self.country, other.country)))
        return self.family is not None and self.family == other.family and same


def parse(text: str) -> Licence:
    """Understand the text of a licence.

    Parameters
    ----------
    text
        A name, an SPDX id or a URL of creativecommons.org, in any case.

    Examples
    --------
    >>> parse("Attribution-Noncommercial-Share Alike 3.0 United States").family
    'CC-BY-NC-SA'
    >>> parse("https://creativecommons.org/licenses/by/4.0/").spdx
    'CC-BY-4.0'
    """
    plain = re.sub(r"[\u2010-\u2015\u2212_]", "-", unicodedata.normalize("NFKC", text).casefold())
    folded = " ".join(re.sub(r"\(aka [^)]*\)", " ", plain).split())
    found = frozenset(term for term, words in TERMS.items() if re.search(words, folded))
    version, country = _VERSION.search(folded), _COUNTRY.search(folded)
    unknown = re.search(r"\w", _KNOWN.sub(" ", _COUNTRY.sub(" ", folded)))
    family = next((name for name, begins in _FAMILIES.items() if begins.search(folded)), None)
    if unknown:
        family = None
    elif family == "CC":
        family = "-".join(["CC", *(term for term in TERMS if term in found)])
    return Licence(found, family, version[1] if version else None, country[0] if country else None)


@dataclass(frozen=True)
class LicenceFilter:
    """Which licences the tracks of a collection may have.

    Raises
    ------
    InputError
        ``without`` names something that is no term.
    """

    only: Sequence[str] = ()
    """Licences that are taken: texts as the source has them, or families and ids (``CC-BY`` is any version of it).
    Any if empty; ``unknown`` takes the tracks without one."""
    without: Sequence[str] = ()
    """Terms of ``TERMS`` that a licence must not have. A licence that is unknown or not understood has to be taken for
    one that has them."""

    def __post_init__(self) -> None:
        for term in self.without:
            if term.upper() not in TERMS:
                raise InputError(f"`without_license={term}`: is no term of a licence; choose from {', '.join(TERMS)}")

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.only or self.without)

    def takes(self, text: str) -> bool:
        """Whether a track of this licence stays."""
        licence = parse(text)
        named = not self.only or any(
            each.casefold() == text.casefold() or parse(each).covers(licence) for each in self.only
        )
        free = licence.family is not None and licence.terms.isdisjoint(term.upper() for term in self.without)
        return named and (not self.without or free)
