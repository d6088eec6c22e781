"""How Sphinx makes the site: `make docs`. The navigation is read from `index.md`, which is also a page of its own."""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import chatx  # noqa: E402  # the package beside these pages, not another one that is installed

logger = logging.getLogger(__name__)

project = "chatx"
author = "the chatx contributors"
version = release = chatx.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
root_doc = "index"
nitpicky = True
# Quotation marks in a docstring are code more often than speech.
smartquotes = False
# A default role's text is code of any kind; `_resolved` makes a link of it where it names something.
default_role = "py:obj"
nitpick_ignore_regex = [
    # What other packages document themselves. Inventories of theirs would have to be downloaded.
    (
        "py:.*",
        r"(asyncio|collections|contextlib|msgspec|os|pathlib|random|socket|sqlite3|ssl|SSLContext|starlette|types|typing)\b.*",
    ),
    ("py:.*", r"prometheus_client\b.*"),
    # Type variables, and what the annotations of private bases name.
    ("py:.*", r"(chatx\.[\w.]+\.)?[ET]"),
]

# The same anchors as a forge makes of the headings, so that one link works in both.
myst_heading_anchors = 4

# The type of an attribute is in its class's signature.
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# As it is written: the value of a default may be this machine's environment.
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
autoclass_content = "both"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"chatx {release}"
html_static_path = ["_static"]
html_css_files = ["chatx.css"]
# For tools, at an address that does not change; a link on a page leads to a copy with a hash in its address.
html_extra_path = ["asyncapi.json"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d6b52", "color-brand-content": "#1d6b52"},
    "dark_css_variables": {"color-brand-primary": "#74cfa8", "color-brand-content": "#74cfa8"},
}

_SECTION = re.compile(r"^## (?P<caption>.+)\n(?P<body>(?:(?!## ).*\n)+)", re.MULTILINE)
_PAGE = re.compile(r"^\* \[[^\]]+\]\((?P<page>[\w/-]+)\.(?:md|rst)\)", re.MULTILINE)


def navigation(text: str) -> str:
    """Return hidden tables of contents: each section of the index with the pages that its list names first."""
    toctrees = []
    for section in _SECTION.finditer(text):
        pages = "\n".join(found["page"] for found in _PAGE.finditer(section["body"]))
        if section["caption"] == "Reference":
            pages += "\nAll names <genindex>"
        toctrees.append(f"```{{toctree}}\n:hidden:\n:caption: {section['caption']}\n\n{pages}\n```\n")
    return "\n".join(toctrees)


def _with_navigation(app: Any, name: str, source: list[str]) -> None:
    if name == root_doc:
        source[0] += f"\n{navigation(source[0])}"


def _documented(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Give a constant the docstring that it has in its own module, where `chatx` only exports it."""
    if what != "data":
        return
    home, _, short = name.rpartition(".")
    exporting = (
        sorted(each for each in sys.modules if each.startswith("chatx."))
        if home in ("chatx", "chatx.gateway")
        else [home]
    )
    for module in exporting:
        if found := ModuleAnalyzer.for_module(module).find_attr_docs().get(("", short)):
            lines[:] = found
            return
    # What stands there now is its type's.
    lines.clear()
    logger.warning("%s has no docstring; write one below it", name)


def _resolved(app: Any, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Link a name that its module writes shorter than the reference does; leave other code in backticks as code."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    target = node["reftarget"]
    short = target.rpartition(".")[2] if target.startswith("chatx.") else target
    if re.match(r"[A-Z]", short):
        ends = f".{short}"
        found = [name for name, entry in domain.objects.items() if name.endswith(ends) and not entry.aliased]
        if len(found) == 1:
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], found[0], node, contnode)
    return contnode if node["reftype"] == "obj" and not node.get("refexplicit") else None


def _source_linked_back(app: Any, doctree: nodes.document) -> None:
    """Give names the anchors that their module's source page leads back to.

    That page knows one place for a whole module, that of its first name: as one of `chatx`, or in the module itself.
    """
    for signature in doctree.findall(addnodes.desc_signature):
        if signature.get("module") == "chatx.adapters.protocols":
            signature["ids"].append(f"chatx.{signature['fullname']}")
        elif signature.get("module") == "chatx":
            name = signature["fullname"].partition(".")[0]
            if name == "Identity":
                signature["ids"].append(f"chatx.gateway.{signature['fullname']}")
                continue
            home = getattr(getattr(chatx, name), "__module__", None)
            if home in ("chatx.adapters.outbox", "chatx.core.message"):
                signature["ids"].append(f"{home}.{signature['fullname']}")


def _sources_known(app: Any, env: Any) -> None:
    """Keep modules without source, such as that of a plain `dict`, off the list of source pages."""
    for module in [name for name, entry in env._viewcode_modules.items() if not entry]:
        del env._viewcode_modules[module]


def setup(app: Any) -> dict[str, bool]:
    """Connect the above."""
    app.connect("source-read", _with_navigation)
    app.connect("autodoc-process-docstring", _documented)
    app.connect("doctree-read", _source_linked_back)
    app.connect("env-updated", _sources_known)
    app.connect("missing-reference", _resolved)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
