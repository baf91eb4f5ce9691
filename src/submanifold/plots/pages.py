"""HTML pages, self-contained: one base, and a template for each kind of page."""

import base64
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder, such as ``report.html``.

    Values are escaped; one that is missing is an error. In the templates the filter ``picture``
    makes an image's address of the bytes of a PNG.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("submanifold.plots", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["picture"] = _picture
    return environment.get_template(template).render(values)


def _picture(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
