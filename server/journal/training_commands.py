"""The verbs of python -m server.journal about training: export and screen. See commands.py for the others."""

import argparse
from pathlib import Path

from server.errors import StartupError
from server.journal.commands import Commands, add_config, add_data, add_erasure_key, folder_of, key_of, read_config


def add_export(commands: Commands) -> None:
    command = commands.add_parser(
        "export",
        help="write the events of those who consented to training",
        description="Write the events of everybody who consented to training to a canonical events.parquet, also while a "
        "server runs. Linked ids are one user. A bundle that is trained on it says up to where in the journal it saw.",
    )
    command.add_argument("--out", type=Path, required=True, metavar="EVENTS.parquet", help="the new file")
    command.add_argument(
        "--items",
        type=Path,
        metavar="ITEMS.parquet",
        help="also write the catalogue: id, text, categories and attributes of every item that is not removed",
    )
    add_data(command)
    add_config(command)
    add_erasure_key(command)
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from server.journal.export import export_events
    from server.journal.item_export import export_items
    from server.users.consent import presumed_by
    from server.users.intake import now_us

    config = read_config(arguments)
    if arguments.items is not None and arguments.items.exists():
        raise StartupError(f"{arguments.items} exists; choose another --items")
    done = export_events(
        folder_of(arguments),
        arguments.out,
        presumed_by(config.consent),
        now_us=now_us(),
        key_file=key_of(arguments, config),
    )
    print(f"{arguments.out}: {done.events} events of {done.people} people, up to {done.watermark}")
    if done.without_consent:
        print(f"  {done.without_consent} ids left out, without consent to training")
    if arguments.items is not None:
        try:  # after the events, so that no event is on an item that came in between
            print(f"{arguments.items}: {export_items(folder_of(arguments), arguments.items)} items")
        except StartupError:
            arguments.out.unlink()
            raise
    return 0


def add_screen(commands: Commands) -> None:
    command = commands.add_parser(
        "screen",
        help="take those out of an export who were erased or withdrew since",
        description="Rewrite an export without those who were erased, or withdrew their consent to training, since.",
    )
    command.add_argument("file", type=Path, metavar="EVENTS.parquet")
    add_data(command)
    add_config(command)
    add_erasure_key(command)
    command.set_defaults(run=_screen)


def _screen(arguments: argparse.Namespace) -> int:
    from server.journal.export import screen
    from server.users.consent import presumed_by

    config = read_config(arguments)
    done = screen(
        folder_of(arguments),
        arguments.file,
        presumed_by(config.consent),
        key_file=key_of(arguments, config),
    )
    print(f"{arguments.file}: {done.removed} events removed, {done.kept} kept")
    return 0
