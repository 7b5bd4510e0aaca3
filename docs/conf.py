"""How Sphinx builds these pages: `make docs`, with warnings as errors."""

import re
import sys
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import vi_kit  # noqa: E402

project, author, version = "vi_kit", "the vi_kit developers", vi_kit.__version__
release, copyright = version, author
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.intersphinx", "public_names"]
exclude_patterns = ["**/.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those that `make tutorials` has stored
nb_execution_show_tb = True

html_theme = "pydata_sphinx_theme"
html_title = "vi_kit"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_nav_level": 1,
    "navigation_with_keys": False,
    "pygments_light_style": "friendly",
    "footer_start": ["copyright"],
    "footer_end": [],
}

LIBRARIES = {
    "python": "https://docs.python.org/3/",
    "pyro": "https://docs.pyro.ai/en/stable/",
    "numpyro": "https://num.pyro.ai/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
    "arviz": "https://python.arviz.org/en/stable/",
}


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url + "objects.inv", timeout=3):
            return True
    except OSError:
        return False


# without a network the names of other libraries are text, and the pages are the same
intersphinx_mapping = {name: (url, None) for name, url in LIBRARIES.items() if reachable(url)}


def linked(app, docname: str, source: list[str]) -> None:
    """Notebooks are in a folder beside this one, and are built as if in it."""
    link = re.compile(r"\[([^]]+)\]\(\.\./tutorials/(\w+)\.(?:ipynb|md)\)")
    source[0] = link.sub(r"{doc}`\1 </tutorials/\2>`", source[0])


def setup(app) -> None:
    app.connect("source-read", linked)
