"""Configure the documentation site: `sphinx-build -W -b html docs build/docs`."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "extensions")]

project = "LSSVWM"
author = "the LSSVWM authors"
copyright = "2026, the LSSVWM authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "command_reference",
    "docstrings",
    "notebooks",
    "result_tables",
    "settings_reference",
]
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["results/memory/*", "extensions"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

autodoc_preserve_defaults = True
add_module_names = False

html_theme = "furo"
html_title = "LSSVWM"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "native"
