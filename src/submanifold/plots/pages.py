"""Self-contained HTML pages from Jinja templates."""

import base64
import re
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def render(template: str, **values: Any) -> str:
    """Render a template of this package, such as ``report.html``.

    The filter ``picture`` converts a figure, an image or the bytes of a PNG file to a data URL;
    ``contents`` fills an empty ``<nav class="contents"></nav>`` with links to ``<h2>`` headings.
    """
    loader, strict = jinja2.PackageLoader("submanifold.plots", "templates"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=strict)
    environment.filters["picture"] = _data_url
    environment.filters["contents"] = _with_contents
    return environment.get_template(template).render(values)


def _data_url(picture: "Figure | Image | bytes") -> str:
    from submanifold.plots.images import as_png  # matplotlib is slow to import

    png = picture if isinstance(picture, bytes) else as_png(picture)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _with_contents(body: str) -> Markup:
    """Add ids to the second-level headings, and links to them."""
    links = []

    def with_id(match: re.Match[str]) -> str:
        title = match[1]
        name = re.sub(r"[^a-z0-9]+", "-", re.sub(r"<[^>]*>|&[^;]*;", "", title).lower()).strip("-")
        links.append(f'<a href="#{name}">{title}</a>')
        return f'<h2 id="{name}">{title}</h2>'

    body = re.sub(r"<h2>(.*?)</h2>", with_id, body, flags=re.DOTALL)
    navigation = f'<nav class="contents" aria-label="Contents">{" ".join(links)}</nav>'
    return Markup(body.replace('<nav class="contents"></nav>', navigation))
