"""Configuration of the documentation site; `make docs` builds it with `docs/build.py`.

Besides settings it has what Sphinx lacks here: formulas as MathML (no script, no request), docstrings in Markdown's
manner, the help of each command, and live pages.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import chainrule
from chainrule.cli import commands
from chainrule.views.page.mathml import converted

project = "chainrule"
author = "the chainrule authors"
release = version = chainrule.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["live"]

html_theme = "furo"
html_title = "chainrule"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["../build/extra"]  # the live pages, in a folder of their own
html_show_search_summary = False  # summaries would be fetched, which a browser refuses for file://
html_show_copyright = html_show_sourcelink = html_copy_source = html_use_index = html_domain_indices = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # an included page may begin at any level

default_role = "literal"
smartquotes = False  # quotes stand around strings of code, too
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80


def github_math(app: Sphinx, page: str, source: list[str]) -> None:
    """GitHub's dollar-backtick formulas as MyST reads them; one that fills a paragraph is displayed."""
    displayed = re.sub(r"(?m)(?<=^\n)\$`([^`]*)`\$([.,]?)$", r"$$\n\1\2\n$$", source[0])
    source[0] = re.sub(r"\$`([^`]*)`\$", r"$\1$", displayed)


def code_of_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make each indented paragraph a block of Python."""
    text = "\n".join(lines)
    lines[:] = re.sub(r"(?<=\n\n)(?= {4}\S)", ".. code-block:: python\n\n", text).split("\n")


def mathml(latex: str, display: str) -> str:
    """A formula as MathML, by the converter of the product's own pages."""
    tree = converted(" ".join(latex.split()))
    assert tree[0] != "mtext", f"this formula cannot be read: {latex}"
    return f'<math display="{display}">{_markup(tree)}</math>'


def _markup(tree: list[Any]) -> str:
    tag, *rest = tree
    attributes = rest.pop(0) if rest and isinstance(rest[0], dict) else {}
    inside = "".join(escape(each) if isinstance(each, str) else _markup(each) for each in rest)
    begin = " ".join([tag, *(f'{key}="{escape(value)}"' for key, value in attributes.items())])
    return f"<{begin}>{inside}</{tag}>"


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write a formula in a line."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own line."""
    translator.body.append(mathml(node.astext(), "block"))
    raise nodes.SkipNode


class Live(SphinxDirective):
    """A page that chainrule wrote when the site was built, in its place: `:::{live} NAME`, with a line below it."""

    required_arguments = 1
    option_spec = {"at": directives.unchanged, "height": directives.nonnegative_int}  # noqa: RUF012
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The frame, and a line with a link to the page alone."""
        name, at = self.arguments[0], self.options.get("at", "")
        if not Path(self.env.srcdir, "..", "build", "extra", "live", f"{name}.html").exists():
            raise self.error(f"docs/build.py makes no live page {name!r}")
        address = escape("../" * self.env.docname.count("/") + f"live/{name}.html" + (f"#{at}" if at else ""))
        caption = " ".join(self.content).replace("`", "")
        height = self.options.get("height", 620)
        frame = (
            f'<figure class="live"><iframe src="{address}" title="{escape(caption)}" loading="lazy" '
            f'style="height: {height}px"></iframe><figcaption>'
        )
        link = f'<a href="{address}">Open it in full width.</a></figcaption></figure>'
        return [nodes.raw("", frame, format="html"), *self.parse_content_to_nodes(), nodes.raw("", link, format="html")]


class Help(SphinxDirective):
    """What `--help` of each command prints, each in a section of its own."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        return [self.section(name, command) for name, command in commands.commands.items()]

    def section(self, name: str, command: click.Command) -> nodes.section:
        """One command."""
        parent = click.Context(commands, info_name="chainrule", **commands.context_settings)
        context = click.Context(command, info_name=name, parent=parent, max_content_width=88, terminal_width=88)
        text = command.get_help(context)
        title = nodes.title("", f"chainrule {name}")
        return nodes.section("", title, nodes.literal_block("", text, language="text"), ids=[f"chainrule-{name}"])


def setup(app: Sphinx) -> None:
    """Register the parts above."""
    app.connect("source-read", github_math)
    app.connect("include-read", lambda app, path, parent, source: github_math(app, parent, source))
    app.connect("autodoc-process-docstring", code_of_docstring)
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    app.add_directive("live", Live)
    app.add_directive("help", Help)


html_math_renderer = "mathml"
