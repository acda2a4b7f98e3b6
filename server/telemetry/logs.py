"""What the server writes to standard error: lines for people, or one JSON object a line."""

import hashlib
import hmac
import json
import logging
import secrets
from datetime import UTC, datetime
from typing import Literal

from server.telemetry.current import CALL, USER

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_KEY = secrets.token_bytes(32)


def setup(format: Literal["text", "json"], level: str) -> None:
    """Sends the whole process's log to standard error. May be called again: the last call counts."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("faiss").setLevel("WARNING")  # it tells at import which instructions it uses


def hashed(subject_id: str) -> str:
    """Stands for a person in logs: 16 hexadecimal digits of an HMAC. The key is made anew with each process and kept nowhere.

    So lines about one person can be found together, and nobody can learn from them who it is, not even by trying all ids.
    """
    return hmac.digest(_KEY, subject_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:16]


class JsonLines(logging.Formatter):
    """One object a line. time, level, logger and message are always there; the rest where it is known.

    exc: a traceback. tenant, method: of the call that was being answered. trace_id, span_id: of its trace. user: the hash of
    the id that it was about.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exc"] = self.formatException(record.exc_info)
        call = CALL.get()
        if call is not None:
            named = {"tenant": call.tenant, "method": call.method, "trace_id": call.trace_id, "span_id": call.span_id}
            line |= {key: value for key, value in named.items() if value}
        if user := USER.get():
            line["user"] = hashed(user)
        return json.dumps(line)  # in ASCII, so that no text can break a line or its encoding
