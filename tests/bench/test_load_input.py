"""What `python -m bench.load` refuses: one line that says why, exit code 2, and neither a result nor a report."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from bench.load.__main__ import main
from tests.bench.load_server import answering, same

Refused = Callable[..., str]
NOBODY = "127.0.0.1:1"  # of no use to a test that gets as far as connecting


@pytest.fixture
def refused(
    ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Refused]:
    """Runs with these arguments beside the usual ones, in a folder of its own, and returns the line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        usual = {"--target": NOBODY, "--ids": str(ids), "--json": "r.json", "--html": "r.html", "--rate": "5"}
        given = [word for pair in usual.items() if pair[0] not in arguments for word in pair]
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert main([*given, *arguments]) == 2
        output = capsys.readouterr()
        assert output.err.startswith("error: ") and output.err.count("\n") == 1 and not output.out
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return output.err

    return run


def test_a_target_that_nobody_listens_on(refused: Refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bench.load.server._DEADLINE_S", 0.5)  # how long it is waited for
    with socket.socket() as taken:  # bound and not listening: no other test's server can have this port
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"{target} cannot be reached; is the server running there" in refused("--target", target)


def test_a_server_that_does_not_let_us_in_is_quoted_on_one_line(refused: Refused):
    def answer(request: object, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no key\nat all")

    with answering(answer) as target:  # type: ignore[arg-type]
        assert "refused recommend: UNAUTHENTICATED: no key at all" in refused("--target", target)


def test_a_server_without_the_method_is_another_program(refused: Refused):
    with answering(same("item-1")) as target:
        assert "refused similar: UNIMPLEMENTED" in refused("--target", target, "--mix", mix("similar: 1"))


def test_events_of_people_who_did_not_agree_are_not_sent(target: str, refused: Refused):
    Path("own.json").write_text('{"user_ids": ["stranger"], "item_ids": ["i"], "event_types": ["view"]}', encoding="utf-8")
    said = refused("--target", target, "--ids", "own.json", "--events", "5")
    assert "does not keep events of the people in --ids" in said


def test_metrics_that_are_none(target: str, refused: Refused):
    for url in ("nonsense", f"http://{NOBODY}/metrics", f"http://{target}/metrics", Path("mix.yaml").absolute().as_uri()):
        assert f"the metrics at {url} cannot be read" in refused("--metrics", url)
    mix("recommend: 1")
    assert "give the server's metrics" in refused("--metrics", Path("mix.yaml").absolute().as_uri())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read (No such file or directory); give a folder made by python -m bench.world"),
        ("no json", "it is not JSON"),
        ("[]", "must be an object with user_ids, item_ids and event_types"),
        ('{"user_ids": [], "item_ids": ["i"], "event_types": ["view"]}', "user_ids in own.json must be a list of ids"),
        ('{"user_ids": ["u"], "item_ids": [1], "event_types": ["view"]}', "item_ids in own.json must be a list of ids"),
        ('{"user_ids": ["u"], "item_ids": ["i"]}', "event_types in own.json must be a list of ids"),
    ],
)
def test_ids_that_are_missing_or_damaged(text: str | None, said: str, refused: Refused):
    if text is not None:
        Path("own.json").write_text(text, encoding="utf-8")
    assert said in refused("--ids", "own.json")


def mix(text: str) -> str:
    Path("mix.yaml").write_text(text, encoding="utf-8")
    return "mix.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recomend: 1", "names 'recomend'; there are recommend, similar"),
        ("1: 1", "names 1; there are"),
        ("recommend: -1", "the weight of recommend in mix.yaml must be a number from 0"),
        ("recommend: .nan", "must be a number from 0"),
        ("recommend: yes", "must be a number from 0"),
        ("recommend: many", "must be a number from 0"),
        ("recommend: 0", "all weights in mix.yaml are 0"),
        ("- recommend", "must map methods to weights"),
        ("", "must map methods to weights"),
        ("{recommend: [", "the mix mix.yaml cannot be read"),
    ],
)
def test_a_mix_of_unknown_kinds_or_wrong_weights(text: str, said: str, refused: Refused):
    assert said in refused("--mix", mix(text))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("events.txt", "x", "is none of .parquet, .csv and .jsonl"),
        ("events.csv", "", "cannot be read"),
        ("events.parquet", "x", "cannot be read"),
        ("events.csv", "user_id,item_id\nu,i\n", "lacks occurred_at"),
        ("events.csv", "user_id,item_id,occurred_at\n", "lacks events"),
        ("events.csv", "user_id,item_id,occurred_at\nu,i,soon\n", "neither a time nor seconds"),
        ("events.csv", "user_id,item_id,occurred_at\nu,i,\nu,i,1\n", "has gaps"),
        ("events.csv", "user_id,item_id,occurred_at\nu,,1\n", "without user_id, item_id or type"),
    ],
)
def test_a_replay_that_cannot_be_read(name: str, text: str, said: str, refused: Refused):
    Path(name).write_text(text, encoding="utf-8")
    assert said in refused("--replay", name)


@pytest.mark.parametrize(
    ("releases", "said"),
    [
        ("[]", "must map release ids to files"),
        ('{"r1": 1}', "must map release ids to files"),
        ('{"r1": "none.txt"}', "none.txt cannot be read"),
        ('{"r1": "object.json"}', "must be a list of item ids"),
        ('{"r1": "a.txt", "r2": "a.txt"}', "'item-1' is in the lists of two releases"),
        ("no json", "is not JSON"),
    ],
)
def test_lists_of_releases_that_say_nothing(releases: str, said: str, refused: Refused):
    for name, text in (("releases.json", releases), ("object.json", "{}"), ("a.txt", "item-1\n")):
        Path(name).write_text(text, encoding="utf-8")
    assert said in refused("--check-releases", "releases.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rate", "0"), "there is nothing to send: give --rate, --events, --pairs or --replay"),
        (("--rate", "-1"), "--rate: must be 0 or more"),
        (("--rate", "nan"), "--rate: must be a number"),
        (("--duration", "0"), "--duration: must be more than 0"),
        (("--limit", "1001"), "--limit: must be 1 to 1000"),
        (("--rate", "1e9"), "1e+09 calls a second are more than a host can send: ask for 100,000 at most"),
        (("--rate", "60000", "--overload", "2"), "120000 calls a second are more than"),
        (("--pairs", "60000"), "120005 calls a second are more than"),
        (("--processes", "0"), "--processes: must be a whole number from 1"),
        (("--processes", "1000"), "4 for each core of this machine"),
        (("--connections", "1001"), "--connections: must be 1 to 1000"),
        (("--overload", "1"), "--overload: must be more than 1"),
        (("--target", "nowhere"), "--target: must be HOST:PORT"),
        (("--sweep", "--overload", "2"), "--sweep, --overload and --during are runs of their own"),
        (("--sweep", "--during", "true"), "--sweep, --overload and --during are runs of their own"),
        (("--overload", "2", "--rate", "0", "--events", "5"), "--sweep and --overload change --rate"),
        (("--echo", "--overload", "2"), "--echo goes with plain runs and --sweep"),
        (("--interleave", "2"), "give --echo too"),
        (("--ca", "none.pem"), "none.pem cannot be read: No such file or directory"),
        (("--cert", "c.pem"), "--cert and --client-key go together"),
        (("--json", "none/r.json"), "the folder of none/r.json does not exist"),
        (("--json", "."), ". is a folder; give a file"),
        (("--html", "r.json"), "--json and --html are the same file"),
        (("--nonsense",), "--nonsense; --help lists the options"),
    ],
)
def test_options_that_are_wrong_or_do_not_go_together(arguments: tuple[str, ...], said: str, refused: Refused):
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("html", "said"), [(".", ". is a folder; give a file"), ("r.json", "--json and --html are the same file"), (None, "--html")]
)
def test_a_merge_without_two_files_to_write_to(
    html: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("one.json").write_text(json.dumps({}), encoding="utf-8")
    assert main(["merge", "one.json", "--json", "r.json", *(["--html", html] if html else [])]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not Path("r.json").exists()
