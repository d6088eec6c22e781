"""What the tests read in the built site: titles, anchors, links, what a page loads, and the inventory of names."""

import zlib
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself; an `a` is followed by people only.
_LOADS = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}


@dataclass
class Page(HTMLParser):
    """One page of HTML.

    Attributes:
        path: Its file.
        anchors: The ids in it.
        links: What its `a` elements lead to.
        loads: What a browser fetches with it.
    """

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._inside: str | None = None
        self._texts = {"title": "", "h1": "", "style": ""}
        self.feed(self.path.read_text(encoding="utf-8"))

    @property
    def title(self) -> str:
        return self._texts["title"].strip()

    @property
    def heading(self) -> str:
        return self._texts["h1"].strip()

    @property
    def style(self) -> str:
        return self._texts["style"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        # An SVG may have a title of its own.
        if tag in self._texts and not (tag == "title" and self._texts["title"]):
            self._inside = tag
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        # These links name pages, and fetch none.
        passive = tag == "link" and set(given.get("rel", "").split()) & {"index", "search", "next", "prev", "canonical"}
        if (name := _LOADS.get(tag)) in given and not passive:
            self.loads.append(given[name])

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self._texts[self._inside] += data


@dataclass
class Site:
    """A folder of HTML."""

    folder: Path

    @cached_property
    def pages(self) -> dict[Path, Page]:
        return {path: Page(path) for path in sorted(self.folder.rglob("*.html"))}

    def broken_links(self) -> list[str]:
        """Each link and each thing loaded of the site that is not there, or has no such anchor."""
        broken = []
        for page in self.pages.values():
            for link in (*page.links, *page.loads):
                target = urlsplit(link)
                if target.scheme or target.netloc:
                    continue
                linked = self._linked(page, target.path)
                there = linked.is_file() and linked.is_relative_to(self.folder)
                fragment = unquote(target.fragment)
                if there and fragment and linked in self.pages:
                    there = fragment in self.pages[linked].anchors
                if not there:
                    broken.append(f"{page.path.relative_to(self.folder)}: {link}")
        return broken

    def unreachable(self, start: str = "index.html") -> set[str]:
        """The pages that no chain of links leads to."""
        waiting = [self.folder / start]
        seen = set(waiting)
        while waiting:
            page = self.pages[waiting.pop()]
            for link in page.links:
                linked = self._linked(page, urlsplit(link).path)
                if linked in self.pages and linked not in seen:
                    seen.add(linked)
                    waiting.append(linked)
        return {str(path.relative_to(self.folder)) for path in self.pages.keys() - seen}

    def foreign_loads(self) -> list[str]:
        """What comes from another host without being asked for."""
        return [
            f"{page.path.relative_to(self.folder)}: {load}"
            for page in self.pages.values()
            for load in page.loads
            if urlsplit(load).netloc
        ]

    def names(self) -> dict[str, str]:
        """The Python names that the inventory has, and the pages that document them."""
        *_, packed = (self.folder / "objects.inv").read_bytes().split(b"\n", 4)
        found = {}
        for line in zlib.decompress(packed).decode().splitlines():
            name, role, _, where, _ = line.split(" ", 4)
            if role.startswith("py:"):
                found[name] = where.partition("#")[0]
        return found

    def _linked(self, page: Page, path: str) -> Path:
        return (page.path.parent / unquote(path)).resolve() if path else page.path
