"""The command line: ``mpq --help``. Imports torch only where a command needs it."""

import sys

from mpq import cli_jobs, cli_parts
from mpq.cli_app import app

__all__ = ["app", "cli_jobs", "cli_parts", "main"]


def main() -> None:
    """Entry point of the ``mpq`` command."""
    sys.exit(app())


if __name__ == "__main__":
    main()
