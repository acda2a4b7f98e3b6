"""From the configuration to what is presumed of people who have not decided."""

from server.config import Consent
from server.users.directory import Purpose


def presumed_by(consent: Consent) -> dict[Purpose, bool]:
    """For each purpose whether consent is presumed."""
    return {Purpose[name.upper()]: value == "opt_out" for name, value in consent.model_dump().items()}
