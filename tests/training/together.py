"""What test_distributed.py lets torchrun start: small trainings by several processes; each writes what it came to."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tests.training.test_trainer import QUIET, small_config, small_start
from training.errors import ConfigError
from training.fitting.checkpoint import Checkpoint
from training.fitting.distributed import Ranks, join
from training.fitting.trainer import train

KINDS = {"full": ["training.loss=full", "training.accumulate=2"], "sampled": ["training.loss=sampled", "training.negatives=12"]}


def trained(data: Path, kind: str, **more: object) -> dict[str, object]:
    """Without dropout, so that how the work is shared out makes no difference but for rounding."""
    pair, split = small_start(data)
    pair.user.dropout.p = pair.user.blocks[0].dropout.p = 0.0
    config = small_config("training.residual_dropout=0", "training.epochs=3", *KINDS[kind])
    history = train(pair, split.data, split, config, history_length=8, progress=QUIET, **more)  # type: ignore[arg-type]
    with torch.inference_mode():
        vectors = pair.item_vectors()
    return {"losses": [row["loss"] for row in history.curve], "metrics": history.best, "vectors": vectors.tolist()}


def resumed(out: Path, ranks: Ranks) -> dict[str, object]:
    """What each process finds of a checkpoint: of a whole one, of one that the first removes late, of one that it has alone."""

    def found(folder: Path) -> object:
        try:
            state = Checkpoint(folder, {}, minutes=1, ranks=ranks).read()
        except ConfigError as error:
            return str(error)
        return state and state["place"]

    shared, own = out / "run.checkpoint", out / f"{ranks.rank}.checkpoint"
    checkpoint = Checkpoint(shared, {}, minutes=1, ranks=ranks)
    checkpoint.write({"place": {"epoch": 2, "step": 3}})
    told = {"whole": found(shared)}
    if ranks.first:
        shutil.copytree(shared, own)
        time.sleep(0.5)
    checkpoint.remove()
    return told | {"removed": found(shared), "alone": found(own)}


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with join() as ranks:
        found: dict[str, object] = {kind: trained(data, kind, ranks=ranks) for kind in KINDS}
        found["gathered"] = ranks.gather(ranks.rank * 10)
        found["resumed"] = resumed(out, ranks)
        found["agreed"] = ranks.agree(ranks.first)
        found["array"] = ranks.array_from_first(lambda: np.full((2, 3), 7.5 + ranks.rank, np.float32)).tolist()
        (out / f"{ranks.rank}-of-{ranks.world}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
