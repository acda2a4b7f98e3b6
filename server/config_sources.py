"""Where the configuration comes from.

Later sources win: defaults, a YAML file (--config), environment variables (TOWERBRIDGE__SECTION__KEY), flags.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError

from server.config import NO_BUNDLE, PREFIX, Config, Section
from server.errors import StartupError

_WORDS = {
    "tuple_type": "must be a list",
    "dict_type": "must hold keys and values",
    "model_type": "must hold keys and values",
}
"""For what pydantic says in Python's terms."""


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
        problems = [*map(_problem, error.errors())]
        if not {"bundle", "tenants"} & {*flags, *values, *_sections(os.environ)}:
            problems.append(NO_BUNDLE)  # which is not looked at when a single key is wrong
        unique = sorted(dict.fromkeys(problems), key=lambda text: "is needed" in text)
        raise StartupError(f"configuration: {'; '.join(unique)} (see python -m server --help)") from None


def _problem(error: ErrorDetails) -> str:
    """One problem of one key, in words."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{key}: is needed; give --{key} DIR, {PREFIX}{key.upper()} or {key}: in --config FILE"
    if error["type"] == "extra_forbidden":
        return f"{key}: no such setting; server/config.example.yaml has them all"
    says = error["msg"].removeprefix("Value error, ")  # pydantic's own word for what a validator of ours raised
    says = _WORDS.get(error["type"], says.replace("Input should be", "must be"))
    return f"{key}: {says}" if key else says


def _sections(environment: Mapping[str, str]) -> set[str]:
    """What the environment sets, such as "listen"."""
    return {name.removeprefix(PREFIX).lower().partition("__")[0] for name in environment if name.startswith(PREFIX)}


def _check_variables(environment: Mapping[str, str]) -> None:
    """Refuses a variable that names no setting: a misspelt one would be ignored silently."""
    for name in environment:
        if not name.startswith(PREFIX):
            continue
        section, _, key = name.removeprefix(PREFIX).lower().partition("__")
        field = Config.model_fields.get(section)
        inner = field.annotation if field is not None else None
        of_section = isinstance(inner, type) and issubclass(inner, Section) and key in inner.model_fields
        known = field is not None and (not key or of_section or section == "tenants")
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


class _EachKeyOnce(yaml.SafeLoader):
    """Of two sections with one name YAML would keep the last, and drop the keys or the TLS of the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Before what `<<` brings in, which the section's own keys may replace.
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_EachKeyOnce) or {}
    except OSError as error:
        raise StartupError(f"configuration: cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartupError(f"configuration: {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise StartupError(f"configuration: {file} must hold sections and keys, see server/config.example.yaml")
    return values
