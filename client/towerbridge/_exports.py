"""What a server streams about people, as Python values."""

import json
from collections.abc import Iterator
from typing import Any

from towerbridge.v1 import ExportUserResponse, FindAudienceResponse, FindSimilarUsersResponse, Person


class Lines:
    """Lines of JSON out of the parts of an export; a line may lie in two parts."""

    def __init__(self) -> None:
        self._rest = ""

    def add(self, part: ExportUserResponse) -> Iterator[dict[str, Any]]:
        """The objects of the lines that this part completes."""
        *lines, self._rest = (self._rest + part.json_lines).split("\n")
        return (json.loads(line) for line in lines if line)


def scored(response: FindAudienceResponse | FindSimilarUsersResponse) -> Iterator[tuple[Person, float]]:
    """(person, cosine) pairs, nearest first."""
    return zip(response.people, response.scores, strict=True)
