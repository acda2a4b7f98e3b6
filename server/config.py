"""Configuration: one frozen tree, read once at start (`config_sources.py` says from where).

`config.example.yaml` beside this file has every key with its default, unit and meaning.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

TENANT = "default"
"""The tenant that `bundle` belongs to, and the only one unless there are others in `tenants`."""

PREFIX = "TOWERBRIDGE__"
NO_BUNDLE = f"bundle: is needed; give --bundle DIR, {PREFIX}BUNDLE or bundle: in --config FILE"
Positive = Annotated[int, Field(ge=1)]
TenantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, about: ValidationInfo) -> object:
        # `port: yes` would be port 1.
        if isinstance(value, bool) and about.field_name and cls.model_fields[about.field_name].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


class Listen(Section):
    """Where and how the server listens."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 50051
    """0 takes any free port; the start-up line says which."""
    max_connection_age_s: Annotated[int, Field(ge=1, le=2_000_000)] = 3600
    """Connections are closed after so long, once their calls have ended, so that clients spread and see new certificates."""
    max_message_bytes: Annotated[int, Field(ge=1, le=2**31 - 1)] = 16 * 1024 * 1024
    """Of one request or reply."""
    default_deadline_ms: Positive = 10_000
    """For callers that set none."""
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    """After SIGTERM, how long RPCs in flight may take to end."""


class Security(Section):
    """Who may call, and over what."""

    keys_file: Path | None = None
    """API keys, as `python -m server.keys` writes them. Unset: nobody needs one."""
    tls_certificate: Path | None = None
    """The server's certificate and those between it and the root, PEM. Read again when the file changes."""
    tls_key: Path | None = None
    """Its private key, PEM."""
    client_ca: Path | None = None
    """Roots of clients' certificates, PEM: every client needs one (mTLS). Unset: clients need none."""
    insecure: bool = False
    """Allows other machines to connect without TLS, or without a key or certificate."""
    reflection: bool = True
    """Offer gRPC reflection; where keys are needed, to admins only."""

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.client_ca is not None and self.tls_certificate is None:
            raise ValueError("client_ca needs tls_certificate and tls_key")
        return self


class Overload(Section):
    """When calls are refused so that the others are answered in time."""

    queue_ms: Annotated[float, Field(ge=1, le=10_000)] = 5.0
    """The delay that calls may have before they are worked on. Above it fewer calls are let in, below it more."""
    max_reads: Positive = 256
    """Calls of the role read in flight at most, however short the delay is."""
    max_ingests: Positive = 256
    """The same for the role ingest. A stream counts as one."""
    max_admins: Positive = 16
    """The same for the roles admin and audience."""


class Journal(Section):
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


class Users(Section):
    """People's histories and vectors."""

    max_history_events: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Newest events of a person held in memory: what exclude_seen sees. The tower reads fewer."""
    refresh: bool = True
    """Recompute vectors after events, in the background. They are always fresh before an answer, with or without."""
    max_people_in_memory: Positive = 1_000_000
    """People whose histories and vectors are kept in memory; those of others are read from the journal when asked for."""
    preference_bonus: Annotated[float, Field(ge=0, le=2)] = 0.1
    """Added to the score of an item that the person's profile likes, or that has a category that it likes."""


class Consent(Section):
    """What may be done with the data of people who have not decided."""

    personalisation: Literal["opt_in", "opt_out"] = "opt_in"
    """opt_in: nothing without a recorded yes. opt_out: consent is presumed until there is a no."""
    training: Literal["opt_in", "opt_out"] = "opt_in"
    """The same, for `python -m server.journal export`."""


class Erasure(Section):
    """How people are forgotten."""

    key_file: Path | None = None
    """The tombstones' key, outside the data directory. Unset: beside it, named as it is with .erasure-key."""
    backups: Literal["scrub", "keep"] = "scrub"
    """scrub: erased people are removed from the backups in the data directory too. keep: only when one is restored."""


class Audience(Section):
    """Finding people for items and people like others."""

    enabled: bool = False
    """Whether AudienceService answers: it names people."""


class Releases(Section):
    """Changing the live release while the server serves."""

    bundles: tuple[Path, ...] | None = None
    """Folders below which LoadRelease takes bundles; of several tenants each has the folder of its name in them.

    Unset: the folder that the configured bundle lies in, if no other tenant's lies there too.
    """
    keep: Annotated[int, Field(ge=2, le=16)] = 3
    """Releases held at once at most: the live one, the previous one, and those loaded beside them."""
    warm_people: Annotated[int, Field(ge=0)] = 10_000
    """People, the most recently active first, whose vectors are computed before a release is made the live one."""


class Tenant(Section):
    """Another tenant: its own people, items, journal and releases, reached with its own keys."""

    bundle: Path
    """The bundle to serve to it."""


class Engine(Section):
    """What computes vectors and searches, one batch at a time."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of one computation on the CPU."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 64
    """Requests computed together at most."""
    compile: bool = True
    """Compile the user tower for this CPU, aside, once a bundle. Until then, and without a compiler, it runs as exported."""


class Index(Section):
    """How items are searched."""

    kind: Literal["auto", "exact", "ivf", "faiss-ivf", "faiss-gpu"] = "auto"
    """auto: exact up to 50,000 items on a CPU, ivf above, faiss-ivf if there is no C++ compiler; exact on a GPU."""
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


class Metrics(Section):
    """What Prometheus reads."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Unset: there is no endpoint. 0 takes any free port; the start-up line says which."""


class Traces(Section):
    """OpenTelemetry traces."""

    endpoint: str | None = None
    """Where spans go, OTLP over gRPC, such as http://localhost:4317. Unset: there are no traces."""
    sampled_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Of the calls whose caller has not decided, how many are traced."""


class Logs(Section):
    """What the server writes to standard error."""

    format: Literal["text", "json"] = "text"
    """text: for people. json: one object a line."""


class Config(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    bundle: Path | None = None
    """The bundle to serve, as `python -m training fit` wrote it. Needed unless there are `tenants`."""
    tenants: dict[TenantName, Tenant] = {}
    """Other tenants by name."""
    data: Path
    """The directory of the journal; made at first start."""
    listen: Listen = Listen()
    security: Security = Security()
    overload: Overload = Overload()
    journal: Journal = Journal()
    users: Users = Users()
    consent: Consent = Consent()
    erasure: Erasure = Erasure()
    audience: Audience = Audience()
    releases: Releases = Releases()
    engine: Engine = Engine()
    index: Index = Index()
    metrics: Metrics = Metrics()
    traces: Traces = Traces()
    logs: Logs = Logs()

    @property
    def served(self) -> dict[str, Path]:
        """The bundle of every tenant."""
        own = {} if self.bundle is None else {TENANT: self.bundle}
        return own | {name: tenant.bundle for name, tenant in self.tenants.items()}

    @model_validator(mode="after")
    def _tenants_are_told_apart(self) -> Self:
        if self.bundle is None and not self.tenants:
            raise ValueError(NO_BUNDLE)
        if self.bundle is not None and TENANT in self.tenants:
            raise ValueError(f"tenants: {TENANT} is the tenant of bundle; give one of the two")
        if self.tenants and self.security.keys_file is None and len(self.served) > 1:
            raise ValueError("security.keys_file: is needed with several tenants: a call's key says whose it is")
        return self

    @model_validator(mode="after")
    def _ports_are_told_apart(self) -> Self:
        if self.metrics.port and self.metrics.port == self.listen.port:
            raise ValueError(f"metrics.port and listen.port are both {self.listen.port}; give two ports")
        return self

    @model_validator(mode="after")
    def _histories_are_held(self) -> Self:
        if self.journal.max_events_per_person < self.users.max_history_events:
            raise ValueError("journal.max_events_per_person must be at least users.max_history_events")
        return self
