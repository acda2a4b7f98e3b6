"""What the replay makes of the odd cases: items that nobody knows or can see, texts with a template, catalogues of a few."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from bench.freshness.histories import Histories
from bench.freshness.items import new_items
from bench.freshness.placement import ByContent
from bench.freshness.ranking import NEVER, Questions, gains, popularity_ranks, ranks, score_ranks
from bench.freshness.timeline import in_bundle, read_timeline
from index.bundle import load_text_encoder, read_bundle
from server.journal.items import ItemContent
from server.releases.item_vectors import ItemVectors
from tests.bench.freshness_world import items_table, write_events
from tests.tiny import write_tiny_bundle
from training.data.dataset import read_dataset
from training.data.interactions import Interactions
from training.progress import Progress

QUIET = Progress(quiet=True)
SECOND = 1_000_000


def test_what_nobody_can_find_is_no_hit_however_few_the_items_are():
    scores = torch.tensor([[0.3, 0.2, 0.1], [0.3, 0.2, -torch.inf], [0.3, -torch.inf, -torch.inf], [0.1, 0.1, -torch.inf]])
    found = score_ranks(scores, np.array([2, -1, 2, 1]))
    assert found.tolist() == [2, NEVER, NEVER, 1]
    assert gains(found)[:, 0].tolist() == [1, 0, 0, 1]
    assert np.isfinite(gains(found)).all()


def test_an_unknown_item_is_no_hit_of_popularity_or_of_a_vector_when_all_others_were_seen():
    events = Interactions(
        item=np.array([0, 1, -1]),
        kind=np.array([1, 1, 1]),
        time_us=np.array([1, 2, 3]) * SECOND,
        offsets=np.array([0, 3]),
        event_types={"view": 1},
        items=3,
    )
    histories = Histories(events)
    questions = Questions(histories, np.array([0, 0]), np.array([3, 3]) * SECOND, np.array([-1, 2]))
    assert popularity_ranks(questions, np.array([3.0, 2.0, 1.0])).tolist() == [NEVER, 0]
    vectors = np.eye(3, dtype=np.float32)
    assert ranks(questions, np.array([0, 1]), vectors[:1], np.array([0, 0]), vectors, QUIET).tolist() == [NEVER, 0]


def test_an_event_of_an_item_that_the_data_does_not_list_is_of_no_item_at_all(tmp_path: Path):
    rows = [(f"a{number}", f"item-{number % 4}", "view", number * SECOND) for number in range(16)]  # the cut is at 16 s
    rows += [
        ("a0", "unlisted", "view", 16 * SECOND),
        ("a0", "item-1", "view", 17 * SECOND),
        ("a2", "unlisted", "view", 18 * SECOND),
        ("a1", "item-4", "view", 19 * SECOND),
    ]
    ids = [f"item-{number}" for number in range(5)]
    timeline = read_timeline(read_dataset(write_events(tmp_path / "data", rows, items_table(ids))))
    write_tiny_bundle(tmp_path / "bundle", n_items=5)
    bundle = read_bundle(tmp_path / "bundle")
    assert timeline.first_seen_us[4] == 19 * SECOND, "unlisted is not the last of the list"
    asked = timeline.table["item_id"].take(pa.array(timeline.asked)).to_pylist()
    assert asked == ["item-1", "item-4"]
    unlisted = np.array([name == "unlisted" for name in timeline.table["item_id"].to_pylist()])
    assert (in_bundle(timeline, bundle).item[unlisted] == -1).all()
    new = new_items(timeline, bundle)
    assert (new.events.item[unlisted] == -1).all()
    assert new.rows.tolist() == [4]


def test_a_new_items_text_goes_through_the_template_as_in_the_service(tmp_path: Path):
    write_tiny_bundle(tmp_path / "bundle", text=True)
    bundle = read_bundle(tmp_path / "bundle")
    entry = bundle.manifest.text.model_copy(update={"template": "wool {text} of {brand}"})
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"text": entry}))
    texts, categories = ["red hat", "", "", "leather"], [[], ["red"], ["nothing known"], []]
    rows = [(f"a{number}", f"item-{number % 4}", "view", number * SECOND) for number in range(16)]
    rows += [("a0", "item-1", "view", 17 * SECOND)]
    items = items_table([f"item-{number}" for number in range(4)]).append_column("x", pa.array([0] * 4))
    items = items.set_column(1, "text", pa.array(texts)).set_column(
        2, "categories", pa.array(categories, pa.list_(pa.string()))
    )
    dataset = read_dataset(write_events(tmp_path / "data", rows, items))
    placed = ByContent(bundle, dataset, np.arange(4), np.zeros(4, dtype=np.int64), QUIET)

    service = ItemVectors(bundle)
    contents = [
        ItemContent(f"new-{number}", text, json.dumps(names), "{}")
        for number, (text, names) in enumerate(zip(texts, categories, strict=True))
    ]
    encoder = load_text_encoder(tmp_path / "bundle" / "text_encoder")
    for number, content in enumerate(contents):
        if (text := service.text_to_encode(content)) is not None:
            contents[number] = service.with_embedding(content, encoder.encode([text])[0])
    has, vectors = service.compute(contents)
    found, visible = placed.begin().at(SECOND)
    assert visible.tolist() == has.tolist() == [True, True, False, True]
    assert np.allclose(found[has], vectors[has], atol=1e-6)
    assert placed.placed == 3
