"""What a store is: what you get is what was put, whoever you got it from."""

from collections.abc import Callable, Iterable
from typing import Protocol

from flockllm.dag import Bytes

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes that there will be."""


class Home(Protocol):
    """Where content is put for others to find."""

    def put(self, data: Bytes) -> bytes:
        """Keeps `data` and returns its digest; putting twice is putting once."""

    def has(self, digest: bytes, size: int | None = None) -> bool:
        """Whether the content is where `put` puts it; its bytes are not looked at."""

    def pin(self, digest: bytes, size: int | None = None) -> None:
        """Keeps the content through every garbage collection."""

    def unpin(self, digest: bytes, size: int | None = None) -> None:
        """Leaves the content to the next garbage collection; not pinned is fine."""


class Store(Home, Protocol):
    """Content by digest. Every method raises `StoreError` where the place behind it fails."""

    def get(
        self,
        digest: bytes,
        size: int | None,
        limit: int,
        *,
        seconds: float = 300,
        progress: Progress | None = None,
    ) -> bytes:
        """Returns the content of `digest`, having checked that it is.

        Args:
            digest: as the chain has it.
            size: as the chain has it; None where the content's own root may say.
            limit: bytes that are neither exceeded nor buffered, whatever anyone declares.
            seconds: after which it gives up, whatever a peer does.
            progress: told about downloads.

        Raises:
            NotFound: nobody who was asked has it.
            StoreError: it is larger than `limit`, it was altered, or nobody answered in time.
        """

    def collect(self, keep: Iterable[bytes], younger: float = 3600) -> list[str]:
        """Removes from this machine what is neither pinned nor in `keep`; returns the CIDs.

        Args:
            keep: digests that the chain, or anybody else, still names.
            younger: content put or fetched within so many seconds stays: it may be named soon.
        """
