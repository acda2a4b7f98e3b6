"""OpenTelemetry traces, for who asks for them. Nothing of OpenTelemetry is imported otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.errors import StartupError

if TYPE_CHECKING:
    from server import config
    from server.telemetry.otlp import Traces


def open_traces(settings: config.Traces) -> Traces | None:
    """Begins to send spans where the configuration says. None, without a cost, if it does not say.

    Raises StartupError for an endpoint that cannot be one, and if the extra `traces` is not installed.
    """
    if settings.endpoint is None:
        return None
    parts = urlsplit(settings.endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartupError(f"traces.endpoint: {settings.endpoint!r} is no address; give one such as http://localhost:4317")
    try:
        from server.telemetry.otlp import Traces
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise StartupError(
            'traces.endpoint: needs OpenTelemetry, which is not installed; pip install "towerbridge[traces]", or unset it'
        ) from None
    return Traces(settings.endpoint, settings.sampled_share)
