"""Options that all config classes of the agent share."""

from pydantic import ConfigDict

SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""Unknown fields are errors; the text below a field is its documentation."""
