"""The documentation site: `make docs`. Nothing is fetched, and a warning is an error."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "adapters")]

import site_docstrings  # noqa: E402
import site_reference  # noqa: E402

import sa_plugin  # noqa: E402

project = "sa_plugin"
author = "the authors of sa_plugin"
version = release = sa_plugin.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
default_role = "py:obj"
exclude_patterns = ["_build", "notebooks/README.md", "experiments/**"]

myst_heading_anchors = 3
# Pages begin with tables made by scripts; short names of types may stand in two modules.
suppress_warnings = ["myst.header", "ref.python"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = f"sa_plugin {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"


NOT_RUN = re.compile(r"^```python no-run +([^\n]+)\n", re.M)


def say_why(app, name, source):
    """What a block that does not run says of itself, above the block."""
    source[0] = NOT_RUN.sub(r"*Not run by the tests: \1.*\n\n```python\n", source[0])


def setup(app):
    """Write the reference pages; make plain-text docstrings safe for reStructuredText."""
    app.connect("source-read", say_why)
    site_reference.write(HERE / "reference")
    # Before napoleon (500), which turns the sections into fields.
    app.connect("autodoc-process-docstring", site_docstrings.process, priority=400)
