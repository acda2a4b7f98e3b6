"""Configuration: one frozen tree, read once at start.

Later sources win: the defaults here, a YAML file (--config), environment variables (TOWERBRIDGE__SECTION__KEY), flags.
`config.example.yaml` beside this file has every key with its default, unit and meaning.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from server.errors import StartupError

TENANT = "default"
"""The only tenant there is: a folder of the data directory, and all that it owns."""

_PREFIX = "TOWERBRIDGE__"
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Listen(_Section):
    """Where and how the server listens."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """0 takes any free port; the start-up line says which."""
    max_concurrent_rpcs: Positive = 256
    """RPCs in flight; the next one is answered RESOURCE_EXHAUSTED at once."""
    max_message_bytes: Positive = 32 * 1024 * 1024
    default_deadline_ms: Positive = 10_000
    """For callers that set none."""
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    """After SIGTERM, how long RPCs in flight may take to end."""


class Journal(_Section):
    """The record of everything acknowledged."""

    max_event_age_days: Positive = 30
    """RecordEvents refuses older events; `python -m server.journal import` takes any age."""
    max_group_rows: Positive = 4096
    """Rows committed by one fsync at most."""
    retention_days: Positive | None = None
    """Events received longer ago are removed. Unset: none is, for its age."""
    max_events_per_person: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Newest events kept of one id; at least users.max_history_events."""
    event_id_days: Positive = 30
    """How long an event_id is known after its event came in: at least as long as producers may retry, max_event_age_days."""

    @model_validator(mode="after")
    def _retries_are_known(self) -> Self:
        if self.event_id_days < self.max_event_age_days:
            raise ValueError("event_id_days must be at least max_event_age_days: a retry would be written again")
        if self.retention_days is not None and self.retention_days < self.event_id_days:
            raise ValueError("retention_days must be at least event_id_days")
        return self


class Users(_Section):
    """People's histories and vectors."""

    max_history_events: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Newest events of a person held in memory: what exclude_seen sees. The tower reads fewer."""
    refresh: bool = True
    """Recompute vectors after events, in the background. They are always fresh before an answer, with or without."""
    max_people_in_memory: Positive = 1_000_000
    """People whose histories and vectors are kept in memory; those of others are read from the journal when asked for."""
    preference_bonus: Annotated[float, Field(ge=0, le=2)] = 0.1
    """Added to the score of an item that the person's profile likes, or that has a category that it likes."""


class Consent(_Section):
    """What may be done with the data of people who have not decided."""

    personalisation: Literal["opt_in", "opt_out"] = "opt_in"
    """opt_in: nothing without a recorded yes. opt_out: consent is presumed until there is a no."""
    training: Literal["opt_in", "opt_out"] = "opt_in"
    """The same, for `python -m server.journal export`."""


class Erasure(_Section):
    """How people are forgotten."""

    key_file: Path | None = None
    """The tombstones' key, outside the data directory. Unset: beside it, named as it is with .erasure-key."""
    backups: Literal["scrub", "keep"] = "scrub"
    """scrub: erased people are removed from the backups in the data directory too. keep: only when one is restored."""


class Audience(_Section):
    """Finding people for items and people like others."""

    enabled: bool = False
    """Whether AudienceService answers: it names people."""


class Engine(_Section):
    """The one thread that computes vectors and searches."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    threads: Positive = 1
    """Threads of one computation on the CPU."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 64
    """Requests computed together at most."""


class Index(_Section):
    """How items are searched."""

    kind: Literal["auto", "exact", "faiss-ivf", "faiss-gpu"] = "auto"
    """auto: exact up to 50,000 items on a CPU, faiss-ivf above; exact on a GPU up to 30,000,000."""
    recall: Annotated[float, Field(ge=0.5, le=0.999)] = 0.95
    """Of an approximate index: the part of the true best 100 that it is built to find."""
    recall_margin: Annotated[float, Field(ge=0.005, le=0.5)] = 0.02
    """When recall on live queries falls this far below `recall`, a warning is logged and the index is built anew, aside."""
    sampled_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Of the queries, how many are compared with exact search in the background; 0 turns it off."""
    rows: Literal["float32", "float16"] = "float32"
    """How item vectors are kept. float16 halves their memory; scores are exact to about 0.001 then."""
    snapshots: bool = True
    """Keep what was expensive to build in the data directory, for the next start."""


class Metrics(_Section):
    """What Prometheus reads."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Unset: there is no endpoint. 0 takes any free port; the start-up line says which."""


class Config(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    bundle: Path
    """The bundle to serve, as `python -m training fit` wrote it."""
    data: Path
    """The directory of the journal; made at first start."""
    listen: Listen = Listen()
    journal: Journal = Journal()
    users: Users = Users()
    consent: Consent = Consent()
    erasure: Erasure = Erasure()
    audience: Audience = Audience()
    engine: Engine = Engine()
    index: Index = Index()
    metrics: Metrics = Metrics()

    @model_validator(mode="after")
    def _histories_are_held(self) -> Self:
        if self.journal.max_events_per_person < self.users.max_history_events:
            raise ValueError("journal.max_events_per_person must be at least users.max_history_events")
        return self


def load_config(file: Path | None, flags: dict[str, Any]) -> Config:
    """Reads the tree from all sources; `flags` holds the set ones, nested as the tree is.

    Raises StartupError with one line for an unreadable file, an unknown key or a bad value.
    """
    values = _read_yaml(file) if file else {}

    class FromAllSources(Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings, env_settings, _Values(settings_cls, values))

    _check_variables(os.environ)
    try:
        return FromAllSources(**flags)
    except SettingsError as error:
        raise StartupError(f"configuration: {error}; set single keys, such as TOWERBRIDGE__LISTEN__PORT=8080") from None
    except ValidationError as error:
        problems = "; ".join(sorted(map(_problem, error.errors()), key=lambda text: "is needed" in text))
        raise StartupError(f"configuration: {problems} (see python -m server --help)") from None


def _problem(error: ErrorDetails) -> str:
    """One problem of one key, in words."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{key}: is needed; give --{key} DIR, {_PREFIX}{key.upper()} or {key}: in --config FILE"
    if error["type"] == "extra_forbidden":
        return f"{key}: no such setting; server/config.example.yaml has them all"
    says = error["msg"].removeprefix("Value error, ")  # pydantic's own word for what a validator of ours raised
    return f"{key}: {says}" if key else says


def _check_variables(environment: Mapping[str, str]) -> None:
    """Refuses a variable that names no setting: a misspelt one would be ignored silently."""
    for name in environment:
        if not name.startswith(_PREFIX):
            continue
        section, _, key = name.removeprefix(_PREFIX).lower().partition("__")
        field = Config.model_fields.get(section)
        inner = field.annotation if field is not None else None
        known = field is not None and (
            not key or (isinstance(inner, type) and issubclass(inner, _Section) and key in inner.model_fields)
        )
        if not known:
            raise StartupError(
                f"configuration: {section}{'.' if key else ''}{key}: {name} names no setting; correct or unset it"
            )


class _Values(PydanticBaseSettingsSource):
    """A source of values that were read already."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise StartupError(f"configuration: cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartupError(f"configuration: {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise StartupError(f"configuration: {file} must hold sections and keys, see server/config.example.yaml")
    return values
