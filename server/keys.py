"""python -m server.keys: make, list and revoke API keys."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from server.config import TENANT
from server.errors import StartupError
from server.journal.commands import tenant_name
from server.security.key_file import KeyName, StoredKey, create, read_keys, revoke
from server.security.roles import GRANTED, Role

_VARIABLE = "TOWERBRIDGE__SECURITY__KEYS_FILE"
_EPILOG = f"""\
examples:
  python -m server.keys create --name shop --roles read,ingest --file keys.json
  python -m server.keys create --name operator --roles admin --file keys.json
  python -m server.keys list --file keys.json
  python -m server.keys revoke k_0123456789ab --file keys.json

To replace a key: create another one of the same --name (two are active at once at most), give it to whoever uses it, and
revoke the first. A running server sees the change within a second. It finds the file by security.keys_file, or by
{_VARIABLE}, which this command reads too.
"""


def main() -> int:
    arguments = _parser().parse_args()
    try:
        return int(arguments.run(arguments))
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server.keys",
        description="Make, list and revoke the API keys of a server. Only hashes are kept of them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    making = commands.add_parser(
        "create", help="make a key and print it, once", description="Make a key. It is printed once, and kept nowhere."
    )
    making.add_argument(
        "--tenant",
        default=TENANT,
        type=tenant_name,
        metavar="NAME",
        help=f"whose people and items it reaches; {TENANT} by default",
    )
    making.add_argument("--name", required=True, type=_name, help="who uses it, such as shop; the audit log says this name")
    making.add_argument(
        "--roles",
        required=True,
        type=_roles,
        metavar="ROLES",
        help=f"of {', '.join(role.value for role in GRANTED)}, with commas; none includes another",
    )
    making.set_defaults(run=_create)
    listing = commands.add_parser("list", help="show the keys, without secrets", description="Show the keys, without secrets.")
    listing.set_defaults(run=_list)
    revoking = commands.add_parser("revoke", help="end a key", description="End a key, for good.")
    revoking.add_argument("id", metavar="ID", help="as list shows it, such as k_0123456789ab")
    revoking.set_defaults(run=_revoke)
    for command in (making, listing, revoking):
        default = Path(os.environ.get(_VARIABLE) or "keys.json")
        command.add_argument(
            "--file", type=Path, default=default, metavar="KEYS", help=f"security.keys_file, {default} by default [{_VARIABLE}]"
        )
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _create(arguments: argparse.Namespace) -> int:
    key, stored = create(arguments.file, arguments.tenant, arguments.name, arguments.roles)
    if arguments.json:
        print(json.dumps({**_shown(stored), "key": key}, indent=2))
    else:
        print(key)
    roles = ", ".join(role.value for role in stored.roles)
    print(
        f"{stored.id}: a key of {stored.name} for {stored.tenant} ({roles}), active in {arguments.file}. "
        "The key is shown this once: keep it now.",
        file=sys.stderr,
    )
    return 0


def _list(arguments: argparse.Namespace) -> int:
    _, keys = read_keys(arguments.file)
    if arguments.json:
        print(json.dumps([_shown(key) for key in keys], indent=2))
        return 0
    shown = [_shown(key) for key in keys]
    rows = [("ID", "TENANT", "NAME", "ROLES", "CREATED", "REVOKED")]
    rows += [(*(key[one] for one in ("id", "tenant", "name")), ",".join(key["roles"]), *_times(key)) for key in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    stored = revoke(arguments.file, arguments.id)
    if arguments.json:
        print(json.dumps(_shown(stored), indent=2))
    else:
        print(f"{stored.id}, a key of {stored.name} for {stored.tenant}, is revoked since {_shown(stored)['revoked_at']}")
    return 0


def _shown(key: StoredKey) -> dict[str, Any]:
    """What may be shown of a key."""
    return key.model_dump(mode="json", exclude={"sha256"}, exclude_none=True)


def _times(key: dict[str, Any]) -> Sequence[str]:
    return key["created_at"], key.get("revoked_at", "-")


def _name(text: str) -> str:
    try:
        return TypeAdapter(KeyName).validate_python(text)
    except ValidationError:
        rule = "letters, digits and . _ @ -, at most 63, beginning with a letter or digit"
        raise argparse.ArgumentTypeError(f"must be {rule}") from None


def _roles(text: str) -> tuple[Role, ...]:
    known = {role.value: role for role in GRANTED}
    names = text.split(",")
    if not set(names) <= known.keys():
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(known)}, with commas between them")
    return tuple(known[name] for name in names)


if __name__ == "__main__":
    sys.exit(main())
