"""Reads a report as a browser would: nesting, ids, links, text by section."""

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "hr", "img", "input", "col", "base", "area", "embed", "source", "track", "wbr"}
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


class Page(HTMLParser):
    """The parsed page; faults of nesting are collected in `faults`."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.stack: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[int] = []
        self.section = ""
        self.texts: dict[str, list[str]] = {}
        self.feed(self.source)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self.stack]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if (own := values.get("id")) is not None:
            self.ids.append(own)
        if tag == "section":
            self.section = values.get("id") or ""
        if tag in HEADINGS:
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            if "svg" not in self.stack:
                self.faults.append(f"<{tag}/> closes itself outside svg")
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack[-1] != tag:
            self.faults.append(f"</{tag}> at line {self.getpos()[0]} closes {self.stack[-1:]}")
        else:
            self.stack.pop()
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.stack):
            self.texts.setdefault(self.section, []).append(data)

    def text(self, section: str) -> str:
        """The visible text of a section, blanks folded."""
        return re.sub(r"\s+", " ", " ".join(self.texts.get(section, [])))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.tags if name == tag]
