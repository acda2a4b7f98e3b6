"""python -m server.journal: work on a journal that no server has open."""

import argparse
import os
import sys
from pathlib import Path

from server.errors import StartupError

_EPILOG = """\
example:
  python -m server.journal import data/events.parquet --data state
"""


def main() -> int:
    arguments = _parser().parse_args()
    from server.config import TENANT
    from server.journal.database import open_journal
    from server.journal.history_import import import_events
    from server.users.intake import now_us

    try:
        file = open_journal(arguments.data / TENANT)
        try:
            done = import_events(file, arguments.file, now_us=now_us())
        finally:
            file.close()
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{done.written} events written, {done.known} known already, {sum(done.refused.values())} refused")
    for reason, count in done.refused.most_common(10):
        print(f"  {count} × {reason}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.journal", description="Work on a journal that no server has open.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "import",
        help="write the events of a canonical events.parquet, of any age",
        description="Write the events of a canonical events.parquet (python -m training import), of any age, as users'. "
        "Repeatable: events that are known already are not written again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", type=Path, metavar="EVENTS.parquet")
    default = os.environ.get("TOWERBRIDGE__DATA")
    command.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=Path(default) if default else None,
        required=default is None,
        help="the server's data directory [TOWERBRIDGE__DATA]",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
