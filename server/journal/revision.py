"""Revisions on the wire: opaque tokens of the journal's epoch and a position in it."""

import re

from server.errors import FailedPrecondition, InvalidField

_POSITION = re.compile(r"[0-9a-f]{1,16}")


def to_token(epoch: str, position: int) -> str:
    """The token for a position."""
    return f"{epoch}-{position:x}"


def require(token: str, *, epoch: str, head: int, field: str = "min_revision") -> None:
    """Checks that the state up to `head` includes the token's; an empty token asks for nothing.

    Raises InvalidField if it is no token, FailedPrecondition if it is of another journal or ahead of this one.
    """
    if not token:
        return
    token_epoch, separator, position = token.rpartition("-")
    if not separator or not token_epoch or not _POSITION.fullmatch(position):
        raise InvalidField(field, "is not a revision; send one from an earlier reply, unchanged")
    if token_epoch != epoch:
        raise FailedPrecondition(f"{field} is of another journal; this server cannot tell what it included", field)
    if int(position, 16) > head:
        raise FailedPrecondition(f"{field} is ahead of this journal, which may have been restored from a backup", field)
