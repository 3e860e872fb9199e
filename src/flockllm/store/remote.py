"""A store elsewhere, with a local one before it."""

import logging
from collections.abc import Iterable, Sequence

from flockllm.dag import Bytes
from flockllm.errors import StoreError
from flockllm.store.base import Home, Progress
from flockllm.store.fetch import PATIENCE, Source, fetch
from flockllm.store.local import LocalStore, check_size

log = logging.getLogger(__name__)


class RemoteStore:
    """Puts here and at `home`; gets from here or, checked block by block, from the sources.

    `local` is home where there is no other, and the cache of what was fetched in any case.
    """

    def __init__(
        self,
        local: LocalStore,
        sources: Sequence[Source],
        home: Home | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.local = local
        self._sources = sources
        self._home: Home = home or local
        self._patience = patience

    def put(self, data: Bytes) -> bytes:
        """Keeps `data` in both places."""
        self.local.put(data)
        return self._home.put(data)

    def get(
        self,
        digest: bytes,
        size: int | None,
        limit: int,
        *,
        seconds: float = 300,
        progress: Progress | None = None,
    ) -> bytes:
        """Reads what is here and intact, or fetches it."""
        check_size(size, limit)
        try:
            return self.local.get(digest, size, limit)
        except StoreError as e:
            log.debug("fetching: %s", e)
        size = fetch(
            self.local,
            self._sources,
            digest,
            size,
            limit,
            seconds=seconds,
            patience=self._patience,
            progress=progress,
        )
        return self.local.get(digest, size, limit)

    def has(self, digest: bytes, size: int | None = None) -> bool:
        """Whether it is at home, where others find it."""
        return self._home.has(digest, size)

    def pin(self, digest: bytes, size: int | None = None) -> None:
        """Keeps the content in both places."""
        self.local.pin(digest, size)
        self._home.pin(digest, size)

    def unpin(self, digest: bytes, size: int | None = None) -> None:
        """Leaves the content to the garbage collection of each place."""
        self.local.unpin(digest, size)
        self._home.unpin(digest, size)

    def collect(self, keep: Iterable[bytes], younger: float = 3600) -> list[str]:
        """Cleans up the cache; home has a garbage collection, or an owner, of its own."""
        return self.local.collect(keep, younger)
