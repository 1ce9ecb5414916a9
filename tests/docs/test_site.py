"""The site is built strictly, holds every page, and every link in it leads somewhere; the README is short."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDE = {
    "index",
    "quickstart",
    "preprocessing",
    "training",
    "sweeps",
    "evaluation",
    "serving",
    "cluster",
    "files",
    "limits",
}
INSIDE = {"architecture", "results", "benchmarks", "log"}
NOTEBOOK = {"extract_features", "FeatureSet", "fit", "search", "evaluate", "compare", "predict", "audit", "PRESETS"}
WORDS = 900


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("img", "script", "iframe") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as ``make docs`` builds it; a warning fails the build."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=200
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def pages(site):
    """Every page of the site by its path; the one for wrong addresses is made for a server's root."""
    return {file: Page(file) for file in sorted(site.rglob("*.html")) if file.name != "404.html"}


def test_every_page_is_there(site, pages):
    names = {file.relative_to(site).with_suffix("").as_posix() for file in pages}
    assert names == {file.relative_to(DOCS).with_suffix("").as_posix() for file in DOCS.rglob("*.md")}
    assert names >= GUIDE | INSIDE
    assert {f"api/{room.parent.name}" for room in (ROOT / "mgc").glob("*/__init__.py")} <= names


def test_the_api_of_a_notebook_is_documented(site, pages):
    anchors = pages[site / "api" / "index.html"].anchors
    assert {f"mgc.{name}" for name in NOTEBOOK} <= anchors


def test_links_lead_somewhere(site, pages):
    broken = []
    for file, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (file.parent / unquote(address.path)).resolve() if address.path else file
            anchors = pages[target].anchors if target in pages else None
            if not target.exists() or (address.fragment and anchors and unquote(address.fragment) not in anchors):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert not broken, broken


def test_nothing_is_fetched_when_a_page_is_looked_at(site, pages):
    loads = {(file, load) for file, page in pages.items() for load in page.loads}
    assert [load for _, load in loads if urlsplit(load).netloc] == []
    assert [load for file, load in loads if not (file.parent / unquote(urlsplit(load).path)).exists()] == []
    assert not re.search(r"url\(['\"]?https?:|@import", "".join(css.read_text() for css in site.rglob("*.css")))


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= WORDS
    links = re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", text)
    missing = [link for pair in links for link in pair if link and "://" not in link and not (ROOT / link).exists()]
    assert not missing, missing
