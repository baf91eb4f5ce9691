"""Write math as MathML when the site is built: browsers show it without a script or a network."""

import re

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def to_mathml(tex: str, block: bool) -> str:
    r"""Convert TeX; docutils reads the digits of ``\frac12`` as one number."""
    tex = re.sub(r"(\\[dt]?frac)(\d)(\d)", r"\1{\2}{\3}", tex)
    return latex2mathml.tex2mathml(tex, as_block=block)


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Inline math."""
    self.body.append(to_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def visit_displaymath(self: HTML5Translator, node: nodes.math_block) -> None:
    """Display math."""
    self.body.append(f'<div class="math">{to_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.config.html_math_renderer = "mathml"  # type: ignore[attr-defined]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
