"""Blocks in a bucket, each an object named by its CID, of S3 or anything that speaks it.

A block is written in one piece, S3 checks its digest on arrival, and the root comes last: who finds
the root finds everything. A bucket that the web may read under `…/ipfs/` is a gateway as well.
"""

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from flockllm.cid import cid_text, codec_of, digest_of
from flockllm.dag import DAG_PB, RAW, UNIXFS, Bytes
from flockllm.errors import InvalidConfig, NotFound, StoreError
from flockllm.store.wire import Patience


class S3:
    """A bucket, and the prefix of our keys in it; keys and region as boto3 finds them."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/".lstrip("/")
        self.name = f"s3://{bucket}/{self._prefix}"

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as e:
            raise InvalidConfig("S3 needs boto3: pip install 'flockllm[s3]'") from e
        retries = {"mode": "standard", "total_max_attempts": 3}
        try:
            return boto3.client(
                "s3", config=Config(connect_timeout=5, read_timeout=15, retries=retries)
            )
        except (BotoCoreError, ValueError) as e:
            raise InvalidConfig(f"{self.name}: {e}") from e

    def block(self, codec: int, digest: bytes, limit: int, patience: Patience) -> bytes:
        """One block; no more than `limit` bytes are read. The time limits are boto3's."""
        with self._explained():
            answer = self._client.get_object(**self._key(codec, digest))
            with answer["Body"] as body:
                block: bytes = body.read(limit + 1)
        if len(block) > limit:
            raise StoreError("the answer is longer than the content can be")
        return block

    def car(
        self, codec: int, digest: bytes, limit: int, patience: Patience
    ) -> Iterator[bytes] | None:
        """Not on offer."""
        return None

    def put(self, data: Bytes) -> bytes:
        """Uploads what is not there yet."""
        digest = digest_of(data)
        for codec, block_digest, block in UNIXFS.blocks(data):
            if not self._has(codec, block_digest):
                with self._explained():
                    self._client.put_object(
                        **self._key(codec, block_digest),
                        Body=bytes(block),
                        ChecksumSHA256=b64encode(block_digest).decode(),
                        ContentType="application/vnd.ipld.raw",
                    )
        return digest

    def has(self, digest: bytes, size: int | None = None) -> bool:
        """Whether the root, which is uploaded last, is there."""
        codecs = (RAW, DAG_PB) if size is None else (codec_of(size),)
        return any(self._has(codec, digest) for codec in codecs)

    def pin(self, digest: bytes, size: int | None = None) -> None:
        """Nothing to do: a bucket keeps what it has, unless its owner's lifecycle rules differ."""

    def unpin(self, digest: bytes, size: int | None = None) -> None:
        """Nothing to do: blocks may be parts of other content, so none is deleted."""

    def _has(self, codec: int, digest: bytes) -> bool:
        try:
            with self._explained():
                self._client.head_object(**self._key(codec, digest))
        except NotFound:
            return False
        return True

    def _key(self, codec: int, digest: bytes) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + cid_text(codec, digest)}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says in our words what S3 refused."""
        self._client  # noqa: B018  its InvalidConfig comes before botocore is there
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as e:
            code = e.response.get("Error", {}).get("Code", "")
            kind = NotFound if code in ("NoSuchKey", "404") else StoreError
            raise kind(f"{self.name}: {e}") from e
        except BotoCoreError as e:
            raise StoreError(f"{self.name}: {e}") from e
