"""The pages agree with the code and with each other."""

import importlib
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from chatx import ChatConfig, __version__
from tests.docs.markdown import PAGES, ROOT, anchors, links, prose, rows
from tests.docs.tables import TABLES, rewritten

DOCS = ROOT / "docs"


def _page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_page_name)
def test_relative_links_resolve(page: Path) -> None:
    for link in links(page):
        target = urlsplit(link)
        if target.scheme:
            continue
        linked = (page.parent / target.path).resolve() if target.path else page
        assert linked.exists(), f"{link} leads nowhere"
        if target.fragment and linked.suffix == ".md":
            assert target.fragment in anchors(linked), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_page_name)
def test_tables_equal_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert rewritten(text) == text, "run: python -m tests.docs.tables"


def test_every_table_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in TABLES:
        assert f"<!-- table: {name} -->" in text


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(ROOT / urlsplit(link).path).resolve() for link in links(ROOT / "README.md")}
    assert linked >= {*DOCS.glob("*.md"), *ROOT.glob("*.md")} - {ROOT / "README.md"}


def test_the_bounds_of_the_backpressure_page_are_those_of_the_code() -> None:
    found = list(rows(DOCS / "backpressure.md", "what", "bound", "unit", "set by"))
    assert len(found) >= 12
    for what, bound, _, set_by, *_ in found:
        names = re.findall(r"`([\w.]+)`", set_by)
        said = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", bound)]
        assert len(said) == len(names), f"{what}: {len(said)} bounds, set by {len(names)} names"
        assert said == [_bound(name) for name in names], what


def _bound(name: str) -> object:
    if "." not in name:
        return getattr(ChatConfig(), name)
    module, constant = name.rsplit(".", 1)
    return getattr(importlib.import_module(f"chatx.{module}"), constant)


def test_every_name_of_the_package_that_a_page_uses_exists() -> None:
    """What was renamed does not live on in the prose."""
    for page in PAGES:
        for name in re.findall(r"`chatx\.([a-z_.]+)`", prose(page)):
            assert _resolves(name), f"{page.name}: chatx.{name}"


def _resolves(name: str) -> bool:
    parts = ["chatx", *name.split(".")]
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## \[{re.escape(__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
