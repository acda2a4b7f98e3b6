"""Settings of `fit`: one frozen tree, from training/configs/*.yaml, then a file of one's own, then --set.

Every field's meaning, unit and default is written line by line in training/configs/default.yaml.
"""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from training.errors import ConfigError

CONFIGS = Path(__file__).parent / "configs"
MOST_THREADS = 1024  # more is a mistake, and torch would start them


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _switch(value: Any) -> Any:
    """YAML reads a bare on and off as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]


class TowerConfig(_Section):
    """Sizes of the towers, which ship in the bundle."""

    dim: int = Field(default=64, ge=4, le=1024)
    history_length: int = Field(default=50, ge=2, le=1000)
    blocks: int = Field(default=1, ge=1, le=8)
    heads: int = Field(default=2, ge=1, le=16)
    hidden: int = Field(default=128, ge=4)
    category_slots: int = Field(default=16, ge=1, le=256)
    time_features: Switch = "auto"

    @model_validator(mode="after")
    def _heads_share_dim(self) -> "TowerConfig":
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be shared by {self.heads} heads")
        return self


class TextConfig(_Section):
    """Which sentence-transformers model turns item text into the item tower's input."""

    encoder: str = Field(default="auto", min_length=1)
    batch_size: int = Field(default=64, ge=1)


def _moment(value: Any) -> Any:
    """A share strictly between 0 and 1 stays; a time becomes ISO 8601, in UTC where it has no zone."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError("must be a share of the events between 0 and 1, or a time such as 2024-05-01T00:00:00Z")


Moment = Annotated[float | str, BeforeValidator(_moment)]


class SplitConfig(_Section):
    """What is held out of training."""

    kind: Literal["leave-one-out", "temporal", "all"] = "leave-one-out"
    validation_from: Moment = 0.8
    test_from: Moment = 0.9
    validation_users: float = Field(default=0.05, ge=0, le=0.5)
    cold_items: float = Field(default=0.0, ge=0, le=0.5)
    seed: int = Field(default=0, ge=0, lt=2**32)


class TrainingConfig(_Section):
    """The optimisation."""

    epochs: int = Field(default=16, ge=1)
    patience: int = Field(default=4, ge=1)
    validation_users: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    positions: int = Field(default=2048, ge=1)
    accumulate: int = Field(default=1, ge=1)
    loss: Literal["auto", "full", "sampled"] = "auto"
    negatives: int = Field(default=4096, ge=1)
    learning_rate: float = Field(default=5e-3, gt=0)
    final_learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    residual_rate: float = Field(default=10.0, gt=0)
    temperature: float = Field(default=0.07, ge=0.03, le=1.0)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    residual_dropout: float = Field(default=0.1, ge=0, lt=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Switch = "auto"
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int = Field(default=2, ge=0, le=MOST_THREADS)


class WarmStartConfig(_Section):
    """What `--warm-start` does otherwise."""

    epochs: int = Field(default=4, ge=1)
    positions: int = Field(default=512, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    new_item_rate: float = Field(default=30.0, ge=1)
    replay: float = Field(default=0.2, ge=0, le=1)
    anchor: float = Field(default=10.0, ge=0)


class Config(_Section):
    """The whole tree."""

    towers: TowerConfig = TowerConfig()
    text: TextConfig = TextConfig()
    split: SplitConfig = SplitConfig()
    training: TrainingConfig = TrainingConfig()
    warm_start: WarmStartConfig = WarmStartConfig()


def load_config(
    path: Path | None = None, overrides: list[str] | None = None, *, inherited: dict[str, Any] | None = None
) -> Config:
    """The built-in defaults, overlaid with a YAML file and with "section.key=value" pairs; raises ConfigError.

    `inherited`, sections of settings that a bundle was trained with, come right after the defaults.
    A name without a folder that is no file here, such as `demo` or `demo.yaml`, is looked for in training/configs/.
    """
    tree = _read(CONFIGS / "default.yaml")
    _merge(tree, inherited or {})
    if path is not None:
        _merge(tree, _read(find_config(path)))
    for pair in overrides or []:
        key, separator, value = pair.partition("=")
        section, dot, name = key.partition(".")
        if not separator or not dot:
            raise ConfigError(f"--set {pair}: write section.key=value, such as training.epochs=10")
        try:
            _merge(tree, {section: {name: yaml.safe_load(value)}})
        except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
            raise ConfigError(f"--set {pair}: the value is not YAML") from error
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "config"
        cure = "training/configs/default.yaml lists every setting"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: there is no such setting; {cure}") from error
        if first["type"] == "value_error":  # ours, of a whole section: it says what is wrong by itself
            raise ConfigError(f"{where}: {first['ctx']['error']}; {cure}") from error
        raise ConfigError(f"{where}: {first['msg']} (got {first['input']!r}); {cure}") from error


def find_config(path: Path) -> Path:
    """The file that `--config` means."""
    named = CONFIGS / f"{path.stem}.yaml"
    return named if not path.is_file() and path.parent == Path() and named.is_file() else path


class _EachKeyOnce(yaml.SafeLoader):
    """Of two sections with one name YAML would keep the last, and drop the settings of the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # Before what `<<` brings in, which the section's own keys may replace.
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"{path}: no such config; give a YAML file, or a name: {names}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_EachKeyOnce)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or what looks like a date and is none
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: not a mapping of sections; see training/configs/default.yaml")
    return tree


def _merge(tree: dict[str, Any], more: dict[str, Any]) -> None:
    """Overlays sections in place; a section that is not a mapping is left to validation to refuse."""
    for section, values in more.items():
        if isinstance(values, dict) and isinstance(tree.get(section), dict):
            tree[section] = {**tree[section], **values}
        elif values is not None:
            tree[section] = values
