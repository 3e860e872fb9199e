"""The wire of own model code: what FLock's v1 client sends is understood, and nothing else."""

import importlib.util
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from pathlib import Path

import pytest

from flockllm import sdk
from flockllm.sdk import FlockModel, FlockSDK


class Counter(FlockModel):
    """Parameters are a decimal number; training adds the number of records."""

    def init_dataset(self, dataset_path):
        self.records = json.loads(Path(dataset_path).read_text())

    def train(self, parameters):
        return b"%d" % (int(parameters or 0) + len(self.records))

    def evaluate(self, parameters):
        return float(parameters or 0)

    def aggregate(self, parameters_list):
        return b"%d" % sum(map(int, parameters_list))


@pytest.fixture
def call(tmp_path):
    """Posts bytes or an object to a served `Counter` of three records; gives status and JSON."""
    (tmp_path / "d.json").write_text("[{}, {}, {}]")
    server = FlockSDK(Counter(), port=0, dataset=str(tmp_path / "d.json")).server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def call(body, path="/call"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        try:
            with urllib.request.urlopen(url, data) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as e:
            with e:
                return e.code, json.load(e)

    yield call
    server.shutdown()
    thread.join()
    server.server_close()


def text(data):
    """Bytes as the wire has them."""
    return b64encode(data).decode()


def test_the_three_methods_are_served(call):
    """What the documented contract says goes in and comes out."""
    status, reply = call({"method": "train", "parameters": text(b"4")})
    assert (status, b64decode(reply["parameters"])) == (200, b"7")
    assert call({"method": "evaluate", "parameters": text(b"4")}) == (200, {"accuracy": 4.0})
    _, reply = call({"method": "aggregate", "parameters_list": [text(b"1"), text(b"2")]})
    assert b64decode(reply["parameters"]) == b"3"


@pytest.mark.parametrize("absent", [{}, {"parameters": None}, {"parameters": ""}])
def test_absent_parameters_mean_the_untrained_model(call, absent):
    """FLock's client leaves them out or sends null in the first round."""
    _, reply = call({"method": "train", **absent})

    assert b64decode(reply["parameters"]) == b"3"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        {"parameters": ""},
        {"method": "init_dataset"},
        {"method": ["train"]},
        {"method": "train", "parameters": "no base64!"},
        {"method": "train", "parameters": 7},
        {"method": "aggregate", "parameters_list": 7},
    ],
)
def test_a_broken_call_is_answered_and_survived(call, body):
    """Nobody stops a server with a bad request, nor calls what is no method of the contract."""
    status, reply = call(body)

    assert status == 400
    assert reply["error"]
    assert call({"method": "evaluate"}) == (200, {"accuracy": 0.0})


@pytest.mark.parametrize("parameters", [b"x", b"nan", b"inf"])
def test_a_models_failure_reaches_the_caller_in_a_line(call, parameters, capsys):
    """Also a score that is no number: JSON could not carry it."""
    status, reply = call({"method": "evaluate", "parameters": text(parameters)})

    assert status == 500
    assert reply["error"].startswith("ValueError: ")


def test_other_paths_are_not_served(call):
    """`/call` only."""
    assert call({"method": "evaluate"}, "/")[0] == 404


def test_it_stands_alone_under_the_originals_name(tmp_path):
    """Copied as `flock_sdk.py` next to a model it needs no package of ours."""
    source = Path(sdk.__file__).read_text()
    (tmp_path / "flock_sdk.py").write_text(source)
    code = "import flock_sdk, sys; assert 'flockllm' not in sys.modules; print(flock_sdk.PORT)"
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert run.stdout == "5000\n"


def test_the_example_learns(tmp_path, monkeypatch):
    """Each round of training lowers the example's loss, and its mean of equals is what went in."""
    folder = Path(__file__).parents[2] / "examples" / "own_model"
    monkeypatch.setitem(sys.modules, "flock_sdk", sdk)
    spec = importlib.util.spec_from_file_location("own_model_example", folder / "main.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    rows = [
        {"instruction": f"{word} number {i}", "category": category}
        for i in range(40)
        for word, category in (("Sum up", "summarization"), ("Invent", "creative_writing"))
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    model = example.CategoryModel()
    model.init_dataset(str(tmp_path / "d.json"))

    trained = model.train(None)
    twice = model.train(trained)
    assert model.evaluate(None) < model.evaluate(trained) < model.evaluate(twice)
    assert model.aggregate([trained, trained]) == trained
    with pytest.raises(ValueError, match="shape"):
        model.evaluate(example.dump(example.np.zeros((2, 2))))
