"""Own model code, as FLock's v1 SDK has it: a model of four methods, served at `POST /call`.

This file stands alone (standard library only): `flockllm task pack` puts it into every image as
`flock_sdk.py`, so that model code written for FLock's own SDK runs as it is:

    from flock_sdk import FlockModel, FlockSDK

    class Mine(FlockModel): ...

    FlockSDK(Mine()).run()

The wire: JSON `{"method": "train" | "evaluate" | "aggregate", "parameters": base64 or null,
"parameters_list": [base64, ...]}`; the answer is `{"parameters": base64}`, for `evaluate`
`{"accuracy": number}`, or status 400 or 500 and `{"error": text}`.
"""

import json
import math
import os
import sys
import traceback
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

PORT = 5000
DATASET = "/dataset.json"
"""Where a sandbox mounts the participant's records: a JSON list of objects."""

MAX_REQUEST = 2**31


class FlockModel(ABC):
    """A model that participants train together. Parameters are bytes that only it understands."""

    @abstractmethod
    def init_dataset(self, dataset_path: str) -> None:
        """Reads the participant's records; called once, before anything else."""

    @abstractmethod
    def train(self, parameters: bytes | None) -> bytes:
        """Trains on from `parameters`, or from the untrained model, and returns the result."""

    @abstractmethod
    def evaluate(self, parameters: bytes | None) -> float:
        """How good `parameters`, or the untrained model, are on the records: more is better."""

    @abstractmethod
    def aggregate(self, parameters_list: list[bytes]) -> bytes:
        """Makes one of many. Must give the same bytes on every machine."""


class BadCall(Exception):
    """A request that does not follow the wire format."""


def answer(model: FlockModel, body: bytes) -> dict[str, Any]:
    """What `POST /call` with `body` answers; the model's own exceptions pass through."""
    try:
        request = json.loads(body)
        method = request["method"]
        one = request.get("parameters")
        parameters = b64decode(one, validate=True) if one else None
        many = [b64decode(item, validate=True) for item in request.get("parameters_list") or ()]
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise BadCall(f"not a call as documented: {type(e).__name__}: {e}") from e

    if method == "evaluate":
        accuracy = float(model.evaluate(parameters))
        if not math.isfinite(accuracy):
            raise ValueError(f"evaluate must return a finite number, got {accuracy}")
        return {"accuracy": accuracy}
    if method == "train":
        result = model.train(parameters)
    elif method == "aggregate":
        result = model.aggregate(many)
    else:
        raise BadCall(f"method must be train, evaluate or aggregate, got {method!r}")
    if not isinstance(result, (bytes, bytearray, memoryview)):
        raise TypeError(f"{method} must return bytes, got {type(result).__name__}")
    return {"parameters": b64encode(result).decode("ascii")}


class FlockSDK:
    """Serves a model at `POST /call`, one call after the other.

    A sandbox reaches the default address from within; `host="0.0.0.0"` is for containers whose
    port is published. `FLOCK_PORT` and `FLOCK_DATASET` in the environment replace the defaults.
    """

    def __init__(
        self,
        model: FlockModel,
        host: str = "127.0.0.1",
        port: int | None = None,
        dataset: str | None = None,
    ) -> None:
        self.model = model
        self.host = host
        self.port = int(os.environ.get("FLOCK_PORT", PORT)) if port is None else port
        self.dataset = dataset or os.environ.get("FLOCK_DATASET", DATASET)

    def server(self) -> HTTPServer:
        """Reads the records and listens; the caller serves."""
        self.model.init_dataset(self.dataset)
        handler = type("Handler", (_Handler,), {"model": self.model})
        return HTTPServer((self.host, self.port), handler)

    def run(self) -> None:
        """Reads the records and serves calls until it is stopped."""
        with self.server() as server:
            server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    model: FlockModel
    timeout = 60
    """Seconds that a caller may be silent within a request."""

    def do_POST(self) -> None:
        if self.path != "/call":
            return self._send(404, {"error": "only POST /call is served"})
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_REQUEST:
            return self._send(400, {"error": f"Content-Length must be at most {MAX_REQUEST}"})
        try:
            return self._send(200, answer(self.model, self.rfile.read(int(length))))
        except BadCall as e:
            return self._send(400, {"error": str(e)})
        except Exception as e:  # the model's own failure: the caller gets it in one line
            traceback.print_exc()
            return self._send(500, {"error": f"{type(e).__name__}: {e}"})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, file=sys.stderr, flush=True)
