"""A page as its tags and its text."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Tags, their attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._style = tag == "style"

    def handle_data(self, data):
        if not self._style:
            self.text += f" {data} "

    def pictures(self):
        return {attributes["alt"].split()[0]: attributes["src"] for tag, attributes in self.tags if tag == "img"}


def page_of(result) -> Page:
    return Page(Path(result.report.removeprefix("file://")).read_text())
