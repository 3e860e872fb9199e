"""A model of one's own: tells a record's category from its words, by softmax regression.

Words are hashed into a fixed number of columns, so that no vocabulary has to be agreed on. The
parameters are one float32 matrix; its bytes are what participants exchange.
"""

import io
import json
import zlib

import numpy as np
from flock_sdk import FlockModel, FlockSDK

CATEGORIES = (
    "brainstorming", "classification", "closed_qa", "creative_writing",
    "general_qa", "information_extraction", "open_qa", "summarization",
)  # fmt: skip
COLUMNS = 2048
EPOCHS, BATCH, RATE = 3, 32, 0.5
HELD_OUT = 5
"""Every fifth record is evaluated on and never trained on."""


class CategoryModel(FlockModel):
    def init_dataset(self, dataset_path: str) -> None:
        with open(dataset_path, encoding="utf-8") as file:
            records = [r for r in json.load(file) if r.get("category") in CATEGORIES]
        self.x = np.stack([features(r) for r in records])  # (records, COLUMNS)
        self.y = np.array([CATEGORIES.index(r["category"]) for r in records])
        self.held_out = np.arange(len(records)) % HELD_OUT == 0

    def train(self, parameters: bytes | None) -> bytes:
        w = load(parameters)  # (COLUMNS, categories)
        x, y = self.x[~self.held_out], self.y[~self.held_out]
        order = np.random.default_rng(0)
        for _ in range(EPOCHS):
            for rows in np.array_split(order.permutation(len(x)), -(-len(x) // BATCH)):
                p = softmax(x[rows] @ w)
                p[np.arange(len(rows)), y[rows]] -= 1
                w -= RATE / len(rows) * x[rows].T @ p
        return dump(w)

    def evaluate(self, parameters: bytes | None) -> float:
        """Minus the mean loss: votes are on relative changes of it, so more is better."""
        x, y = self.x[self.held_out], self.y[self.held_out]
        p = softmax(x @ load(parameters))
        return float(np.log(p[np.arange(len(y)), y] + 1e-9).mean())

    def aggregate(self, parameters_list: list[bytes]) -> bytes:
        """The mean, summed in one order in float64: the same bytes on every machine."""
        total = np.zeros((COLUMNS, len(CATEGORIES)))
        for parameters in parameters_list:
            total += load(parameters)
        return dump(total / len(parameters_list))


def features(record: dict) -> np.ndarray:
    """Hashed bag of words of length 1, as (COLUMNS,)."""
    words = f"{record['instruction']} {record.get('context', '')}".lower().split()
    row = np.zeros(COLUMNS, np.float32)
    for word in words:
        row[zlib.crc32(word.encode()) % COLUMNS] += 1
    return row / np.sqrt(max(1, (row**2).sum()))


def softmax(z: np.ndarray) -> np.ndarray:
    """Rows of scores to rows of probabilities."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def load(parameters: bytes | None) -> np.ndarray:
    """A stranger's bytes: never unpickled, and of the right shape or refused."""
    shape = (COLUMNS, len(CATEGORIES))
    if parameters is None:
        return np.zeros(shape, np.float32)
    w = np.load(io.BytesIO(parameters), allow_pickle=False)
    if w.shape != shape or w.dtype != np.float32 or not np.isfinite(w).all():
        raise ValueError(f"parameters must be finite float32 of shape {shape}")
    return w


def dump(w: np.ndarray) -> bytes:
    """A matrix as bytes, the same ones everywhere."""
    buffer = io.BytesIO()
    np.save(buffer, w.astype(np.float32))
    return buffer.getvalue()


if __name__ == "__main__":
    FlockSDK(CategoryModel()).run()
