"""python -m server.journal: import into, check, back up, restore and export a journal."""

import argparse
import os
import sys

import apsw

from server.errors import StartupError
from server.journal.commands import add_backup, add_import, add_restore, add_verify
from server.journal.training_commands import add_export, add_screen

_EPILOG = """\
examples:
  python -m server.journal import data/events.parquet --data state --consent personalisation,training --consent-source terms
  python -m server.journal backup --data state --keep 7          # also while a server runs
  python -m server.journal export --data state --out export.parquet
  python -m server.journal export --data state --tenant acme --out acme.parquet
  python -m server.journal restore state/default/backups/journal-20270115T080000000000Z.sqlite --data state --replace
"""
# Each adds one verb, in the order of --help. A verb's `run` gets the arguments and returns the exit status.
_VERBS = (add_import, add_verify, add_backup, add_restore, add_export, add_screen)


def main() -> int:
    arguments = _parser().parse_args()
    os.umask(0o077)  # as the server: what it writes is about people
    try:
        return int(arguments.run(arguments))
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except apsw.Error as error:
        print(f"error: {error}; check the disk, its space and the directory's permissions", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server.journal",
        description="Work on the journal of a data directory. verify, backup, export and screen may run beside a server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in _VERBS:
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
