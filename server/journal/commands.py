"""The verbs of python -m server.journal: what each takes, runs and prints.

Each run imports what it needs when it runs, so that --help is quick.
"""

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from server.errors import StartupError

if TYPE_CHECKING:
    from server.config import Config

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_data(command: argparse.ArgumentParser) -> None:
    """Adds --data, the server's data directory, and --tenant, whose part of it."""
    default = os.environ.get("TOWERBRIDGE__DATA")
    command.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=Path(default) if default else None,
        required=not default,
        help="the server's data directory [TOWERBRIDGE__DATA]",
    )
    command.add_argument(
        "--tenant", type=tenant_name, default="default", metavar="NAME", help="whose journal; default, by default"
    )


def tenant_name(text: str) -> str:
    """A tenant's name, as the settings take it. It names a folder, so it must not lead to another one."""
    from pydantic import TypeAdapter, ValidationError

    from server.config import TenantName

    try:
        return TypeAdapter(TenantName).validate_python(text)
    except ValidationError:
        rule = "lower-case letters, digits, - and _, at most 63, beginning with a letter or digit"
        raise argparse.ArgumentTypeError(f"must be {rule}") from None


def folder_of(arguments: argparse.Namespace) -> Path:
    """The tenant's part of the data directory."""
    data: Path = arguments.data
    return data / str(arguments.tenant)


def add_erasure_key(command: argparse.ArgumentParser) -> None:
    """Adds --erasure-key, where the key of the tombstones is."""
    configured = os.environ.get("TOWERBRIDGE__ERASURE__KEY_FILE")
    command.add_argument(
        "--erasure-key",
        type=Path,
        metavar="FILE",
        default=Path(configured) if configured else None,
        help="erasure.key_file, DIR.erasure-key by default [TOWERBRIDGE__ERASURE__KEY_FILE]",
    )


def add_config(command: argparse.ArgumentParser) -> None:
    """Adds --config, the server's settings."""
    command.add_argument("--config", type=Path, metavar="FILE", help="the server's settings: consent, erasure.key_file")


def read_config(arguments: argparse.Namespace) -> "Config":
    """The server's settings, from --config and environment variables. Raises StartupError."""
    from server.config_sources import load_config

    data = {"data": arguments.data}
    try:
        config = load_config(arguments.config, data)
    except StartupError:  # a bundle is needed, which is not looked at here; anything else is said again
        return load_config(arguments.config, data | {"bundle": Path()})
    if arguments.config is not None and arguments.tenant not in config.served:
        named = ", ".join(config.served)
        raise StartupError(f"{arguments.config} serves no tenant {arguments.tenant}, but {named}; give --tenant NAME")
    return config


def key_of(arguments: argparse.Namespace, config: "Config") -> Path | None:
    """Where the key of the tombstones is; None: beside the data directory."""
    key: Path | None = arguments.erasure_key or config.erasure.key_file
    return key


def add_import(commands: Commands) -> None:
    command = commands.add_parser(
        "import",
        help="write the events of a canonical events.parquet, of any age",
        description="Write the events of a canonical events.parquet (python -m training import), of any age, as users'. "
        "Repeatable: events that are known already are not written again. Not while a server runs.",
    )
    command.add_argument("file", type=Path, metavar="EVENTS.parquet")
    command.add_argument(
        "--consent",
        type=_purposes,
        default=(),
        metavar="PURPOSES",
        help="personalisation, training or both, with a comma: what the people in the file agreed to. It is recorded for those "
        "who have not decided. Without it events of people who have not agreed to personalisation are refused (opt_in)",
    )
    command.add_argument("--consent-source", metavar="TEXT", help="where they agreed, such as 'terms of 2024'")
    add_data(command)
    add_config(command)
    add_erasure_key(command)
    command.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> int:
    from server.journal.database import open_journal
    from server.journal.erase import bring_up_to_date
    from server.journal.history_import import Agreed, import_events, open_events
    from server.journal.tombstones import open_tombstones
    from server.users.consent import presumed_by
    from server.users.intake import now_us

    if bool(arguments.consent) != bool(arguments.consent_source):
        raise StartupError("give --consent and --consent-source together: a decision without its source proves nothing")
    agreed = Agreed(arguments.consent, arguments.consent_source) if arguments.consent else None
    config = read_config(arguments)
    directory = folder_of(arguments)
    events = open_events(arguments.file)  # before a directory is made for nothing
    with closing(open_journal(directory)) as file, closing(open_tombstones(directory, key_of(arguments, config))) as erased:
        bring_up_to_date(file, erased)
        done = import_events(file, events, presumed_by(config.consent), erased, now_us=now_us(), agreed=agreed)
    print(f"{done.written} events written, {done.known} known already, {sum(done.refused.values())} refused")
    if done.decisions:
        print(f"{done.decisions} decisions recorded")
    for reason, count in done.refused.most_common(10):
        print(f"  {count} × {reason}")
    return 0


def add_verify(commands: Commands) -> None:
    command = commands.add_parser(
        "verify",
        help="check a journal or a backup, byte by byte and row by row",
        description="Check a journal, also while a server runs, or a backup. If it is not whole: a line for each problem, and "
        "exit status 2.",
    )
    command.add_argument("--file", type=Path, metavar="FILE", help="check this backup instead of the directory's journal")
    add_data(command)
    command.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from server.journal.database import FILE_NAME
    from server.journal.pages import REMEDY
    from server.journal.verify import verify

    path = arguments.file or folder_of(arguments) / FILE_NAME
    if not path.is_file():
        problem = (
            f"{path} is not a file; check --file"
            if arguments.file
            else f"{path.parent} holds no journal; check --data and --tenant"
        )
        raise StartupError(problem)
    found = verify(path)
    for problem in found.problems:
        print(f"{path}: {problem}", file=sys.stderr)
    if found.problems:
        raise StartupError(f"{path} is not whole; use another backup" if arguments.file else f"{path} is damaged; {REMEDY}")
    print(f"{path} is whole, schema {found.schema}: " + ", ".join(f"{count} {name}" for name, count in found.counts.items()))
    return 0


def add_backup(commands: Commands) -> None:
    command = commands.add_parser(
        "backup",
        help="copy the journal to one consistent file, also while a server runs",
        description="Copy the journal to one consistent, checked file, also while a server runs. People who are erased are not "
        "in it.",
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="the new file (DIR/TENANT/backups/journal-TIME.sqlite)")
    command.add_argument("--keep", type=_positive, metavar="N", help="then delete all but the N latest of DIR/TENANT/backups")
    add_data(command)
    add_erasure_key(command)
    command.set_defaults(run=_backup)


def _backup(arguments: argparse.Namespace) -> int:
    from server.journal.backup import back_up

    done = back_up(folder_of(arguments), arguments.out, keep=arguments.keep, key_file=arguments.erasure_key)
    print(f"{done.path}: {done.size_bytes} bytes, {done.counts['people']} people, {done.counts['events']} events")
    for path in done.deleted:
        print(f"deleted {path}")
    return 0


def add_restore(commands: Commands) -> None:
    command = commands.add_parser(
        "restore",
        help="make a backup the journal of a data directory",
        description="Make a backup the journal of a data directory. Not while a server runs. The journal gets a new epoch, so "
        "that revisions of what the backup lacks are refused; people who were erased since stay erased, and consent that was "
        "withdrawn since stays withdrawn.",
    )
    command.add_argument("backup", type=Path, metavar="BACKUP")
    command.add_argument(
        "--replace",
        action="store_true",
        help="delete the journal that is there; nothing is kept of it, since it may hold people who were erased",
    )
    command.add_argument(
        "--without-tombstones",
        action="store_true",
        help="also if the directory lacks the tombstones of where the backup was made: people who were erased since come back, "
        "and consent that was withdrawn",
    )
    add_data(command)
    add_erasure_key(command)
    command.set_defaults(run=_restore)


def _restore(arguments: argparse.Namespace) -> int:
    from server.journal.restore import restore

    done = restore(
        arguments.backup,
        folder_of(arguments),
        replace=arguments.replace,
        without_tombstones=arguments.without_tombstones,
        key_file=arguments.erasure_key,
    )
    print(f"{done.path} restored: {done.counts['people']} people, {done.counts['events']} events, {done.erased} erased again")
    return 0


def _purposes(text: str) -> tuple[str, ...]:
    purposes = tuple(text.split(","))
    if not set(purposes) <= {"personalisation", "training"}:
        raise argparse.ArgumentTypeError("must be personalisation, training, or personalisation,training")
    return purposes


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)
