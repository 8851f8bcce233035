"""How the site is built: `sphinx-build -W -n --keep-going -b html docs docs/_build/html`.

Nothing is fetched, neither here nor by the pages. What the repository holds as data (the bench, the
notebooks) or as code (the losses) is turned into pages and pictures first, in `generated` and
`notebooks`, so that neither can go stale.
"""

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
# The modules of this folder, and the bench, whose results are shown.
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "mcgrad"
version = release = installed("mcgrad")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
    "generate",
    "mathml",
]
smartquotes_action = "D"
exclude_patterns = ["_build", "generated/*.md"]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False
nb_execution_mode = "off"
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

html_theme = "furo"
html_title = "mcgrad"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
