"""How long until the towers are as good on validation as RecTools' SASRec, on the same cores: Amazon Beauty.

In an environment of its own, since RecTools needs older packages:
  python3.11 -m venv rectools && rectools/bin/pip install "rectools[torch]" "pyarrow<20"
  rectools/bin/python docs/decisions/training_speed.py theirs --data data/beauty --minutes 19 \
      --model '{"loss": "sampled_softmax", "n_negatives": 256}' --json theirs.json
and beside it, in turn, not at once:
  python docs/decisions/training_speed.py ours --data data/beauty --epochs 8 --json ours.json

Both train on all but each user's last two items, on two threads, and are asked for the second last among all items that the
user has not seen, after every epoch. Seconds are those of training alone: neither pays for validation.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

THREADS = 2


def ours(data: Path, epochs: int) -> list[dict[str, float]]:
    """One entry an epoch of `python -m training fit` with quick.yaml: cumulated seconds without validation, N@10, R@10."""
    import torch

    from training.config import load_config
    from training.fitting import trainer
    from training.fitting.fit import fit
    from training.progress import Progress

    torch.set_num_threads(THREADS)
    entries: list[dict[str, float]] = []
    asked, spent = trainer.validate, [0.0, time.perf_counter()]

    def timed(*positional: Any, **named: Any) -> Any:
        began = time.perf_counter()
        spent[0] += began - spent[1]
        metrics = asked(*positional, **named)
        entries.append({"seconds": round(spent[0], 1), **metrics})
        print(entries[-1], flush=True)
        spent[1] = time.perf_counter()
        return metrics

    trainer.validate = timed
    config = load_config(Path("quick"), [f"training.epochs={epochs}"])
    fit(data, data.parent / "speed-bundle", config, Progress(quiet=True))
    return entries


def theirs(data: Path, epochs: int, minutes: float, model: dict[str, Any]) -> list[dict[str, float]]:
    """The same of RecTools' SASRec with `model`, its arguments; ends with the epoch in which it has trained for `minutes`."""
    import numpy as np
    import pandas as pd
    import torch
    from pytorch_lightning import Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    events = pd.read_parquet(data / "events.parquet").rename(columns={"occurred_at": Columns.Datetime})
    events[Columns.Weight] = 1.0
    place = events.groupby("user_id", sort=False).cumcount(ascending=False)
    train, held = events[place >= 2], events[place == 1].set_index("user_id")["item_id"]
    dataset = Dataset.construct(train[[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]])
    known = held[held.index.isin(set(train["user_id"]))]

    def quiet() -> Any:
        return Trainer(
            max_epochs=1,
            min_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    sasrec = SASRecModel(**model, get_trainer_func=quiet, recommend_torch_device="cpu")
    entries: list[dict[str, float]] = []
    seconds = 0.0
    for _ in range(epochs):
        began = time.perf_counter()
        sasrec.fit_partial(dataset, min_epochs=1, max_epochs=1)
        seconds += time.perf_counter() - began
        answers = sasrec.recommend(users=known.index.to_numpy(), dataset=dataset, k=10, filter_viewed=True)
        hits = answers[answers["item_id"].to_numpy() == known.loc[answers["user_id"]].to_numpy()]
        gains = 1 / np.log2(hits["rank"].to_numpy() + 1)
        entries.append({"seconds": round(seconds, 1), "R@10": len(hits) / len(held), "N@10": float(gains.sum()) / len(held)})
        print(entries[-1], flush=True)
        if seconds >= minutes * 60:
            break
    return entries


def main() -> None:
    """Runs one side and writes its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("ours", "theirs"))
    parser.add_argument("--data", type=Path, required=True, help="what `python -m training import amazon` wrote")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=60.0, help="of theirs, at most, of training alone")
    parser.add_argument("--model", type=json.loads, default={}, help="JSON: arguments of SASRecModel that differ")
    parser.add_argument("--json", type=Path, required=True)
    parsed = parser.parse_args()
    model = {"n_blocks": 2, "n_heads": 2, "n_factors": 64, "session_max_len": 50, "loss": "softmax", **parsed.model}
    if parsed.side == "ours":
        sys.path.insert(0, str(Path(__file__).parents[2]))
        entries, model = ours(parsed.data, min(parsed.epochs, 16)), {"config": "quick"}
    else:
        entries = theirs(parsed.data, parsed.epochs, parsed.minutes, model)
    cpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    name = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("Model name")), "")
    result = {"side": parsed.side, "model": model, "threads": THREADS, "cpu": name, "cores": os.cpu_count(), "epochs": entries}
    parsed.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
