"""The images: linted, and their steps run in a folder. No image is built here."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.config_sources import load_config
from tests.docker.dockerfile import ROOT, context, image, stages
from tests.docker.rootfs import HERE, SERVER, Rootfs, Running, made_folders, running

BIN = Path(sys.executable).parent
TRAINING = ROOT / "docker" / "training.Dockerfile"
DOCKERFILES = [SERVER, TRAINING]


def each(dockerfiles: list[Path] = DOCKERFILES) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("dockerfile", dockerfiles, ids=[path.stem for path in dockerfiles])


@each()
def test_hadolint_finds_nothing(dockerfile: Path):
    command = [BIN / "hadolint", "--config", ROOT / "docker" / "hadolint.yaml", dockerfile]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@each()
def test_every_copied_file_is_in_the_context(dockerfile: Path):
    files = context()
    copies = [rest for stage in stages(dockerfile).values() for rest in stage.all("COPY") if not rest.startswith("--from")]
    assert copies
    for copy in copies:
        for source in shlex.split(copy)[:-1]:
            assert any(file == Path(source) or Path(source) in file.parents for file in files), source


def test_the_context_holds_code_and_nothing_else():
    tops = {file.parts[0] for file in context()}
    assert tops == {"LICENSE", "README.md", "client", "constraints.txt", "index", "pyproject.toml", "server", "training"}
    assert not [file for file in context() if file.suffix in {".pyc", ".pem", ".key", ".sqlite"} or "__pycache__" in file.parts]


@each()
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_pip_installs_is_pinned_and_declared(dockerfile: Path, device: str):
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
    runs = [run for stage in stages(dockerfile).values() for run in stage.all("RUN") if "pip install" in run]
    assert len(runs) == 2
    for run in runs:
        assert "--constraint constraints.txt" in run
        for names in re.findall(r'"\.\[(.*?)\]"', run):
            assert set(names.replace("$DEVICE", device).split(",")) <= extras
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


@each()
def test_nobody_is_root_and_every_volume_is_the_users(dockerfile: Path):
    stage = image(dockerfile)
    user, group = stage.last("USER").split(":")
    made = {folder: options for run in stage.all("RUN") for folder, options in made_folders(run).items()}
    assert int(user) > 0
    for volume in stage.command("VOLUME"):
        assert made[volume]["owner"] == user
        assert made[volume]["group"] == group
    assert stage.last("STOPSIGNAL") == "SIGTERM"
    # The user is chosen after the last step that needs root, and before nothing that copies.
    names = [name for name, _ in stage.instructions]
    assert "COPY" not in names[names.index("USER") :]
    assert "RUN" not in names[names.index("USER") :]


@pytest.mark.parametrize(("device", "computes_on"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_the_images_settings_are_settings(device: str, computes_on: str, monkeypatch: pytest.MonkeyPatch):
    stage = image(SERVER, DEVICE=device)
    for name, value in stage.environment.items():
        if name.startswith("TOWERBRIDGE__"):
            monkeypatch.setenv(name, value)
    config = load_config(None, {})
    assert config.engine.device == computes_on
    assert config.erasure.key_file is not None
    assert {str(config.data.parent), str(config.erasure.key_file.parent)} == set(stage.command("VOLUME"))
    assert [str(config.listen.port), str(config.metrics.port)] == stage.last("EXPOSE").split()


def test_an_image_that_was_told_nothing_lets_nobody_in(server: Rootfs):
    refused = server.run([*server.stage.command("ENTRYPOINT"), *server.stage.command("CMD")])
    assert refused.returncode == 2
    assert "security.tls_certificate" in refused.stderr


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Rootfs:
    return Rootfs(TRAINING, tmp_path_factory.mktemp("image") / "training")


@pytest.fixture
def started(server: Rootfs) -> Iterator[Running]:
    """The image's own command, on this machine alone."""
    with running(server, **HERE) as started:
        yield started


def test_the_server_image_serves_says_so_and_drains(server: Rootfs, started: Running):
    process, port = started
    probe = server.stage.command("HEALTHCHECK")
    healthy = server.run([*probe, "--target", f"127.0.0.1:{port}"])
    assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n"), healthy.stderr
    process.send_signal(getattr(signal, server.stage.last("STOPSIGNAL")))
    assert process.wait(timeout=60) == 0
    gone = server.run([*probe, "--target", f"127.0.0.1:{port}"])
    assert gone.returncode == 1
    assert "does not answer" in gone.stderr


def test_a_server_writes_to_its_volumes_only(server: Rootfs, request: pytest.FixtureRequest):
    places = [*server.stage.command("VOLUME"), "/tmp"]
    before = server.files(but=places)
    request.getfixturevalue("started")
    assert server.files(but=places) == before
    assert server.path("/var/lib/towerbridge/state").is_dir()
    assert server.path("/var/lib/towerbridge-keys/erasure.key").is_file()


def test_all_code_of_ours_comes_from_the_image(server: Rootfs):
    script = "import index, server, towerbridge; print(index.__path__[0], server.__path__[0], towerbridge.__path__[0])"
    done = server.run(["python", "-c", script])
    assert done.returncode == 0, done.stderr
    assert [Path(path).is_relative_to(server.folder) for path in done.stdout.split()] == [True] * 3


@pytest.mark.parametrize("module", ["server", "server.health", "server.journal", "server.keys", "server.release"])
def test_the_server_image_runs_the_other_commands(server: Rootfs, module: str):
    done = server.run([*server.stage.command("ENTRYPOINT"), module, "--help"])
    assert done.returncode == 0, done.stderr
    assert f"python -m {module}" in done.stdout


def test_the_training_image_says_what_it_does(training: Rootfs):
    done = training.run([*training.stage.command("ENTRYPOINT"), *training.stage.command("CMD")])
    assert done.returncode == 0, done.stderr
    assert "python -m training" in done.stdout


def test_the_training_image_imports_trains_and_checks(training: Rootfs):
    work = training.path("/work")
    rows = [f"person-{n % 3},item-{n % 4},view,{1767225600 + n}" for n in range(24)]
    (work / "events.csv").write_text("\n".join(["user,item,event,timestamp", *rows]) + "\n", encoding="utf-8")
    for command in (
        "import csv --events events.csv --out data",
        "fit --data data --out bundles/live --text-encoder none --set training.epochs=1 --quiet",
        "check bundles/live",
    ):
        done = training.run([*training.stage.command("ENTRYPOINT"), *command.split()], OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "bundles" / "live" / "manifest.json").is_file()


def test_nothing_of_this_environment_reaches_the_image(server: Rootfs):
    assert set(server.environment()) - set(server.stage.environment) == {"TMPDIR"}
    assert "PYTHONPATH" not in server.environment()
    assert os.environ["PATH"] not in server.environment()["PATH"]
