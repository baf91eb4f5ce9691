"""Write math as MathML when the site is built: browsers show it without a script or a network."""

import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

log = logging.getLogger(__name__)

FUNCTION = r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[{])"
"""Between a function and an argument without brackets, where browsers leave no space."""


def to_mathml(node: nodes.Element, block: bool) -> str:
    """Convert TeX; a command that docutils does not know gives a warning."""
    tex = re.sub(r"\\dots(?![a-z])", r"\\ldots", node.astext())
    tex = re.sub(r"(\\[dt]?frac)(\d)(\d)", r"\1{\2}{\3}", tex)  # docutils reads 12 as one number
    try:
        mathml = latex2mathml.tex2mathml(tex, as_block=block)
    except MathError as error:
        log.warning("%s in %s", error, tex, location=node)
        return ""
    return re.sub(FUNCTION, '<mspace width="0.17em"></mspace>', mathml)


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Inline math."""
    self.body.append(to_mathml(node, block=False))
    raise nodes.SkipNode


def visit_displaymath(self: HTML5Translator, node: nodes.math_block) -> None:
    """Display math."""
    self.body.append(f'<div class="math">{to_mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.config.html_math_renderer = "mathml"  # type: ignore[attr-defined]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
