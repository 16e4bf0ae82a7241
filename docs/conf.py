"""Builds the site: `make docs`. Pages are MyST Markdown, and those with code cells are executed."""

import os
from pathlib import Path

from numpyro_onestep import __version__

DOCS = Path(__file__).parent

project = "numpyro_onestep"
author = "the numpyro_onestep developers"
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "numpyro_onestep"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4

# A page is executed again only where its code has changed: outputs are kept in docs/_build.
# NOTEBOOKS=off builds the pages without their outputs, and NOTEBOOKS=first_run executes one alone.
_wanted = os.environ.get("NOTEBOOKS", "all")
nb_execution_mode = "off" if _wanted == "off" else "cache"
if _wanted not in ("off", "all"):
    _pages = (path.relative_to(DOCS) for path in DOCS.glob("**/*.md"))
    nb_execution_excludepatterns = [str(p) for p in _pages if str(p) != f"{_wanted}.md"]
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
# A saved page has no use for a bar that moves, nor for the advice to install a better one.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
suppress_warnings = ["myst-nb.lexer"]  # a page that is not executed does not know its language
nb_render_markdown_format = "myst"

default_role = "code"  # a name in single backquotes, as the docstrings have it
autodoc_typehints = "none"  # the docstrings say shape and meaning of each argument
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes of a dataclass are documented once
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):
    """Let pages be read side by side: the extension adds a folder of files, and does not say so."""
    offline = app.extensions["sphinx-mathjax-offline"]
    offline.parallel_read_safe = offline.parallel_write_safe = True
