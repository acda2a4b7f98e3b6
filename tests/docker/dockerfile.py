"""What our Dockerfiles say, for tests: a reader of the instructions that they use, and of .dockerignore."""

import json
import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::-([^}]*))?\})")


@dataclass
class Stage:
    """One FROM and what follows it. `environment`: ENV of this stage and those that it is based on."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.instructions if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    def command(self, instruction: str) -> list[str]:
        """An instruction in exec form."""
        text = self.last(instruction)
        command = json.loads(text[text.index("[") :])
        assert all(isinstance(word, str) for word in command)
        return list(command)


def stages(dockerfile: Path, **arguments: str) -> dict[str, Stage]:
    """All stages by name; the last one is the image. `arguments`: build arguments."""
    found: dict[str, Stage] = {}
    known: dict[str, str] = {}  # ARGs before the first FROM
    stage: Stage | None = None
    for name, rest in _instructions(dockerfile):
        if name == "ARG":
            variable, _, default = rest.partition("=")
            if stage is None:
                known[variable] = arguments.get(variable, default)
            else:
                stage.environment.setdefault(variable, arguments.get(variable, default or known.get(variable, "")))
        elif name == "FROM":
            base, _, alias = expand(rest, known).partition(" AS ")
            stage = found[alias] = Stage(alias, base, environment=dict(found[base].environment) if base in found else {})
        else:
            assert stage is not None
            if name == "ENV":
                for pair in shlex.split(rest):
                    variable, _, value = pair.partition("=")
                    stage.environment[variable] = expand(value, stage.environment)
            stage.instructions.append((name, rest))
    return found


def image(dockerfile: Path, **arguments: str) -> Stage:
    """The last stage: what is built by default."""
    return list(stages(dockerfile, **arguments).values())[-1]


def expand(text: str, variables: dict[str, str]) -> str:
    """$NAME, ${NAME} and ${NAME:-default}; what is not known stays."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[2], found[3] or found[0]), text)


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest) for name, rest in pairs]


def context(root: Path = ROOT) -> list[Path]:
    """The files that a build may copy, relative to the checkout: those that .dockerignore lets through."""
    rules = [
        line.strip()
        for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    tops = [path for path in root.iterdir() if not ignored(path.relative_to(root), rules)]
    files = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()]
    return [path.relative_to(root) for path in files if not ignored(path.relative_to(root), rules)]


def ignored(path: Path, rules: list[str]) -> bool:
    """As Docker decides: the last rule that matches the path, or a directory above it, counts."""
    verdict = False
    ways = [path, *path.parents][:-1]
    for rule in rules:
        pattern = rule.removeprefix("!")
        if any(_matches(way, pattern) for way in ways):
            verdict = not rule.startswith("!")
    return verdict


def _matches(path: Path, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatchcase(path.name, pattern.removeprefix("**/"))
    parts = PurePosixPath(pattern).parts
    return len(parts) == len(path.parts) and all(map(fnmatchcase, path.parts, parts))
