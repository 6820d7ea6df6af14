"""The command line: ``mpq --help``. Imports torch only where a command needs it."""

import sys

from mpq._support.streams import end_answers
from mpq.cli import (
    commands,
    deployment,
    evolving,
    listings,
    patches,
    recipes,
    reporting,
    sharing,
    tuning,
)
from mpq.cli.app import app

# The modules of commands are imported for what that does: each registers its own with ``app``.
__all__ = [
    "app", "commands", "deployment", "evolving", "listings", "main", "patches", "recipes",
    "reporting", "sharing", "tuning",
]  # fmt: skip


def main() -> None:
    """Entry point of the ``mpq`` command."""
    try:
        sys.exit(app())
    # While the options are read, before any command of ours is there to say it.
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    # Of errors in how mpq is called, which typer prints: nobody reads those either.
    except BrokenPipeError:
        sys.exit(141)
    # Of help and listings that no command of ours prints.
    except OSError as error:
        sys.stderr.write(f"error: cannot write to standard output: {error.strerror}\n")
        sys.exit(2)
    # After an error and ``sys.exit`` too: what libraries print at the end would follow the answer.
    finally:
        end_answers()


if __name__ == "__main__":
    main()
