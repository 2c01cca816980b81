"""The page in a browser, with real daemons."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from playwright.sync_api import Browser, Locator, Response

from ffstream.client import Control, Predictor
from ffstream.data import load
from tests.harness import browser as chromium
from tests.harness import interruptions
from tests.harness.browser import SECTIONS, Scheme, Tab
from tests.harness.commands import run_json
from tests.harness.daemon import DaemonProcess, Daemons
from tests.harness.daemon_directory import free_port
from tests.in_process import WAIT_S, Start, feed
from tests.support import wait_until

if chromium.find_chromium() is None:
    pytest.skip("chromium is not installed; tools/setup --system installs it", allow_module_level=True)

DIGITS = load("embedded")
LEARNED = 3000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser() as started:
        yield started


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon that has learned some digits, and may be taught."""
    with Daemons(tmp_path_factory.mktemp("page")) as daemons:
        started = daemons.start("network.preset=fast", "http.teach=true")
        replay(started, LEARNED)
        yield started


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens tabs. At the end of the test none of them may have complained, except for what the test has removed."""
    opened: list[Tab] = []

    def open_tab(url: str, **options: Any) -> Tab:
        opened.append(Tab(browser, url, **options))
        return opened[-1]

    yield open_tab
    for tab in opened:
        tab.__exit__()
    assert [tab.complaints for tab in opened if tab.complaints] == []


def serious(tab: Tab) -> list[dict[str, Any]]:
    """What keeps people with disabilities from using the page as it is now."""
    violations: list[dict[str, Any]] = Axe().run(tab.page).response["violations"]
    return [each for each in violations if each["impact"] in ("serious", "critical")]


def replay(daemon: DaemonProcess, samples: int, *options: str) -> None:
    run_json("replay", "embedded", "--limit", str(samples), "--to", daemon.learn, *options)
    daemon.status(idle=True)


def evaluated(daemon: DaemonProcess) -> int:
    """Samples in the prequential window."""
    return int(daemon.status()["window"]["samples"])


def curve(name: str) -> str:
    """JavaScript: the points of a curve of the large chart."""
    return f"document.querySelector('#curve .plot').data?.find(each => each.name === '{name}')"


def test_numbers_and_curves_move_during_a_replay(daemon: DaemonProcess, visit: Callable[..., Tab]) -> None:
    tab = visit(daemon.http)
    tab.wait_for_state("ready")
    accepted = daemon.status()["accepted"]
    tab.wait_for(f"document.querySelector('.tile .value').textContent === '{accepted:,}'")
    tab.wait_for_charts("learning")
    tab.wait_for(f"{curve('error in the window')}?.y.at(-1) > 0")
    points, error = tab.evaluate(f"(curve => [curve.x.at(-1), curve.y.at(-1)])({curve('error in the window')})")
    replay(daemon, 1000, "--seed", "1")
    tab.wait_for(f"{curve('error in the window')}.x.at(-1) > {points} + 2000")  # milliseconds
    tab.wait_for(f"{curve('error in the window')}.y.at(-1) !== {error}")
    tab.wait_for(f"{curve('learned')}.y.some(rate => rate > 0)")
    tab.wait_for(f"document.querySelector('.tile .value').textContent === '{accepted + 1000:,}'")
    tab.wait_until(
        lambda: f"last {evaluated(daemon):,} predicted samples" in tab.text("#errors"),
        "the size of the window is shown",
    )


def test_every_section_shows_what_the_daemon_has_learned(daemon: DaemonProcess, visit: Callable[..., Tab]) -> None:
    tab = visit(daemon.http)
    tab.wait_for_charts("layers")
    assert "Node" not in tab.text("#layer-cards"), "stages are threads of the daemon"
    tab.wait_for("document.querySelectorAll('#layer-cards .main-svg').length >= 2")
    assert tab.page.locator(".layer").count() == len(daemon.status()["layers"])
    tab.look_at("mistakes")
    tab.page.locator("#gallery img").first.wait_for()
    assert re.fullmatch(r"\d read as \d", tab.page.locator("#gallery .said").first.inner_text())
    cells = tab.page.locator("#confusion td")
    tab.wait_until(
        lambda: sum(int(text or 0) for text in cells.all_inner_texts()) == evaluated(daemon), "each sample has a cell"
    )
    tab.look_at("try")
    tab.page.locator("#filters img").first.wait_for()
    tab.page.click("#sample")
    tab.page.locator("#activities canvas").first.wait_for()
    drawn = tab.page.locator("#activities figcaption").all_inner_texts()
    assert [text.split(":")[0].split(",")[0][:11] for text in drawn] == [
        "right label",
        "wrong label",
        "difference",
    ] * len(daemon.status()["layers"])


def draw(board: Locator, image_HW: NDArray[np.uint8]) -> None:
    """Draws the bright pixels of an image with the mouse, row by row."""
    box = board.bounding_box()
    assert box is not None
    mouse, (height, width) = board.page.mouse, image_HW.shape

    def move(row: int, column: int) -> None:
        mouse.move(box["x"] + box["width"] * (column + 0.5) / width, box["y"] + box["height"] * (row + 0.5) / height)

    for row, bright in enumerate(image_HW > 127):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], bright, [0]))))
        for first, end in edges.reshape(-1, 2):
            move(row, int(first))
            mouse.down()
            move(row, int(end) - 1)
            mouse.up()


def on_the_board(tab: Tab) -> list[int]:
    """The pixels of the drawing board, as a person sees them."""
    return list(
        tab.evaluate(
            """(board => [...board.getContext('2d').getImageData(0, 0, board.width, board.height).data]
                .filter((_, at) => at % 4 === 0))(document.getElementById('board'))"""
        )
    )


def sent(answer: Response) -> list[int]:
    """The image that the page has asked about."""
    return list((answer.request.post_data_json or {})["image"])


def test_a_drawn_digit_gets_the_answer_of_the_predict_socket(
    daemon: DaemonProcess, visit: Callable[..., Tab]
) -> None:
    digit = DIGITS.test.images[0]
    tab = visit(daemon.http)
    tab.wait_for_state("ready")
    tab.look_at("board")
    tab.page.uncheck("#centre")
    answers: list[Response] = []
    tab.page.on("response", lambda answer: answers.append(answer) if "api/scores" in answer.url else None)
    draw(tab.page.locator("#board"), digit)
    pixels = np.array(on_the_board(tab), np.uint8)
    assert (pixels.reshape(28, 28)[digit > 127] > 127).all()
    assert pixels.mean() < 2.5 * digit.mean(), "strokes are not much thicker than those of the digit"
    tab.wait_until(lambda: bool(answers) and sent(answers[-1]) == pixels.tolist(), "the drawing is answered")
    found = answers[-1].json()
    with Predictor(daemon.predict) as predictor:
        expected = predictor.predict(pixels.reshape(1, 28, 28))
    assert found["label"] == expected.labels[0]
    assert np.float32(found["scores"]).tolist() == expected.goodness[0].tolist()
    assert tab.text("#answer") == f"It reads {expected.labels[0]}"
    assert tab.page.locator("#scores tr.best th").inner_text() == str(expected.labels[0])


def test_a_digit_can_be_drawn_with_keys_and_taught(daemon: DaemonProcess, visit: Callable[..., Tab]) -> None:
    tab = visit(daemon.http)
    tab.wait_for_state("ready")
    accepted = daemon.status()["accepted"]
    tab.page.focus("#board")
    for _ in range(6):
        tab.page.keyboard.press("Shift+ArrowDown")
    tab.page.locator("#scores tr.best").wait_for()
    tab.page.select_option("#teach-label", "1")
    tab.page.click("#teach-send")
    tab.wait_for("document.getElementById('teach-said').textContent.startsWith('Accepted')")
    assert f"as sample {accepted + 1:,}, a 1" in tab.text("#teach-said")
    assert daemon.status(idle=True)["accepted"] == accepted + 1
    tab.page.focus("#board")
    tab.page.keyboard.press("Delete")
    assert not any(on_the_board(tab))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_and_fits_a_phone(
    daemon: DaemonProcess, visit: Callable[..., Tab], scheme: Scheme
) -> None:
    tab = visit(daemon.http, scheme=scheme, width=390)
    tab.wait_for_state("ready")
    for section in SECTIONS:
        tab.wait_for_charts(section)
    tab.page.click("#sample")
    tab.page.locator("#activities canvas").first.wait_for()
    for details in tab.page.locator("details").all():
        details.evaluate("node => { node.open = true }")
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert serious(tab) == []


def test_a_finger_draws_and_does_not_scroll(daemon: DaemonProcess, visit: Callable[..., Tab]) -> None:
    tab = visit(daemon.http, width=390)
    tab.wait_for_state("ready")
    tab.look_at("board")
    tab.page.locator("#board").tap()
    assert any(on_the_board(tab))
    assert tab.evaluate("getComputedStyle(document.getElementById('board')).touchAction") == "none"


def test_every_state_has_words_of_its_own(daemon: DaemonProcess, visit: Callable[..., Tab]) -> None:
    tab = visit(daemon.http)

    def describe(state: str, refusing: str | None = None) -> dict[str, str]:
        status = {"state": state, "refusing": refusing, "refusing_hint": "make room"}
        return dict(tab.page.evaluate("status => import('/page/state.js').then(m => m.describe(status))", status))

    states = ("starting", "ready", "paused", "draining", "stopping", "standby", "failed")
    words = {state: describe(state) for state in states}
    assert [each["name"] for each in words.values()] == list(states)
    assert len({each["text"] for each in words.values()}) == len(states)
    for state in ("ready", "paused"):
        refusing = describe(state, "disk_full")
        assert refusing["name"] == "refusing"
        assert "disk full" in refusing["text"]
        assert "make room" in refusing["text"]
        assert ("paused" in refusing["text"]) == (state == "paused")
    assert describe("draining", "draining")["name"] == "draining"


def test_interrupted_learning_has_words_of_its_own(daemon: DaemonProcess, visit: Callable[..., Tab]) -> None:
    tab = visit(daemon.http)

    def describe(state: str, refusing: str | None = None, hint: str = "it begins again") -> dict[str, str]:
        interrupted = {"reason": "ff-stage-0 is lost", "hint": hint, "seconds": 12.3, "tries": 2}
        status = {"state": state, "refusing": refusing, "refusing_hint": "make room", "interrupted": interrupted}
        return dict(tab.page.evaluate("status => import('/page/state.js').then(m => m.describe(status))", status))

    shown = describe("ready")
    assert (shown["name"], shown["word"]) == ("interrupted", "Learning is interrupted")
    assert "Predictions are answered. Reason: ff-stage-0 is lost. Hint: it begins again." in shown["text"]
    assert shown["note"] == "For 12 s, 2 tries to place the stages."
    assert "Hint" not in describe("ready", hint="")["text"]
    paused = describe("paused")
    assert paused["name"] == "paused"
    assert "Learning is interrupted, too: ff-stage-0 is lost." in paused["text"]
    refusing = describe("ready", "backlog_full")
    assert refusing["name"] == "refusing"
    assert refusing["text"].endswith("Learning is interrupted, too.")
    for state in ("draining", "stopping", "failed"):
        assert describe(state)["name"] == state


@pytest.fixture
def spread(daemons: Daemons) -> Iterator[DaemonProcess]:
    """A daemon whose stages run in a cluster, which ends with it."""
    pytest.importorskip("ray", reason="ray is not installed")
    started = daemons.start("network.preset=fast", *interruptions.SETTINGS)
    yield started
    assert started.stop() == 0, started.log_text()


def test_a_lost_stage_is_shown_and_marked_and_is_not_a_lost_daemon(
    spread: DaemonProcess, visit: Callable[..., Tab]
) -> None:
    first = interruptions.await_stages(spread)[0]
    tab = visit(spread.http)
    tab.wait_for_state("ready")
    facts = tab.page.locator(".layer").first.locator(".facts")
    tab.wait_until(lambda: first["node"] in facts.inner_text(), "the place of the first layer is shown")
    assert {"Node", "Host", "Device"} <= set(facts.inner_text().splitlines())
    with interruptions.interrupted(spread):
        tab.wait_for_state("interrupted")
        assert tab.text("#pill") == "learning is interrupted"
        assert "ff-stage-0 is lost" in tab.text("#state")
        assert re.fullmatch(r"For \d+ (s|min), 1 try to place the stages\.", tab.text("#state-note"))
        phone = visit(spread.http, width=390)
        phone.wait_for_state("interrupted")
        assert phone.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert serious(phone) == []
    tab.wait_for_state("ready")
    tab.look_at("learning")
    tab.page.locator("#legend li").filter(has_text="learning is interrupted").wait_for()
    tab.page.locator("#legend li").filter(has_text="learning goes on").wait_for()


def test_a_pause_is_shown(daemon: DaemonProcess, visit: Callable[..., Tab]) -> None:
    tab = visit(daemon.http)
    with Control(daemon.control) as control:
        control.request("pause")
        try:
            tab.wait_for_state("paused")
            assert tab.text("#pill") == "paused"
            assert "learned after ffstream resume" in tab.text("#state")
        finally:
            control.request("resume")
    tab.wait_for_state("ready")


def test_a_daemon_that_refuses_samples_says_why(start: Start, visit: Callable[..., Tab]) -> None:
    running = start("limits.disk_min_free_bytes=1000000000000000")
    tab = visit(f"http://{running.daemon.http.address}")
    tab.wait_for_state("refusing")
    assert "disk full" in tab.text("#state")
    assert "What to do:" in tab.text("#state")
    assert "no samples yet: ffstream replay embedded" in tab.text("#errors")


def test_a_killed_daemon_is_lost_and_found_again(daemons: Daemons, visit: Callable[..., Tab]) -> None:
    settings = ("network.preset=fast", f"listen.http=127.0.0.1:{free_port()}")
    killed = daemons.start(*settings)
    tab = visit(killed.http)
    tab.wait_for_state("ready")
    killed.kill()
    tab.wait_for_state("lost")
    assert tab.text("#pill") == "lost"
    assert re.fullmatch(r"The figures below are \d+ s old\.", tab.text("#state-note"))
    assert tab.evaluate("import('/page/feed.js').then(feed => feed.SILENCE_MS)") <= 3000
    daemons.start(*settings)
    tab.wait_for_state("ready")
    tab.complaints = [each for each in tab.complaints if "net::ERR_" not in each]


def test_wake_and_sleep_are_a_band(start: Start, visit: Callable[..., Tab]) -> None:
    running = start("network.preset=wake-sleep", "network.wake=2", "network.sleep=2")
    url = f"http://{running.daemon.http.address}"
    feed(running, 400)
    record = f"{url}/api/history?span=10m"
    wait_until(lambda: any(httpx.get(record).json()["columns"]["sleep"]), WAIT_S, "the sleep phases are recorded")
    tab = visit(url)
    tab.wait_for_charts("learning")
    tab.wait_for(f"{curve('sleep')}?.z[0].some(share => share > 0)")
    assert tab.page.locator("#curve .ytick text, #curve .y4tick text").filter(has_text="sleep").count() == 1


def test_a_network_with_a_decoder_shows_its_dreams(start: Start, visit: Callable[..., Tab]) -> None:
    running = start("network.preset=fast", "network.decoder=linear")
    tab = visit(f"http://{running.daemon.http.address}")
    tab.wait_for_state("ready")
    tab.wait_for("!document.getElementById('dreams-card').hidden")
    tab.look_at("dreams-card")
    tab.wait_until(lambda: "Nothing is remembered yet" in tab.text("#dreams-note"), "there is no sample")
    feed(running, 400)
    tab.look_at("dreams-card")
    status = running.control().request("status")
    layers, labels = len(status["layers"]), status["labels"]
    tab.wait_for(f"document.querySelectorAll('.dreams img').length === {layers * labels * 8}")
    assert "samples" in tab.text("#dreams-note")
    assert tab.page.locator(".dreams img").nth(8).get_attribute("alt") == "a dream of label 1"
    tab.wait_for_charts("layers")
    tab.wait_until(lambda: re.search(r"Decoder error\s+\d", tab.text("#layer-cards")) is not None, "it is measured")


def test_networks_without_a_decoder_say_nothing_of_dreams(daemon: DaemonProcess, visit: Callable[..., Tab]) -> None:
    tab = visit(daemon.http)
    tab.wait_for_charts("layers")
    assert not tab.page.locator("#dreams-card").is_visible()
    assert "Decoder error" not in tab.text("#layer-cards")


def secret(folder: Path, text: str) -> Path:
    """A file that only its owner can read."""
    file = folder / "secret"
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_a_daemon_with_a_token_asks_for_it(start: Start, visit: Callable[..., Tab], tmp_path: Path) -> None:
    running = start(f"security.http_token={secret(tmp_path, 'open-sesame-0123456789')}")
    tab = visit(f"http://{running.daemon.http.address}")
    tab.page.locator("#ask").wait_for()
    assert not tab.page.locator("#tiles").is_visible()
    tab.page.fill("#token", "wrong")
    tab.page.keyboard.press("Enter")
    tab.wait_for("document.getElementById('ask-error').textContent.includes('not the token')")
    tab.page.fill("#token", "open-sesame-0123456789")
    tab.page.keyboard.press("Enter")
    tab.wait_for_state("ready")
    assert not tab.page.locator("#ask").is_visible()
    assert tab.page.locator("#tiles").is_visible()
    tab.complaints = [each for each in tab.complaints if "401" not in each]


def test_teaching_asks_for_a_token_of_its_own(start: Start, visit: Callable[..., Tab], tmp_path: Path) -> None:
    running = start("http.teach=true", f"http.teach_token={secret(tmp_path, 'teach-me-0123456789abc')}")
    tab = visit(f"http://{running.daemon.http.address}")
    tab.wait_for_state("ready")
    tab.page.click("#board")
    tab.page.click("#teach-send")
    tab.page.locator("#teach-token").wait_for()
    assert "a token for teaching is required" in tab.text("#teach-said")
    tab.page.fill("#teach-token", "teach-me-0123456789abc")
    tab.page.click("#teach-send")
    tab.wait_for("document.getElementById('teach-said').textContent.startsWith('Accepted as sample 1,')")
    assert not tab.page.locator("#teach-token").is_visible()
    assert running.control().status()["accepted"] == 1
    tab.complaints = [each for each in tab.complaints if "403" not in each]
