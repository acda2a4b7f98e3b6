"""compose.yaml: what it names exists, its settings are settings, and its server serves with certificate and keys."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config_sources import load_config
from tests.docker.dockerfile import ROOT, expand, image, stages
from tests.docker.rootfs import Rootfs, running
from tests.server.security.certificates import authority, signed

FOLDER = ROOT / "docker"
# Those of the compose specification that we use, so that a misspelt one is seen.
KEYS = {
    *("build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "init", "ports", "read_only"),
    *("restart", "secrets", "security_opt", "stop_grace_period", "tmpfs", "volumes"),
}
PROBE_KEYS = {"test", "interval", "timeout", "start_period", "start_interval", "retries"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file, with the defaults of its variables."""
    text = expand((FOLDER / "compose.yaml").read_text(encoding="utf-8"), {})
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where each volume or folder goes in the container."""
    return {source: target for source, target, *_ in (volume.split(":") for volume in service["volumes"])}


def test_every_service_is_written_in_the_specifications_words(compose: dict[str, Any]):
    assert set(compose) == {"name", "services", "secrets", "volumes"}
    for name, service in compose["services"].items():
        assert set(service) <= KEYS, name
        assert set(service["healthcheck"]) <= PROBE_KEYS
        assert service["healthcheck"]["test"][0] == "CMD"


def test_what_is_mounted_exists_or_is_a_volume(compose: dict[str, Any]):
    own = {"./bundles", "./secrets/server"}  # the operator's
    for service in compose["services"].values():
        for source in mounts(service):
            assert source in compose["volumes"] or source in own or (FOLDER / source).exists(), source


def test_every_image_is_built_here_or_pinned(compose: dict[str, Any]):
    for service in compose["services"].values():
        if "build" in service:
            context = FOLDER / service["build"]["context"]
            assert context.resolve() == ROOT
            assert stages(context / service["build"]["dockerfile"])
        else:
            assert service["image"].partition(":")[2] not in ("", "latest")


def test_ports_are_published_on_loopback(compose: dict[str, Any]):
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert {port.split(":")[0] for port in ports} == {"127.0.0.1"}
    assert {port.split(":")[2] for port in ports} == {"50051", "9090", "3000"}


def test_the_servers_settings_are_settings(compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    server = compose["services"]["server"]
    stage = image(FOLDER / "server.Dockerfile")
    for name, value in (stage.environment | server["environment"]).items():
        if name.startswith("TOWERBRIDGE__"):
            monkeypatch.setenv(name, value)
    config = load_config(None, {})
    places = mounts(server)
    assert set(stage.command("VOLUME")) <= set(places.values())
    assert config.bundle is not None
    assert str(config.bundle.parent) in places.values()
    assert config.security.keys_file is not None
    assert str(config.security.keys_file.parent) in places.values()
    assert int(server["stop_grace_period"].removesuffix("s")) > config.listen.drain_seconds + 10


def test_what_the_server_writes_is_on_volumes_or_in_memory(compose: dict[str, Any]):
    server = compose["services"]["server"]
    assert server["read_only"] is True
    read_only = [volume for volume in server["volumes"] if volume.endswith(":ro")]
    assert [volume.split(":")[1] for volume in read_only] == ["/bundles", "/run/towerbridge"]
    assert [mount.split(":")[0] for mount in server["tmpfs"]] == ["/tmp"]
    assert "exec" in server["tmpfs"][0].split(":")[1].split(",")


def test_prometheus_and_the_server_agree_on_the_port(compose: dict[str, Any]):
    configured = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = {target for job in configured["scrape_configs"] for one in job["static_configs"] for target in one["targets"]}
    port = image(FOLDER / "server.Dockerfile").environment["TOWERBRIDGE__METRICS__PORT"]
    assert f"server:{port}" in targets


def test_the_composed_server_serves_with_certificate_and_keys(compose: dict[str, Any], server: Rootfs, tmp_path: Path):
    service = compose["services"]["server"]
    secrets = server.path("/run/towerbridge")
    secrets.mkdir(parents=True)
    pair = signed(tmp_path, "server", authority(tmp_path))
    (secrets / "server.pem").write_bytes(pair.certificate.read_bytes())
    (secrets / "server.key").write_bytes(pair.key.read_bytes())
    (secrets / "server.key").chmod(0o600)
    made = server.run(["python", "-m", "server.keys", "create", "--name", "shop", "--roles", "read"], **service["environment"])
    assert made.returncode == 0, made.stderr
    changes = {"TOWERBRIDGE__LISTEN__PORT": "0", "TOWERBRIDGE__METRICS__PORT": "0"}
    with running(server, **service["environment"], **changes) as started:
        _, *probe = service["healthcheck"]["test"]
        probe = [str(server.path(word)) if word.startswith("/") else word for word in probe]
        done = server.run([*probe, "--target", f"127.0.0.1:{started.port}"])
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
