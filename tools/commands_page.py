"""Prints docs/commands.md: the help of every command. Usage: make commands"""

from __future__ import annotations

import click

from ditedge.cli import main

HEAD = """# Commands

Made from the help texts by `make commands`; a test holds that they say the same as `ditedge COMMAND --help`.
"""
WIDTH = 110


def command_help(name: str, command: click.Command) -> str:
    settings = {**main.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    return command.get_help(click.Context(command, info_name=name, **settings))


def page() -> str:
    sections = [f"```\n{command_help('ditedge', main)}\n```\n"]
    for name, command in sorted(main.commands.items()):
        sections.append(f"## {name}\n\n```\n{command_help(f'ditedge {name}', command)}\n```\n")
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    print(page(), end="")
