"""Build the command reference from the click commands.

The directive `{commands} module:group` inserts one section per command: usage, description
and options. Settings have a page of their own.
"""

from __future__ import annotations

import importlib

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def section(command: click.Command, parent: click.Context | None, path: str) -> str:
    """Return the Markdown of one command and of its subcommands."""
    context = click.Context(command, info_name=path.split()[-1], parent=parent)
    formatter = click.HelpFormatter(width=76)
    command.format_usage(context, formatter)
    command.format_help_text(context, formatter)
    command.format_options(context, formatter)
    text = f"## `{path}`\n\n```text\n{formatter.getvalue().strip()}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            text += "\n" + section(child, context, f"{path} {name}")
    return text


class Commands(SphinxDirective):
    """Insert the help of a click group and of its commands."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the parsed sections."""
        module, _, name = self.arguments[0].partition(":")
        group = getattr(importlib.import_module(module), name)
        text = section(group, None, "lssvwm")
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
