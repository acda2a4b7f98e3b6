"""Errors of `python -m training`.

TrainingError             one line for the user: what is wrong and what to do; the command line exits 2
├── DatasetError          the data cannot be read, or nothing usable is left of it
│   └── NothingNewError   a warm start has nothing to learn
├── ConfigError           an unknown or impossible setting
├── TextEncoderError      no text encoder where one is asked for
└── RefreshError          a step of a refresh that failed, or a new bundle that is not good enough

Interrupted               Ctrl-C or SIGTERM, where work is kept; exit 130
"""


class TrainingError(Exception):
    """Something the user can put right; its text is the one line that the command line prints."""


class DatasetError(TrainingError):
    """A missing file or column, or a data set with no usable row."""


class NothingNewError(DatasetError):
    """Nothing in the data that the bundle of a warm start was not taught."""


class ConfigError(TrainingError):
    """A setting that does not exist or whose value is impossible."""


class TextEncoderError(TrainingError):
    """A text encoder that is missing or cannot be used."""


class RefreshError(TrainingError):
    """A step of a refresh failed, or the new bundle is worse than allowed."""


class Interrupted(KeyboardInterrupt):
    """By Ctrl-C or SIGTERM, with work that is kept; the text says how it goes on."""
