"""The options of `python -m training evaluate`; free of torch, for --help."""

import argparse
import os
from pathlib import Path

EPILOG = """examples:
  python -m training evaluate --data data/shop --bundle bundles/shop --html evaluation.html --card
  python -m training evaluate --data data/shop --bundle bundles/shop --profiles people.csv --groups age gender
  python -m training evaluate --data data/shop --bundle bundles/shop-cold --cold --json cold.json

docs/evaluation.md defines every figure.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is asked of which bundle, and where the answers go."""
    parser.description = (
        "Full ranking of what the bundle's split held out, beside popularity, transition kNN, item-to-item lookup and mean "
        "pooling, with 95 % intervals."
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="what import wrote")
    add("--bundle", type=Path, required=True, help="what fit wrote, from the same data")
    add(
        "--split", choices=("leave-one-out", "temporal"), help="refused unless the bundle was trained with it; default: its own"
    )
    add("--profiles", type=Path, metavar="FILE", help="CSV or parquet of user_id and attributes: a table for each one's groups")
    add("--groups", nargs="+", action="extend", metavar="ATTRIBUTE", help="only these; without --profiles the data set's own")
    add("--cold", action="store_true", help="also the items that were held out of training (split.cold_items)")
    add("--json", type=output_file, metavar="FILE", help="also write the figures to this file")
    add("--html", type=output_file, metavar="FILE", help="also write a page with plots")
    add("--card", action="store_true", help="also write the test into the bundle's model_card.md")


def output_file(text: str) -> Path:
    """A path that a file can be written to, as far as can be told before the work; folders may be made for it."""
    path = Path(text)
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{path} is a directory; give a file")
        there = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
        writable = there.is_dir() and os.access(path if path.exists() else there, os.W_OK)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from error
    if not writable:
        raise argparse.ArgumentTypeError(f"{path} cannot be written; look at {there}")
    return path
