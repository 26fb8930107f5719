"""The entry of `ditedge`, `python -m ditedge` and `python cli.py`: quiet under Ctrl-C from the first import on."""

import os
import sys
import warnings

from ditedge.interrupt import Interrupted, handle_signals, importing, interruption_sentence
from ditedge.output import keep_output_for_results


def main(name: str = "ditedge") -> None:
    """Runs the command line and exits."""
    handle_signals()
    keep_output_for_results()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        with importing():
            from ditedge.cli import main as commands
        commands(prog_name=name)
    except Interrupted as error:  # outside of a command: between two lines of click's own
        os.write(2, f"{interruption_sentence()}\n".encode())
        sys.exit(error.code)  # what was begun is removed on the way


if __name__ == "__main__":
    main("python -m ditedge")
