"""The command line: ``mpq --help``. Imports torch only where a command needs it."""

import sys

from mpq.cli import commands, listings
from mpq.cli.app import app

__all__ = ["app", "commands", "listings", "main"]


def main() -> None:
    """Entry point of the ``mpq`` command."""
    sys.exit(app())


if __name__ == "__main__":
    main()
