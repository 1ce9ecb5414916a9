"""Licences are understood in every spelling of the sources, and what is not understood is never taken for free."""

from __future__ import annotations

import pytest

from mgc.collection.licences import TERMS, UNKNOWN, LicenceFilter, parse
from mgc.core.errors import InputError

FMA = {
    "Attribution": "CC-BY",
    "Creative Commons Attribution": "CC-BY",
    "Attribution 3.0 International": "CC-BY",
    "Attribution-Share Alike 3.0 United States": "CC-BY-SA",
    "Attribution-ShareAlike 3.0 International": "CC-BY-SA",
    "Attribution-NoDerivatives 4.0 International": "CC-BY-ND",
    "Attribution-Noncommercial 3.0 United States": "CC-BY-NC",
    "Attribution-NonCommercial-ShareAlike 3.0 International": "CC-BY-NC-SA",
    "Attribution-Noncommercial-Share Alike 3.0 United States": "CC-BY-NC-SA",
    "Attribution-Noncommercial-No Derivative Works 3.0 Germany": "CC-BY-NC-ND",
    "Attribution-NonCommercial-NoDerivatives (aka Music Sharing) 3.0 International": "CC-BY-NC-ND",
    "Creative Commons Attribution-NonCommercial-NoDerivatives 4.0": "CC-BY-NC-ND",
    "CC0 1.0 Universal": "CC0",
    "CC0 1.0": "CC0",
    "Public Domain Mark 1.0": "public domain",
    "Public Domain": "public domain",
}
"""Names in FMA's tracks.csv, and what they mean."""


def of(*terms):
    """All ways to write a licence of these terms."""
    names = {"BY": "Attribution", "NC": "NonCommercial", "ND": "NoDerivatives", "SA": "ShareAlike"}
    code = "-".join(terms)
    return [
        f"CC-{code}-4.0",
        f"cc-{code.lower()}-4.0",
        f"CC {code} 4.0",
        code,
        f"https://creativecommons.org/licenses/{code.lower()}/4.0/",
        f"http://creativecommons.org/licenses/{code.lower()}/3.0/us/",
        f"creativecommons.org/licenses/{code.lower()}/4.0/deed.fr",
        "-".join(names[term] for term in terms) + " 4.0 International",
        "Creative Commons " + "-".join(names[term] for term in terms) + f" 4.0 International (CC {code} 4.0)",
    ]


FAMILIES = [("BY",), ("BY", "SA"), ("BY", "ND"), ("BY", "NC"), ("BY", "NC", "SA"), ("BY", "NC", "ND")]


@pytest.mark.parametrize(("text", "family"), FMA.items())
def test_the_names_of_fma_are_understood(text, family):
    licence = parse(text)
    assert licence.family == family
    assert licence.terms == {term for term in TERMS if term in family.split("-")}


@pytest.mark.parametrize("terms", FAMILIES, ids="-".join)
def test_a_licence_is_the_same_in_every_spelling(terms):
    for text in of(*terms):
        assert (parse(text).family, parse(text).terms) == ("-".join(["CC", *terms]), set(terms)), text


def test_an_spdx_id_and_a_url_name_the_text_itself_and_no_other_one():
    for text in (
        "Attribution-NonCommercial-ShareAlike 3.0 International",
        "CC-BY-NC-SA-3.0",
        "https://creativecommons.org/licenses/by-nc-sa/3.0/",
    ):
        assert parse(text).spdx == "CC-BY-NC-SA-3.0"
        assert parse(text).url == "https://creativecommons.org/licenses/by-nc-sa/3.0/"
    assert parse("Creative Commons Attribution 4.0 International (CC BY 4.0)").spdx == "CC-BY-4.0"
    assert parse("CC0 1.0 Universal").spdx == "CC0-1.0"
    assert parse("CC0 1.0").url == "https://creativecommons.org/publicdomain/zero/1.0/"
    assert parse("Public Domain Mark 1.0").url == "https://creativecommons.org/publicdomain/mark/1.0/"
    for text in ("Attribution", "Attribution-Noncommercial 3.0 United States", "Public Domain", "MIT", UNKNOWN):
        assert parse(text).spdx is None
        assert parse(text).url is None


@pytest.mark.parametrize(
    "text",
    [
        UNKNOWN,
        "",
        "FMA-Limited: Download Only",
        "All rights reserved, attribution needed",
        "by permission of the artist",
        "not in the public domain",
        "Creative Commons Sampling Plus 1.0",
        "Noncommercial Sampling Plus 1.0",
        "https://example.org/creativecommons.org/licenses/by/4.0/",
        "GPL-3.0",
        "0",
        "0 - All Rights Reserved",
        "Zero rights granted",
        "Attribution - Pas d'Utilisation Commerciale - Pas de Modification 3.0 France",
        "Attribution, not for commercial use",
        "Attribution (personal use only)",
        "Attribution required; all rights reserved",
        "Attribution Noncomercial",
        "Public domain in the US only, all rights reserved elsewhere",
        "CC BY, ask the artist first",
    ],
)
def test_what_is_not_understood_is_not_free(text):
    assert parse(text).family is None
    assert not LicenceFilter(without=["NC", "ND"]).takes(text)
    assert LicenceFilter(only=[text or "CC-BY"]).takes(text) == bool(text)  # named, it is taken


def test_other_hyphens_and_other_laws_are_understood():
    assert parse("Attribution-Non\u2011Commercial 4.0").family == "CC-BY-NC"
    for text, country in (
        ("CC-BY-SA-2.0-UK", "uk"),
        ("Attribution-NonCommercial 2.0 UK: England & Wales", "uk"),
        ("https://creativecommons.org/licenses/by/3.0/us/", "us"),
        ("Attribution 3.0 South Africa", "south africa"),
    ):
        assert (parse(text).country, parse(text).spdx) == (country, None), text
        assert parse(text).family, text


def test_a_filter_by_terms_takes_the_licences_without_them():
    free, commercial = LicenceFilter(without=["NC", "nd"]), LicenceFilter(without=["NC"])
    for terms in FAMILIES:
        for text in of(*terms):
            assert free.takes(text) == (not {"NC", "ND"} & set(terms)), text
            assert commercial.takes(text) == ("NC" not in terms), text
    assert all(free.takes(text) for text in ("CC0 1.0 Universal", "Public Domain"))


def test_a_filter_by_names_takes_a_family_in_any_version_or_the_one_that_is_named():
    family, version = LicenceFilter(only=["CC-BY", "cc0"]), LicenceFilter(only=["CC-BY-4.0"])
    for text in ("Attribution 3.0 United States", "CC-BY-4.0", "Creative Commons Attribution", "CC0 1.0 Universal"):
        assert family.takes(text), text
    for text in ("CC-BY-SA-4.0", "Attribution-NoDerivatives 4.0 International", "Public Domain", UNKNOWN):
        assert not family.takes(text), text
    assert version.takes("Attribution 4.0 International")
    assert not version.takes("Attribution 3.0 International")
    assert LicenceFilter(only=[UNKNOWN]).takes(UNKNOWN)
    assert not LicenceFilter(only=["CC-BY-NC"], without=["NC"]).takes("CC-BY-NC-4.0")


def test_no_filter_takes_all_and_a_term_that_is_none_is_refused():
    assert not LicenceFilter()
    with pytest.raises(InputError, match=r"`without_license=commercial`.*BY, NC, ND, SA"):
        LicenceFilter(without=["commercial"])
