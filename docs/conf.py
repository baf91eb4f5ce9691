"""Configuration of the documentation: sphinx-build -W docs build/site."""

import re
from importlib.metadata import version as installed_version

project = "submanifold"
version = release = installed_version("submanifold")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
]
highlight_language = "bash"  # of indented blocks
suppress_warnings = ["misc.highlighting_failure"]
smartquotes = False  # options such as --params stay as they are typed
pygments_style, pygments_dark_style = "friendly", "github-dark"

# Markdown and notebooks. Notebooks are committed with their outputs.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "fieldlist",
]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The Python API
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!submanifold\.|\.).*"),  # other packages: there is no network
    ("py:.*", r"submanifold\.(plots|flows\.registry|flows\.fast|training\.checkpoint)\b.*"),
    ("py:.*", r"submanifold\.flows\.conditional\b.*"),
    ("py:.*", r"submanifold\..*(\._\w+|ChartEncoding|[Mm]odel\.data|settings\.Model)"),
]

# The theme; its files are local. The browser loads MathJax, which shows formulas, from its server
html_theme = "furo"
html_title = f"submanifold {release}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6"},
    "navigation_with_keys": True,
}
html_show_sphinx = html_show_copyright = False
html_static_path, html_css_files = ["_static"], ["custom.css"]
html_copy_source = False


def escape_stars(app, what, name, obj, options, lines) -> None:
    """Shapes such as (batch, *event) in docstrings are no emphasis."""
    lines[:] = [re.sub(r"(?<![\w*\\])\*(?=\w+\))", r"\\*", line) for line in lines]


def format_help(app, ctx, lines) -> None:
    """Show options in the text as code, and lines that click keeps as they are as a code block."""
    shown: list[str] = []
    for line in lines:
        if line.startswith("| "):
            shown += [] if shown and shown[-1].startswith("    ") else ["::", ""]
            shown.append("    " + line[2:])
        elif line.startswith(".. "):
            shown.append(line)
        else:
            shown.append(re.sub(r"(?<![\w`-])--[a-z][\w-]*", r"``\g<0>``", line))
    lines[:] = shown


def setup(app) -> None:
    """Connect the hooks, that of docstrings before napoleon's."""
    app.connect("autodoc-process-docstring", escape_stars, priority=100)
    app.connect("sphinx-click-process-description", format_help)
    app.connect("sphinx-click-process-options", format_help)
    app.connect("sphinx-click-process-arguments", lambda app, ctx, lines: lines.clear())
