"""Charts of our pages as files of their own."""

from __future__ import annotations


def standalone(svg: str, inside: str) -> str:
    """An inline <svg> as a file. inside: its style, and what is behind everything else."""
    head, _, rest = svg.partition(">")
    return head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + f">{inside}{rest}\n"
