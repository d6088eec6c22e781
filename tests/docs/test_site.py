"""The site builds without a warning, holds together, loads nothing from elsewhere, and has every public name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.markdown import ROOT, links
from tests.docs.public import public_names
from tests.docs.site import Site

DOCS = ROOT / "docs"

IDEAS = ("rooms-and-ordering", "acknowledgement", "resume", "backpressure", "presence", "adapters", "middleware")


def _build(docs: Path, out: Path, builder: str = "html", *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "--quiet", *options, "-b", builder, "-d", str(out / "doctrees")]
    return subprocess.run(
        [*command, str(docs), str(out / "site")],
        cwd=docs.parent,
        # A build runs no code of the package; measuring a broken copy of it would count that copy's lines.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    out = tmp_path_factory.mktemp("site")
    run = _build(DOCS, out, "html", "--fail-on-warning")
    assert run.returncode == 0, run.stdout + run.stderr
    return Site((out / "site").resolve())


@pytest.mark.process
@pytest.mark.slow
class TestBuilt:
    def test_every_link_and_anchor_resolves(self, site: Site) -> None:
        assert len(site.pages) > 40
        assert site.broken_links() == []

    def test_every_page_is_reached_from_the_index(self, site: Site) -> None:
        # Search is a form's target. The list of source pages is not needed: the reference leads to each.
        assert site.unreachable() <= {"search.html", "_modules/index.html"}

    def test_every_page_has_a_title_and_a_heading_of_its_own(self, site: Site) -> None:
        titles = [page.title for page in site.pages.values() if page.path.name != "search.html"]
        assert all(title.removeprefix("chatx").strip() for title in titles)
        assert len(set(titles)) == len(titles)
        assert all(page.heading for page in site.pages.values() if page.path.name != "search.html")

    def test_nothing_is_loaded_from_another_host(self, site: Site) -> None:
        assert site.foreign_loads() == []
        styles = [path.read_text(encoding="utf-8") for path in site.folder.rglob("*.css")]
        styles += [page.style for page in site.pages.values()]
        for style in styles:
            for address in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", style):
                assert not urlsplit(address).netloc, address

    def test_every_public_name_is_in_the_reference(self, site: Site) -> None:
        names = site.names()
        public = public_names()
        assert len(public) > 120
        assert sorted(public.keys() - names.keys()) == []
        assert all(names[name].startswith("reference/") for name in public)

    def test_the_reference_has_a_page_for_each_subject(self, site: Site) -> None:
        names = site.names()
        assert len({names[name] for name in public_names()}) >= 9

    def test_what_this_machine_is_like_is_in_no_page(self, site: Site) -> None:
        for page in site.pages:
            text = page.read_text(encoding="utf-8")
            assert str(ROOT) not in text
            assert str(Path.home()) + "/" not in text

    def test_the_description_of_the_wire_can_be_downloaded_at_an_address_that_stays(self, site: Site) -> None:
        assert (site.folder / "asyncapi.json").read_bytes() == (DOCS / "asyncapi.json").read_bytes()

    def test_the_navigation_has_the_order_of_the_index(self, site: Site) -> None:
        shown = [link for link in site.pages[site.folder / "start.html"].links if link.endswith(".html")]
        listed = [re.sub(r"\.(md|rst)$", ".html", link) for link in links(DOCS / "index.md") if link != "demo.png"]
        places = [shown.index(page) if page != "start.html" else -1 for page in listed]
        assert places == sorted(places)


@pytest.mark.process
@pytest.mark.slow
def test_what_is_broken_is_found(tmp_path: Path) -> None:
    """A link, an anchor, a reference, a name and a page that nobody lists: each is a warning, and so an error."""
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for page in ROOT.glob("*.md"):
        shutil.copy(page, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    docs = tmp_path / "docs"
    with (docs / "presence.md").open("a", encoding="utf-8") as prose:
        prose.write("\n[no page](no-such-page.md) and [no anchor](resume.md#no-such-anchor)\n")
    with (docs / "reference" / "gateway.rst").open("a", encoding="utf-8") as reference:
        reference.write("\n:py:meth:`chatx.Chat.no_such_method`\n\n.. autoclass:: chatx.NoSuchClass\n")
    (docs / "alone.md").write_text("# Alone\n", encoding="utf-8")
    errors = tmp_path / "src" / "chatx" / "errors.py"
    text = errors.read_text(encoding="utf-8")
    # The last docstring of the module is that of the table.
    errors.write_text(text[: text.rstrip().rindex('\n"""')], encoding="utf-8")

    run = _build(docs, tmp_path / "out", "dummy", "--fail-on-warning")

    assert run.returncode == 1
    for sign in ("no-such-page", "no-such-anchor", "no_such_method", "NoSuchClass", "alone.md", "chatx.ERRORS has no"):
        assert sign in run.stderr, f"{sign} was not found: {run.stderr}"
    assert run.stderr.count("WARNING:") == 6, run.stderr


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name, has in public_names().items() if not has] == []


@pytest.mark.parametrize("idea", IDEAS)
def test_every_idea_has_a_page_with_a_diagram_on_the_index(idea: str) -> None:
    text = (DOCS / f"{idea}.md").read_text(encoding="utf-8")
    assert re.search(r"^```text\n(?:.*\n)*?.*[─│▶▼].*\n(?:.*\n)*?```", text, re.MULTILINE)
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    ideas = index.partition("\n## Ideas\n")[2].partition("\n## ")[0]
    assert f"({idea}.md)" in ideas


def test_the_index_lists_every_page_once() -> None:
    listed = [link for link in links(DOCS / "index.md") if link.endswith((".md", ".rst"))]
    pages = {str(path.relative_to(DOCS)) for kind in ("md", "rst") for path in DOCS.rglob(f"*.{kind}")} - {"index.md"}
    assert sorted(listed) == sorted(pages)


# The checks above can fail


def test_a_broken_link_a_lost_page_and_a_foreign_load_are_found(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<title>A</title><a href="b.html#here">b</a> <a href="b.html#there">b</a> <a href="none.html">none</a>'
        '<a href="https://example.org/">elsewhere</a> <a href="#top">top</a> <a href="../outside.html">out</a>',
        encoding="utf-8",
    )
    (tmp_path / "b.html").write_text(
        '<h1 id="here">B</h1><img src="none.png"><script src="https://example.org/a.js"></script>'
        '<link rel="stylesheet" href="//example.org/a.css"><link rel="next" href="https://example.org/next">',
        encoding="utf-8",
    )
    (tmp_path / "lost.html").write_text("<p>nobody links here</p>", encoding="utf-8")
    (tmp_path.parent / "outside.html").touch()
    site = Site(tmp_path.resolve())

    assert site.broken_links() == [
        "b.html: none.png",
        "index.html: b.html#there",
        "index.html: none.html",
        "index.html: #top",
        "index.html: ../outside.html",
    ]
    assert site.unreachable() == {"lost.html"}
    assert site.foreign_loads() == ["b.html: https://example.org/a.js", "b.html: //example.org/a.css"]
    assert [page.title for page in site.pages.values()] == ["", "A", ""]
