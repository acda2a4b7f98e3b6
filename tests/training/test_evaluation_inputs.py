"""What `evaluate` does with data, files and options that are not as they should be."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.bundle import read_bundle
from training.config import SplitConfig
from training.dataset import read_dataset
from training.evaluation.exam import set_exam


def test_events_on_an_item_that_no_catalogue_has_are_left_out_and_not_given_to_another_item(
    planted: Path, fitted: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(planted, data)
    items, bundle = pq.read_table(data / "items.parquet"), read_bundle(fitted)
    first, last = items["item_id"][0].as_py(), items["item_id"][-1].as_py()
    pq.write_table(items.slice(1), data / "items.parquet")
    exam = set_exam(read_dataset(data), bundle, SplitConfig(kind="leave-one-out"))
    events = read_dataset(data).events["item_id"]
    row = {name: bundle.item_ids.index(name) for name in (first, last)}
    for name, expected in ((first, 0), (last, pc.sum(pc.equal(events, last)).as_py())):
        assert int((exam.data.item == row[name]).sum()) <= expected
    lost = np.bincount(exam.data.item, minlength=60)
    assert lost[row[first]] == 0 < lost[row[last]]
