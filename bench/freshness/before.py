"""The model of the replay: trained on the events before the cut, all of them, and then left as it is."""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.freshness.timeline import Timeline
from index.bundle import Bundle
from training.config import Config
from training.data.dataset import dataset_sha256, publish_dataset
from training.fitting.fit import fit
from training.progress import Progress


def train_before(timeline: Timeline, out: Path, config: Config, progress: Progress) -> None:
    """Writes a bundle at `out` that knows nothing of what came after the cut, the items that came up then included."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_before(timeline, data)
        fit(data, out, config, progress)


def was_trained_before(timeline: Timeline, bundle: Bundle) -> bool:
    """Whether the bundle says that it was trained on these very events before the cut."""
    trained_on: Any = bundle.manifest.training.get("dataset")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_before(timeline, data)
        return isinstance(trained_on, dict) and trained_on.get("events_sha256") == dataset_sha256(data)


def write_before(timeline: Timeline, out: Path) -> None:
    """A canonical data set of the events before the cut and of their items."""
    drafts = out / "drafts"
    drafts.mkdir(parents=True)
    events = timeline.table.filter(pa.array(timeline.events.time_us < timeline.cut_us))
    items = timeline.dataset.items.filter(pa.array(timeline.known))
    pq.write_table(events, drafts / "events.parquet")
    pq.write_table(items, drafts / "items.parquet")
    (drafts / "rejects.jsonl").touch()
    publish_dataset(out, drafts, _describe(timeline, events, items))
    drafts.rmdir()


def _describe(timeline: Timeline, events: pa.Table, items: pa.Table) -> dict[str, Any]:
    """dataset.json of this part: nothing of what the whole says of itself, such as up to when it goes, holds here too."""
    info = timeline.dataset.info
    span = pc.min_max(events["occurred_at"]).as_py()
    return {
        "kind": info.get("kind"),
        "source": f"{info.get('source')}, before the cut",
        "times": info["times"],
        "counts": {"events": events.num_rows, "users": len(events["user_id"].unique()), "items": items.num_rows},
        "first_event": span["min"].isoformat(),
        "last_event": span["max"].isoformat(),
        "rejected": {},
    }
