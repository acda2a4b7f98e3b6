"""What ends a replay through the service."""


class ReplayError(Exception):
    """The server did not start, refused an event of the replay or did not answer; its text says what it said."""
