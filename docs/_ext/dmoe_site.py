"""What the site needs beyond Sphinx: help of all commands, drawings, pages by themselves, our docstrings."""

import re
from pathlib import Path
from typing import Any, ClassVar

import typer
from docutils import nodes
from docutils.parsers.rst import directives
from drawings import drawing_name
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

from dmoe.cli.main import COMMANDS, build_app

logger = getLogger(__name__)

# Docstrings say "Raises: X if …" in one paragraph, which Napoleon takes for text.
_LEAD = re.compile(r"^(\s*)(Raises|Shape|Shapes|Intermediates|Result|Source|Returns|Yields): (?=\S)")
_LINK = re.compile(r"\[([^\]\n]+)\]\((\.\./[^)#\n]+)\)")
# Pages whose folder is listed below them, which on GitHub would be a stray block of text.
_FOLDERS = {"decisions/README": "*", "results": "results/*"}


class CommandHelp(SphinxDirective):
    """`{command-help}`: a section for each command with what `--help` prints."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name in COMMANDS:
            section = nodes.section(ids=[f"dmoe-{name}"], names=[f"dmoe {name}"])
            section += nodes.title(text=f"dmoe {name}")
            section += nodes.literal_block(text=help_of(name), language="text")
            sections.append(section)
        return sections


def help_of(name: str) -> str:
    group = typer.main.get_command(build_app(name))
    context = group.make_context("dmoe", [name], resilient_parsing=True, max_content_width=84, terminal_width=84)
    command = group.get_command(context, name)
    assert command is not None, name
    return command.get_help(type(context)(command, parent=context, info_name=name))


class Mermaid(SphinxDirective):
    """A mermaid fence as the picture that `make pictures` drew of it: the site needs no script from elsewhere."""

    has_content = True
    optional_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"alt": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        name = drawing_name(text)
        if not (Path(self.env.srcdir) / "images" / name).is_file():
            logger.warning("images/%s is missing: `make pictures` draws it", name, location=self.get_location())
            return []
        return [nodes.image(uri=f"/images/{name}", alt=self.options.get("alt", "drawing"), classes=["drawing"])]


def _only_inside(link: re.Match[str], here: Path, docs: Path) -> str:
    """The words of a link to a file of the repository that is no part of the site; any other link as it is."""
    target = (here / link[2]).resolve()
    return link[1] if target.exists() and not target.is_relative_to(docs.resolve()) else link[0]


def complete_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Pages in docs/ that no table of contents names follow the guides; those of a folder are under its page."""
    here = Path(app.env.doc2path(docname)).parent
    source[0] = _LINK.sub(lambda found: _only_inside(found, here, Path(app.srcdir)), source[0])
    if docname in _FOLDERS:
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{_FOLDERS[docname]}\n```\n"
    if docname != "index":
        return
    listed = set(re.findall(r"^[\w/-]+$", source[0], re.MULTILINE))
    pages = sorted(path.stem for path in Path(app.srcdir).glob("*.md"))
    source[0] = source[0].replace("UNLISTED", "\n".join(page for page in pages if page not in listed | {"index"}))


class TextOfAttributes:
    """Keeps the text of attributes from Napoleon, which takes what stands before a colon for their type."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def keep(self, _app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
        self.kept = []
        if what in ("attribute", "property"):
            self.kept, lines[:] = list(lines), []

    def put_back(
        self, _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
    ) -> None:
        if self.kept:
            lines[:], self.kept = self.kept, []


def skip_what_says_nothing(
    _app: Sphinx, _what: str, name: str, found: object, _skip: bool, _options: object
) -> bool | None:
    """What Python says of a named tuple's fields, and scikit-learn of the methods that it adds to an estimator."""
    text = getattr(found, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") or re.fullmatch(r"set_\w+_request", name) else None


def lead_words(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    led: str | None = None  # the indentation of a paragraph that begins with such a word
    for index, line in enumerate(lines):
        if found := _LEAD.match(line):
            led = found[1]
        elif not line.strip():
            led = None
        elif led is not None:
            # Its further lines are indented, which reStructuredText takes for a definition.
            line = led + line.lstrip()
        # |r| is a magnitude to us and a substitution to reStructuredText.
        lines[index] = re.sub(r"\|(\w+)\|", r"\|\1\|", _LEAD.sub(r"\1**\2:** ", line))


def list_external_links(app: Sphinx, error: Exception | None) -> None:
    """Links to elsewhere, which a build without a network cannot follow, go into external-links.txt."""
    if error is not None or app.builder.name != "html":
        return
    pages: dict[str, set[str]] = {}
    for docname in sorted(app.env.found_docs):
        for reference in app.env.get_doctree(docname).findall(nodes.reference):
            if "://" in reference.get("refuri", ""):
                pages.setdefault(reference["refuri"], set()).add(docname)
    lines = [f"{link}\t{' '.join(sorted(names))}\n" for link, names in sorted(pages.items())]
    (Path(app.outdir) / "external-links.txt").write_text("".join(lines), encoding="utf-8")
    logger.info("%d links lead elsewhere and were not followed: external-links.txt", len(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-help", CommandHelp)
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", complete_contents)
    attributes = TextOfAttributes()
    app.connect("autodoc-process-docstring", attributes.keep, priority=400)  # Napoleon comes at 500
    app.connect("autodoc-process-docstring", attributes.put_back, priority=600)
    app.connect("autodoc-process-docstring", lead_words, priority=700)
    app.connect("autodoc-skip-member", skip_what_says_nothing)
    app.connect("build-finished", list_external_links)
    return {"parallel_read_safe": True}
