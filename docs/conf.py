"""The documentation site; `make docs` builds it, and a warning is an error."""

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
# Tutorials call `dmoe`, which stands beside the interpreter.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

project = "dmoe"
author = "the dmoe developers"
copyright = author
version = release = installed_version("dmoe")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "dmoe_site"]
exclude_patterns = ["_ext", "_static"]

# Pages are written for GitHub too: plain links between files, headings as anchors, mermaid fences.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
suppress_warnings = [
    "myst.header",  # pages that are parts of another begin at a lower heading
    "misc.highlighting_failure",  # cells of `%%bash` are no Python
]

# Tutorials are executed by `make docs` (again only where they changed) and by tests/test_site.py.
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_excludepatterns = [] if "DMOE_DATA" in os.environ else ["tutorials/criteo.md"]
nb_execution_cache_path = str(Path(__file__).parents[1] / "build" / "tutorials")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # `forward` would be explained as torch explains it
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"
nitpicky = True
# Types of other libraries, whose inventories would have to be fetched, and names of types that are no page's subject.
nitpick_ignore_regex = [("py:.*", r".*")]

html_theme = "furo"
html_title = f"dmoe {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_copyright = False
html_show_sphinx = False
