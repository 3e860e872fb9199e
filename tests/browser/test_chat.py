"""The page as people use it, in a real browser."""

import gc
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flockllm.host.api import Api
from flockllm.host.loading import load
from flockllm.host.serve import Settings, Site
from flockllm.host.sources import Hosted, Tuned, from_task
from flockllm.task import Definition, Lora
from flockllm.train.base import tensor_list

pytestmark = [  # Gradio makes event loops to build a page, and leaves them open
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
LORA = Lora(rank=4, targets=("q_proj", "v_proj"))
PHONE = {"width": 390, "height": 844}
QUESTION = "What is the capital of France?"

if not os.environ.get("CI"):
    pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip("the browser test needs chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402


@pytest.fixture(autouse=True)
def _collected():
    """What Gradio leaves open is collected here, where its warnings are known."""
    yield
    gc.collect()


def hosted() -> Hosted:
    """The packaged base model, with a random adapter that changes what it says."""
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(scale=0.3, size=shape).astype(np.float32)
        for name, shape in tensor_list("flockllm-base", LORA).items()
    }
    about = {"Task": "0x1234", "Round": "4 of 4", "Adapter": "bafyexample"}
    return from_task(Definition(name="tuned", lora=LORA), tensors, about=about)


@pytest.fixture(scope="module")
def site():
    """A server with a page, and a password."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = Settings(port=0, keys=["ada:secret"], examples=[("Say a word.", "Any <b>word</b>.")])
    with Site(Api.start(load(hosted())), settings) as site:
        gc.collect()
        yield site
    gc.collect()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(site, browser):
    """The page, ready, in a context of its own."""
    credentials = {"username": "ada", "password": "secret"}
    with browser.new_context(http_credentials=credentials) as context:
        page = opened(context, site.url)
        yield page


def opened(context, url):
    """The page when it can be used; `page.addresses` and `page.complaints` collect."""
    page = context.new_page()
    page.addresses, page.complaints = [], []
    page.on("request", lambda request: page.addresses.append(request.url))
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    page.goto(url)
    expect(page.locator("#send")).to_be_enabled(timeout=60_000)
    page.wait_for_load_state("networkidle")
    return page


def send(page, text, context=""):
    """Types and sends."""
    page.locator("#instruction textarea").fill(text)
    page.locator("#context textarea").fill(context)
    page.locator("#send").click()


def finished(page, count=1):
    """Both answers to the newest question, when they are complete."""
    for side in (0, 1):
        answers = page.locator(f"#chat-{side} .bot-row")
        expect(answers).to_have_count(count, timeout=60_000)
        expect(answers.last).not_to_have_text("…", timeout=60_000)
    expect(page.locator("#stop")).to_be_disabled(timeout=60_000)
    expect(page.locator("#send")).to_be_enabled(timeout=60_000)
    return [page.locator(f"#chat-{side} .bot-row").last.inner_text() for side in (0, 1)]


def setting(page, name, value):
    """Sets one of the numbers in the settings."""
    if not page.locator("#beams").is_visible():
        page.locator("#settings > button").click()
    box = page.locator(f"#{name} input[type=number]")
    box.fill(str(value))
    box.blur()


def test_one_question_gets_two_answers_that_stream_in(page):
    """Both sides grow while they are written, and end as different answers; history stays."""
    setting(page, "beams", 1)
    page.evaluate(
        """() => {
            window.seen = [new Set(), new Set()];
            new MutationObserver(() => [0, 1].forEach(i => {
                const rows = document.querySelectorAll(`#chat-${i} .bot-row`);
                if (rows.length) window.seen[i].add(rows[rows.length - 1].innerText.trim());
            })).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    send(page, QUESTION)
    original, tuned = finished(page)
    lengths = page.evaluate("window.seen.map(texts => texts.size)")

    assert "Paris" in original
    assert tuned != original
    assert min(lengths) > 2, "not streamed"
    send(page, "Who are you?")
    finished(page, count=2)
    expect(page.locator("#chat-0 .bot-row").first).to_contain_text("Paris")

    page.locator("#clear").click()
    expect(page.locator(".bot-row")).to_have_count(0)
    expect(page.locator("#instruction textarea")).to_have_value("")


def test_a_setting_changes_the_answer(page):
    """One token at the most is one token; the original's settings stand there at first."""
    send(page, QUESTION)
    whole = finished(page)[0]
    page.locator("#settings > button").click()
    started = {
        name: page.locator(f"#{name} input[type=number]").input_value()
        for name in ("temperature", "top-p", "top-k", "beams", "max-tokens")
    }
    setting(page, "max-tokens", 1)
    send(page, QUESTION)
    short = finished(page, count=2)[0]

    assert started == {
        "temperature": "0.1",
        "top-p": "0.75",
        "top-k": "40",
        "beams": "4",
        "max-tokens": "128",
    }
    assert 0 < len(short) < len(whole)
    assert whole.startswith(short)


def test_bad_input_is_answered_with_what_is_wrong(page):
    """An empty instruction, and a prompt that is too long: told in words, and nothing is lost."""
    send(page, "  ")
    expect(page.locator(".toast-body")).to_contain_text("Write an instruction first")
    page.locator(".toast-close").first.click()

    send(page, QUESTION)
    finished(page)
    send(page, "again " * 3000)
    expect(page.locator(".toast-body").last).to_contain_text("this model takes", timeout=30_000)
    expect(page.locator("#send")).to_be_enabled()
    expect(page.locator("#chat-0 .bot-row")).to_have_count(1)
    expect(page.get_by_text("Error", exact=True)).to_have_count(0)

    send(page, QUESTION)
    assert "Paris" in finished(page, count=2)[0]


def test_stop_ends_an_answer(page, site):
    """After Stop nothing is computed any more, and what came so far stays."""
    setting(page, "beams", 1)
    setting(page, "temperature", 1)
    setting(page, "top-p", 1)
    setting(page, "top-k", 0)
    setting(page, "max-tokens", 2000)
    send(page, "Write a long story.")
    expect(page.locator("#stop")).to_be_enabled(timeout=30_000)
    page.locator("#stop").click()
    expect(page.locator("#send")).to_be_enabled(timeout=30_000)
    for _ in range(200):
        if not site.service.engine.running:
            break
        page.wait_for_timeout(50)

    assert not site.service.engine.running


def test_examples_and_markup_are_shown_as_they_are(page):
    """An example fills both fields; what looks like HTML is text, on both sides."""
    page.get_by_role("button", name="Say a word.").click()
    expect(page.locator("#context textarea")).to_have_value("Any <b>word</b>.")
    page.locator("#send").click()
    finished(page)

    expect(page.locator("#chat-0 .user-row")).to_contain_text("Any <b>word</b>.")
    assert page.locator("#chat-0 .user-row b").count() == 0


def test_the_page_says_what_is_hosted(page):
    """Task, round and CID, for those who want to know."""
    page.locator("#heading summary").click()
    for fact in ("flockllm-base", "tuned", "0x1234", "4 of 4", "bafyexample"):
        expect(page.locator("#heading")).to_contain_text(fact)


def test_nothing_is_asked_of_other_machines(page, site):
    """No fonts, scripts or counters from elsewhere: every request goes to this server."""
    send(page, QUESTION)
    finished(page)

    assert page.complaints == []
    elsewhere = [a for a in page.addresses if not re.match(rf"{site.url}/|data:|blob:", a)]
    assert elsewhere == []
    blocked = page.evaluate("fetch('http://127.0.0.1:1/').then(() => '', e => e.message)")
    assert "Failed to fetch" in blocked
    assert any("Content Security Policy" in text for text in page.complaints)


def test_without_the_password_there_is_no_page(site, browser):
    """The gate stands in front of the page and of everything that it loads."""
    with browser.new_context() as context:
        assert context.request.get(site.url).status == 401
        assert context.request.get(f"{site.url}/config").status == 401


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, PHONE], ids=["desk", "phone"])
def test_question_and_answers_fit_on_one_screen(site, browser, scheme, size):
    """In both themes, on a desk and on a phone: no sideways scrolling, Send in sight."""
    credentials = {"username": "ada", "password": "secret"}
    with browser.new_context(
        http_credentials=credentials, color_scheme=scheme, viewport=size
    ) as context:
        page = opened(context, site.url)
        send(page, QUESTION)
        finished(page)
        page.evaluate("scrollTo(0, 0)")
        if folder := os.environ.get("FLOCKLLM_SCREENSHOTS"):
            page.screenshot(path=Path(folder, f"chat-{scheme}-{size['width']}.png"))
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        wide = page.evaluate("document.documentElement.scrollWidth")
        bottom = page.locator("#send").bounding_box()

    assert wide <= size["width"]
    assert bottom["y"] + bottom["height"] <= size["height"]
    dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128
    assert dark == (scheme == "dark")


def test_one_model_alone_has_one_side(browser):
    """A base model without adapters is a chat of its own; three models can be chosen from."""
    tuned = hosted().tuned[0]
    several = Hosted(
        base="flockllm-base", tuned=(tuned, Tuned("other", tuned.config, tuned.tensors))
    )
    for what, sides, choices in ((Hosted(base="flockllm-base"), 1, 0), (several, 2, 2)):
        with (
            Site(Api.start(load(what)), Settings(port=0)) as site,
            browser.new_context() as context,
        ):
            page = opened(context, site.url)
            send(page, QUESTION)
            expect(page.locator("#chat-0 .bot-row")).to_contain_text("Paris", timeout=60_000)
            assert page.locator(".chat").count() == sides
            page.locator("#settings > button").click()
            expect(page.locator("[id^=model-]")).to_have_count(choices)
