"""Who answers: the towers that the bundle ships, and the baselines beside them."""

import numpy as np
import torch
from torch import Tensor

from index.bundle import Bundle
from training.data.text import encode_texts
from training.evaluation.baselines import (
    CategoryKnn,
    MeanPooling,
    NeighbourKnn,
    Popularity,
    TextKnn,
    co_occurrences,
    transitions,
)
from training.evaluation.exam import Exam
from training.evaluation.ranking import Questions, Scorer
from training.progress import Progress

OURS = "towerbridge"


class Towers:
    """The served model: the bundle's exported user tower over its item vectors."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.items = torch.from_numpy(bundle.item_vectors)

    def __call__(self, questions: Questions) -> Tensor:
        """(B, N) float32 cosines."""
        batch = questions.history
        real = torch.arange(batch.item.shape[1]) < batch.length[:, None]
        history = self.items[batch.item] * real[..., None]
        seconds = batch.seconds_before_newest if self.bundle.manifest.time_features else torch.zeros(real.shape)
        arrays = (history.numpy(), batch.kind.numpy(), seconds.numpy(), batch.length.numpy())
        return torch.from_numpy(self.bundle.encode_users(*arrays)) @ self.items.T


def scorers(exam: Exam, bundle: Bundle) -> dict[str, Scorer]:
    """The models of the main test, ours first."""
    return {
        OURS: Towers(bundle),
        "popularity": Popularity(exam.popularity()),
        "transition-knn": NeighbourKnn(transitions(exam.data, exam.past)),
        "item-to-item": NeighbourKnn(co_occurrences(exam.data, exam.past)),
        "mean-pooling": MeanPooling(bundle.item_vectors),
    }


def cold_scorers(exam: Exam, bundle: Bundle, progress: Progress) -> dict[str, Scorer]:
    """The models of the test of cold items, ours first; content kNN over what content the bundle's items have."""
    models: dict[str, Scorer] = {
        OURS: Towers(bundle),
        "popularity": Popularity(exam.popularity()),
        "random": Popularity(np.zeros(exam.data.items)),  # one score for all: what chance gives
    }
    if bundle.text_encoder is not None:
        progress.say(f"encode the text of {bundle.items.num_rows:,} items for text-knn")
        template = bundle.manifest.text.template
        texts = [template.replace("{text}", text) if text else "" for text in bundle.items["text"].to_pylist()]
        models["text-knn"] = TextKnn(encode_texts(bundle.text_encoder, texts, batch_size=64, progress=progress))
    if bundle.categories:
        codes = [bundle.category_codes(row) for row in bundle.items["categories"].to_pylist()]
        models["category-knn"] = CategoryKnn(np.array(codes, dtype=np.int64), max(bundle.categories.values()))
    return models
