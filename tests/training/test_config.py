"""Settings: a typo is an error that names the key."""

from pathlib import Path

import pytest
import yaml

from training.config import CONFIGS, Config, load_config
from training.errors import ConfigError
from training.fitting.trainer import learning_rate


def test_the_documented_defaults_are_the_code_s_and_name_every_setting() -> None:
    written = yaml.safe_load((CONFIGS / "default.yaml").read_text(encoding="utf-8"))
    assert written == Config().model_dump()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_config_loads_by_path_and_by_name(path: Path) -> None:
    assert load_config(path) == load_config(Path(path.stem)) == load_config(Path(path.name))


def test_a_file_and_then_set_override_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("training:\n  epochs: 3\n  seed: 5\n")
    config = load_config(tmp_path / "own.yaml", ["training.epochs=4", "training.learning_rate=1e-3"])
    assert (config.training.epochs, config.training.seed, config.training.learning_rate) == (4, 5, 0.001)
    assert config.towers == Config().towers


def test_on_and_off_are_words_though_yaml_reads_them_as_true_and_false(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("towers:\n  time_features: off\n")
    config = load_config(tmp_path / "own.yaml", ["training.compile=on", "training.validation_users=300"])
    assert (config.towers.time_features, config.training.compile, config.training.validation_users) == ("off", "on", 300)


@pytest.mark.parametrize(
    ("content", "overrides", "words"),
    [
        ("training:\n  epoch: 3\n", [], "training.epoch: there is no such setting"),
        ("trainer:\n  epochs: 3\n", [], "trainer: there is no such setting"),
        ("training:\n  epochs: many\n", [], "training.epochs: "),
        ("training: 3\n", [], "training: "),
        ("towers:\n  dim: 10\n  heads: 3\n", [], "towers: dim 10 cannot be shared by 3 heads"),
        ("training: {epochs: 3}\ntowers: {}\ntraining: {seed: 1}\n", [], "training is there twice"),
        ("training:\n  epochs: 3\n  epochs: 4\n", [], "epochs is there twice"),
        ("training:\n  threads: 1025\n", [], "training.threads: "),
        ("- a list\n", [], "not a mapping"),
        ("a: [\n", [], "not YAML"),
        ("", ["epochs=3"], "--set epochs=3: write section.key=value"),
        ("", ["training.epochs"], "write section.key=value"),
        ("", ["split.validation_from=2024-13-45"], "--set split.validation_from=2024-13-45: the value is not YAML"),
        ("split:\n  validation_from: 2024-13-45\n", [], "own.yaml: not YAML"),
        ("", ["training.temperature=0.001"], "training.temperature: "),
        ("", ["training.precision=float16"], "training.precision: "),
        ("", ["training.validation_users=0"], "training.validation_users"),
        ("", ["towers.dims=3"], "towers.dims: there is no such setting"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, content: str, overrides: list[str], words: str) -> None:
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "own.yaml", overrides)
    assert words in str(caught.value)


def test_a_missing_config_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config; give .* amazon-beauty, default, demo, quick"):
        load_config(Path("nowhere.yaml"))


def test_the_learning_rate_falls_from_the_first_to_the_last_epoch() -> None:
    config = load_config(None, ["training.epochs=5", "training.learning_rate=0.1", "training.final_learning_rate=0.01"])
    rates = [learning_rate(config.training, epoch) for epoch in range(1, 6)]
    assert rates[0] == pytest.approx(0.1) and rates[2] == pytest.approx(0.055) and rates[-1] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)
