"""python -m server.release: load a release beside the live one, make it live, take it back."""

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import towerbridge
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from towerbridge import v1
from tqdm import tqdm

from server.health import about_tls

_VARIABLE = "TOWERBRIDGE_API_KEY"
_LOOK_SECONDS = 0.5
_READY = (
    v1.ReleaseState.RELEASE_STATE_LIVE,
    v1.ReleaseState.RELEASE_STATE_PREVIOUS,
    v1.ReleaseState.RELEASE_STATE_LOADED,
)
_EPILOG = f"""\
examples:
  python -m server.release list
  python -m server.release load bundles/2026-11-26        # a directory on the server; relative to releases.bundles
  python -m server.release promote 0123456789abcdef
  python -m server.release rollback

Where the server needs keys, put one with the role admin into {_VARIABLE}, where others do not see it.
Exit status: 0 done, 1 the server refused or could not be reached, 2 wrong arguments.
"""
Run = Callable[[towerbridge.Client, argparse.Namespace], Message]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what the server answers: a table, or JSON."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        client = towerbridge.Client(
            given.target, tls=_tls(given), insecure=given.insecure, api_key=given.key or None, timeout_s=given.timeout
        )
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot read {error.filename}: {error.strerror}")
    with client:
        try:
            answer = given.run(client, given)
        except towerbridge.TowerbridgeError as error:
            said = f"{error.code.name if error.code else 'ERROR'}: {error.message}"
            print(f"error: {said}{about_tls(error.message, given.ca)}", file=sys.stderr)
            return 1
    if given.json:
        print(json.dumps(MessageToDict(answer, preserving_proto_field_name=True), indent=1))
    else:
        given.show(answer)
    return 0


def _list(client: towerbridge.Client, given: argparse.Namespace) -> v1.ListReleasesResponse:
    return client.list_releases()


def _load(client: towerbridge.Client, given: argparse.Namespace) -> v1.LoadReleaseResponse:
    """Waits for the load, and shows how far it is where somebody looks."""
    ready = {one.release_id for one in client.list_releases().releases if one.state in _READY}
    answer = _wait(client, given)
    if answer.release.release_id in ready:
        print(f"it was held already: of {given.bundle} nothing but the manifest was read or checked", file=sys.stderr)
    return answer


def _wait(client: towerbridge.Client, given: argparse.Namespace) -> v1.LoadReleaseResponse:
    if not sys.stderr.isatty():
        return client.load_release(given.bundle, timeout_s=given.timeout)
    done = threading.Event()
    shower = threading.Thread(target=_show_progress, args=(client, done), daemon=True)
    shower.start()
    try:
        return client.load_release(given.bundle, timeout_s=given.timeout)
    finally:
        done.set()
        shower.join()


def _show_progress(client: towerbridge.Client, done: threading.Event) -> None:
    with tqdm(total=100, bar_format="{desc:12}{percentage:3.0f}%|{bar}| {elapsed}", leave=False) as bar:
        while not done.wait(_LOOK_SECONDS):
            try:
                releases = client.list_releases().releases
            except towerbridge.TowerbridgeError:
                continue  # the load itself says what is wrong
            for release in releases:
                if release.state == v1.ReleaseState.RELEASE_STATE_LOADING:
                    bar.set_description_str(release.stage)
                    bar.n = round(100 * release.progress)
                    bar.refresh()


def _promote(client: towerbridge.Client, given: argparse.Namespace) -> v1.PromoteReleaseResponse:
    return client.promote_release(given.release_id, timeout_s=given.timeout)


def _rollback(client: towerbridge.Client, given: argparse.Namespace) -> v1.RollbackReleaseResponse:
    return client.rollback_release(expected_live_release_id=given.expected, timeout_s=given.timeout)


def _show_list(answer: v1.ListReleasesResponse) -> None:
    rows = [("release", "state", "index", "MB", "bundle")]
    for one in answer.releases:
        state = _state(one.state)
        if one.stage:
            state += f" ({one.stage}, {one.progress:.0%})"
        rows.append((one.release_id or "?", state, one.index_kind, f"{one.memory_bytes / 1e6:,.1f}", one.bundle))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for one in answer.releases:
        if one.error:
            print(f"{one.bundle} was not loaded: {one.error}")


def _show_loaded(answer: v1.LoadReleaseResponse) -> None:
    one = answer.release
    print(f"release {one.release_id} is {_state(one.state)}, from {one.bundle}")


def _show_live(answer: v1.PromoteReleaseResponse | v1.RollbackReleaseResponse) -> None:
    before = f", after {answer.previous_release_id}" if answer.previous_release_id else ", as it was"
    print(f"release {answer.release.release_id} is live{before}")


def _state(state: v1.ReleaseState.ValueType) -> str:
    return v1.ReleaseState.Name(state).removeprefix("RELEASE_STATE_").lower()


def _tls(given: argparse.Namespace) -> bool | grpc.ChannelCredentials:
    if given.ca is None:
        return False
    certificate, key = (None if path is None else path.read_bytes() for path in (given.certificate, given.client_key))
    return grpc.ssl_channel_credentials(given.ca.read_bytes(), key, certificate)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server.release",
        description="Change the live release of a running server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(commands, "list", "the releases that the server holds", _list, _show_list)
    loading = _command(
        commands, "load", "load a bundle beside the live release, and wait until it is ready", _load, _show_loaded
    )
    loading.add_argument("bundle", help="the bundle's directory on the server")
    promoting = _command(commands, "promote", "make a loaded release the live one", _promote, _show_live)
    promoting.add_argument("release_id", help="as load and list print it")
    back = _command(commands, "rollback", "make the release live again that was so before", _rollback, _show_live)
    back.add_argument("--expected", metavar="RELEASE", help="do it only if this is the live release now")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, run: Run, show: Callable[..., None]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run, show=show)
    add = parser.add_argument
    add("--target", default="127.0.0.1:50051", metavar="HOST:PORT", help="the server (127.0.0.1:50051)")
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait; a load goes on without (600)")
    add("--key", default=os.environ.get(_VARIABLE), metavar="KEY", help=f"an API key with the role admin [{_VARIABLE}]")
    add("--ca", type=Path, metavar="FILE", help="use TLS, and trust these roots or this very certificate, PEM")
    add("--certificate", type=Path, metavar="FILE", help="this client's certificate, where the server asks for one, PEM")
    add("--client-key", type=Path, metavar="FILE", help="its private key, PEM")
    add("--insecure", action="store_true", help="without TLS to another machine, on a network that is trusted")
    add("--json", action="store_true", help="print the answer as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
