"""The processes that read texts, one for each text encoder in use."""

import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from index.bundle import Bundle
from server.catalogue.text_worker import TextWorker
from server.errors import FailedPrecondition
from server.journal.items import ItemContent
from server.releases.item_vectors import ItemVectors


class TextWorkers:
    """Releases whose bundles hold the same encoder share its worker. Any thread may call."""

    def __init__(self) -> None:
        self._workers: dict[str, TextWorker] = {}  # by the encoder's sha256
        self._lock = threading.Lock()

    def open(self, bundle: Bundle) -> TextWorker | None:
        """The worker for the bundle's encoder, started if there is none; None if the bundle has no encoder."""
        sha256, encoder = bundle.manifest.text.encoder_sha256, bundle.text_encoder
        if sha256 is None or encoder is None:
            return None
        with self._lock:
            if sha256 not in self._workers:
                self._workers[sha256] = TextWorker(Path(encoder))
            return self._workers[sha256]

    def keep(self, bundles: Collection[Bundle]) -> None:
        """Ends the workers that none of these bundles needs."""
        wanted = {bundle.manifest.text.encoder_sha256 for bundle in bundles}
        with self._lock:
            ended = [self._workers.pop(sha256) for sha256 in list(self._workers) if sha256 not in wanted]
        for worker in ended:
            worker.close()

    def close(self) -> None:
        self.keep(())

    def read(self, contents: Sequence[ItemContent], vectors: ItemVectors, deadline: float | None = None) -> list[ItemContent]:
        """The contents, with embeddings of those texts that only the release's encoder can turn into vectors.

        deadline: time.monotonic seconds. Raises DeadlineExceeded, or Unavailable if the worker died.
        """
        read = list(contents)
        texts = [(place, text) for place, one in enumerate(read) if (text := vectors.text_to_encode(one)) is not None]
        if not texts:
            return read
        worker = self._workers.get(vectors.encoder_sha256 or "")
        if worker is None:
            raise FailedPrecondition("the release has no text encoder; send text_embedding or vector")
        embeddings = worker.encode([text for _, text in texts], deadline=deadline)
        for (place, _), embedding in zip(texts, embeddings, strict=True):
            read[place] = vectors.with_embedding(read[place], embedding)
        return read
