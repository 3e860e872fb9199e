"""The API as programs meet it: OpenAI's own client, over HTTP."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
import torch

from flockllm.cli.host import _of_task
from flockllm.errors import InvalidConfig, StoreError
from flockllm.host.api import Api
from flockllm.host.loading import load
from flockllm.host.serve import Settings, Site
from flockllm.host.sources import Hosted, from_task
from flockllm.host.vllm import Remote
from flockllm.simulate.localnet import localnet
from flockllm.task import Definition, Lora, TaskFile
from flockllm.train.base import tensor_list
from flockllm.wiring import new_task

KEY = "a-key-of-this-test"
LORA = Lora(rank=4, targets=("q_proj", "v_proj"))
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def hosted() -> Hosted:
    """The packaged base model, with a random adapter that changes what it says."""
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(scale=0.3, size=shape).astype(np.float32)
        for name, shape in tensor_list("flockllm-base", LORA).items()
    }
    return from_task(Definition(name="tuned", lora=LORA), tensors, about={"Round": "4"})


@pytest.fixture(scope="module")
def loaded():
    """In memory once, for all servers here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(hosted())
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def endless(loaded):
    """The same, but its answers end only where they must."""
    return replace(loaded, ends=frozenset())


@pytest.fixture(scope="module")
def site(loaded):
    """A server with a key, without a page."""
    with Site(Api.start(loaded), Settings(port=0, page=False, keys=[KEY, "ada:secret"])) as site:
        yield site


@pytest.fixture
def client(site):
    """OpenAI's client, with the right key."""
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def ask(client, model="flockllm-base", **options):
    """One question, greedily answered."""
    options = {"messages": QUESTION, "temperature": 0, "max_tokens": 30} | options
    return client.chat.completions.create(model=model, **options)


def test_models_are_the_base_and_each_adapter(client):
    """`/v1/models` lists what can be asked; one can be looked at alone."""
    models = list(client.models.list())

    assert [model.id for model in models] == ["flockllm-base", "tuned"]
    assert client.models.retrieve("tuned").about == {"Round": "4"}
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_base_and_adapter_answer_from_one_copy_of_the_weights(client):
    """Each model has its own answer, and asking one does not change the other."""
    first = ask(client)
    tuned = ask(client, "tuned")
    again = ask(client)

    assert "Paris" in first.choices[0].message.content
    assert first.choices[0].finish_reason == "stop"
    assert tuned.choices[0].message.content != first.choices[0].message.content
    assert again.choices == first.choices
    assert again.usage.completion_tokens > 4
    assert again.usage.total_tokens == again.usage.prompt_tokens + again.usage.completion_tokens


@pytest.mark.parametrize("beams", [1, 4])
def test_a_stream_is_the_answer_in_pieces(client, beams):
    """The pieces of a stream are the whole answer; the last says why it ends, and what it took."""
    extra = {"beams": beams}
    whole = ask(client, extra_body=extra)
    chunks = list(
        ask(client, stream=True, stream_options={"include_usage": True}, extra_body=extra)
    )

    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage


def test_a_stop_sequence_ends_the_answer_before_it(client):
    """Whole or streamed, nothing of the stop sequence is shown."""
    answer = ask(client).choices[0].message.content
    stop = answer[5:9]
    whole = ask(client, stop=["never said", stop])
    chunks = list(ask(client, stop=stop, stream=True))

    assert whole.choices[0].message.content == answer[: answer.index(stop)]
    assert whole.choices[0].finish_reason == "stop"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content


def test_max_tokens_and_seed(client):
    """An answer that is cut says so; a seed repeats itself, and its choices differ."""
    assert ask(client, max_tokens=2).choices[0].finish_reason == "length"
    drawn = {"temperature": 2.0, "n": 3, "max_tokens": 12, "seed": 5}
    first, again = ask(client, **drawn), ask(client, **drawn)

    assert first.choices == again.choices
    assert len({choice.message.content for choice in first.choices}) == 3


def test_completions_take_text_and_tokens(client):
    """The older API: a prompt as it is, one or several, and numbers of tokens."""
    prompt = "### Instruction:\nWhat is the capital of France?\n\n### Response:\n"
    options = {"model": "flockllm-base", "temperature": 0, "max_tokens": 20}
    one = client.completions.create(prompt=prompt, **options)
    two = client.completions.create(prompt=[prompt, prompt + "The"], **options)
    tokens = client.completions.create(prompt=[5, 6, 7], **options)
    chunks = client.completions.create(prompt=prompt, stream=True, **options)

    assert "Paris" in one.choices[0].text
    assert two.choices[0].text == one.choices[0].text
    assert tokens.usage.prompt_tokens == 3
    assert "".join(chunk.choices[0].text for chunk in chunks) == one.choices[0].text


def test_a_context_is_what_the_question_is_about(client):
    """Our own field `context` fills the template's input; it counts as prompt."""
    plain = ask(client)
    about = ask(client, extra_body={"context": "France is a country. Its capital is Rome."})

    assert about.usage.prompt_tokens > plain.usage.prompt_tokens + 5


@pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1]])
def test_a_bad_key_is_refused(site, key):
    """Without the right key nothing is served, and the error is OpenAI's."""
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as e:
            client.models.list()
        assert e.value.code == "invalid_api_key"
    httpx.get(f"{site.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})  # forgiven


def test_people_come_in_with_name_and_password(site):
    """A browser is asked for them; a program gets OpenAI's error."""
    page = httpx.get(site.url)
    assert page.status_code == 401
    assert page.headers["www-authenticate"].startswith("Basic")
    assert httpx.get(f"{site.url}/v1/models", auth=("ada", "secret")).status_code == 200
    assert httpx.get(f"{site.url}/v1/models", auth=("ada", "wrong")).status_code == 401
    assert httpx.get(f"{site.url}/v1/models", auth=("ada", "secret")).status_code == 200
    assert httpx.get(f"{site.url}/health").json() == {"status": "ok"}


def test_guessing_keys_has_to_wait(loaded):
    """After a few wrong keys an address waits, even with the right one."""
    with Site(Api.start(loaded), Settings(port=0, page=False, keys=[KEY])) as site:
        codes = []
        for _ in range(6):
            answer = httpx.get(f"{site.url}/v1/models", headers={"Authorization": "Bearer no"})
            codes.append(answer.status_code)
        right = httpx.get(f"{site.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})

    assert codes == [401] * 5 + [429]
    assert right.status_code == 429
    assert int(right.headers["retry-after"]) >= 1


def test_too_long_a_prompt_is_refused_with_its_length(client):
    """OpenAI's code for it, and both numbers."""
    with pytest.raises(openai.BadRequestError, match="takes 1024") as e:
        ask(client, messages=[{"role": "user", "content": "again " * 2000}])
    assert e.value.code == "context_length_exceeded"


def test_a_model_that_is_not_here_is_named(client):
    """404, with the names that are."""
    with pytest.raises(openai.NotFoundError, match="hosted are flockllm-base, tuned") as e:
        ask(client, model="gpt-4")
    assert e.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 1.5),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("n", 100),
        ("stop", [""]),
        ("stop", 7),
        ("seed", 2**70),
        ("beams", 1000),
        ("top_k", -1),
        ("stream", "yes"),
        ("stream_options", 3),
        ("context", 3),
        ("tools", [{}]),
        ("logprobs", True),
        ("presence_penalty", 1),
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"role": "robot", "content": "hi"}]),
        ("messages", [{"role": "user", "content": 7}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("messages", [{"role": "assistant", "content": "hi"}]),
        ("model", 7),
    ],
)
def test_a_wrong_field_is_named(site, field, value):
    """400 with the field's name: nothing that would change the answer is silently ignored."""
    body = {"model": "flockllm-base", "messages": QUESTION, field: value}
    answer = post(site, body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(field)


@pytest.mark.parametrize(
    "prompt", [None, [], [[]], [""] * 50, [10**6], [-1], [True], ["a"] * 50, {}]
)
def test_a_wrong_prompt_is_refused(site, prompt):
    """No token that does not exist reaches the model, nor a prompt that is none."""
    answer = post(site, {"model": "tuned", "prompt": prompt}, path="completions")
    assert answer.status_code == 400


def test_what_is_not_json_is_refused(site):
    """Broken JSON, deep JSON, a form as any web page could send it, a path that is not there."""
    url = f"{site.url}/v1/chat/completions"
    key = {"Authorization": f"Bearer {KEY}"}
    typed = key | {"Content-Type": "application/json"}

    assert httpx.post(url, content=b"{", headers=typed).status_code == 400
    assert httpx.post(url, content=b"[" * 100_000, headers=typed).status_code == 400
    assert httpx.post(url, content=b"[]", headers=typed).status_code == 400
    assert httpx.post(url, data={"model": "tuned"}, headers=key).status_code == 415
    assert httpx.post(f"{site.url}/v1/embeddings", json={}, headers=key).status_code == 404


def test_too_large_a_request_is_refused(site):
    """By its declared length, and by what arrives where none is declared."""
    large = b" " * (1 << 21)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    def pieces():
        for at in range(0, len(large), 1 << 16):
            yield large[at : at + (1 << 16)]

    url = f"{site.url}/v1/chat/completions"
    for content in (large, pieces()):
        with suppress(httpx.TransportError):  # cut off while sending
            assert httpx.post(url, content=content, headers=headers).status_code == 413
    assert httpx.get(f"{site.url}/health").status_code == 200


def test_a_page_elsewhere_cannot_reach_a_server_without_key(loaded):
    """A name that its owner points at 127.0.0.1 (DNS rebinding) is not ours."""
    with Site(Api.start(loaded), Settings(port=0, page=False)) as site:
        there = httpx.get(f"{site.url}/v1/models", headers={"Host": "evil.example"})
        here = httpx.get(f"{site.url}/v1/models")

    assert there.status_code == 400
    assert here.status_code == 200


def test_a_busy_server_says_when_to_come_back(endless):
    """429 with Retry-After, and OpenAI's client knows what it means."""
    with (
        Site(Api.start(endless, max_rows=1, max_waiting=1), Settings(port=0, page=False)) as site,
        openai.OpenAI(base_url=f"{site.url}/v1", api_key="-", max_retries=0) as client,
    ):
        long = {"stream": True, "max_tokens": 900, "temperature": 2.0, "seed": 1}
        running = ask(client, **long)
        next(iter(running))
        waiting = ask(client, **long)
        with pytest.raises(openai.RateLimitError) as e:
            ask(client)
        assert int(e.value.response.headers["retry-after"]) >= 1
        running.close()
        waiting.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(endless, stream):
    """Whether it streams or waits, nothing is computed for somebody who is gone."""
    body = {"model": "tuned", "messages": QUESTION, "max_tokens": 900, "temperature": 2.0}

    async def leave(url):
        async with httpx.AsyncClient() as client:
            request = client.build_request("POST", url, json=body | {"stream": stream, "seed": 1})
            task = asyncio.create_task(client.send(request, stream=True))
            while not (running := site.service.engine.running):
                await asyncio.sleep(0.01)
            task.cancel()
            [response] = await asyncio.gather(task, return_exceptions=True)
            if isinstance(response, httpx.Response):
                await response.aclose()
        await asyncio.sleep(0.1)  # the loop closes the connection
        return running[0]

    with Site(Api.start(endless), Settings(port=0, page=False)) as site:
        answer = asyncio.run(leave(f"{site.url}/v1/chat/completions"))
        wait_for(lambda: not site.service.engine.running)
        assert answer.told < 900


def test_a_server_elsewhere_is_served_as_ours(loaded, site):
    """As with vLLM: requests and streams pass through our gate to another server and back."""
    models = list(loaded.models.values())
    remote = Remote(site.url, KEY, models)
    with (
        Site(remote, Settings(port=0, page=False, keys=["other"])) as front,
        openai.OpenAI(base_url=f"{front.url}/v1", api_key="other", max_retries=0) as client,
    ):
        answer = ask(client, "tuned").choices[0].message.content
        chunks = list(ask(client, "tuned", stream=True))
        with pytest.raises(openai.NotFoundError):
            ask(client, "gpt-4")
        assert httpx.get(f"{front.url}/v1/models").status_code == 401

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer


def test_eight_at_once_get_the_answers_of_one(site):
    """Concurrent requests share steps; each gets what it would get alone."""

    async def several():
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=KEY) as client:
            one = await ask(client)
            many = await asyncio.gather(*(ask(client) for _ in range(8)))
            return one.choices, [answer.choices for answer in many]

    one, many = asyncio.run(several())
    assert many == [one] * 8


def test_a_task_is_hosted_as_the_chain_says(tmp_path):
    """Definition, base and adapter come from chain and store; an altered adapter is refused."""
    terms = "[terms]\nrounds = 2\npool = 10\nbond = 1\n"
    (tmp_path / "task.toml").write_text(
        f'name = "mine"\n[lora]\nrank = 4\ntargets = ["q_proj"]\n{terms}'
    )
    with localnet(tmp_path / "net", ["creator"]) as net:
        file = TaskFile.read(tmp_path / "task.toml")
        address, _ = new_task(net.connection, net.network, net.key("creator"), file)
        found, base = _of_task(address, "latest", str(net.network_file), "", "cpu", {})
        hosted = load(found, base=base)
        with pytest.raises(InvalidConfig, match="round 1 is not closed"):
            _of_task(address, "1", str(net.network_file), "", "cpu", {})
        for path in (tmp_path / "net" / "store").rglob("*"):
            if path.is_file() and path.stat().st_size > 10_000:
                path.chmod(0o600)
                path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(StoreError):
            _of_task(address, "latest", str(net.network_file), "", "cpu", {})

    assert list(hosted.models) == ["flockllm-base", "mine"]
    about = hosted.models["mine"].about
    assert about["Task"] == address
    assert about["Round"] == "0 of 2"


def test_ctrl_c_stops_at_once_while_streaming(tmp_path):
    """The process is gone soon after Ctrl-C, and an open stream ends with an error."""
    command = [sys.executable, "-m", "flockllm.cli", "host", "--base-model", "flockllm-base"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--no-page"], stderr=subprocess.PIPE, text=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: alive(url), 120)
        body = {"model": "flockllm-base", "messages": QUESTION, "stream": True}
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json=body | {"max_tokens": 1000, "temperature": 2, "seed": 1, "n": 16},
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(2)
            process.wait(10)
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    finally:
        process.kill()
        process.stderr.close()

    assert rest[-1]["error"]["code"] == "shutting_down"
    assert process.returncode == 130


def post(site, body, path="chat/completions"):
    """A request with the right key."""
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{site.url}/v1/{path}", json=body, headers=headers)


def alive(url):
    """Whether a server answers there."""
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition, seconds=20):
    """Until it holds; fails if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
