"""The page in a real browser: a file dropped or chosen, what is said of it, and nothing that the policy forbids."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager

import pytest
from helpers.serving import ALWAYS_SURE, GENRES, serving, small_model, wav

pytest.importorskip("playwright", reason="the driver of browsers is not installed")
from playwright.sync_api import expect, sync_playwright

REFUSED = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")
"""What Chromium writes of each answer that is a refusal."""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server():
    with serving(small_model(), max_mb=2) as client:
        yield client


@contextmanager
def opened(browser, client, width=1280, scheme="light"):
    """The page in a window of its own; at its end nothing was forbidden, broke, or was asked of another server."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.set_default_timeout(30_000)
    page.on("console", lambda each: REFUSED.match(each.text) or wrong.append(each.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    address = f"http://127.0.0.1:{client.port}/"
    page.on("request", lambda each: each.url.startswith((address, "blob:")) or wrong.append(each.url))
    try:
        page.goto(address)
        yield page
        assert wrong == []
    finally:
        context.close()


def choose(page, file):
    page.set_input_files("#file", file)
    page.wait_for_selector("body:not(.busy)")


def painted(page, canvas):
    """The different colours of a canvas's points on a grid."""
    return page.evaluate(
        """(canvas) => {
            const {width, height} = canvas, found = new Set();
            const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
            for (let x = 1; x < 40; x++) for (let y = 1; y < 20; y++) {
                const first = 4 * (Math.floor(y * height / 20) * width + Math.floor(x * width / 40));
                found.add(data.slice(first, first + 4).join());
            }
            return found.size;
        }""",
        page.query_selector(canvas),
    )


def test_a_real_clip_gets_its_genre_bars_and_pictures(browser, server, mini):
    clip = next((mini / "fma_small").rglob("*.mp3"))
    said = server.predict(clip.read_bytes())[1]
    with opened(browser, server) as page:
        choose(page, clip)
        expect(page.locator("#genre")).to_have_text(said["genre"])
        expect(page.locator("#name")).to_have_text(clip.name)
        expect(page.locator("#sureness")).to_contain_text("Unsure")
        expect(page.locator("#confidence")).to_have_text(f"{said['confidence']:.0%}")
        expect(page.locator("#model")).to_contain_text(small_model().fingerprint[:16])
        ranked = sorted(GENRES, key=said["probabilities"].get, reverse=True)
        assert page.locator("#bars .genre").all_text_contents() == ranked  # «<b>» too is text
        assert painted(page, "#spectrogram") > 50
        assert painted(page, "#timeline") >= len(GENRES) - 1
        expect(page.locator("#warning")).to_be_hidden()
        expect(page.locator("#error")).to_be_hidden()


def test_an_answer_that_is_sure_says_so(browser, tmp_path):
    with serving(small_model(ALWAYS_SURE)) as client, opened(browser, client) as page:
        choose(page, wav(tmp_path / "x.wav", 3.0))
        expect(page.locator("#sureness")).to_contain_text("Sure")
        expect(page.locator("#sureness")).not_to_contain_text("Unsure")


def test_the_cursor_follows_clicks_keys_and_the_music(browser, server, tmp_path):
    with opened(browser, server) as page:
        choose(page, wav(tmp_path / "x.wav", 12.0))
        stage, place = page.locator("#stage"), lambda: float(stage.get_attribute("aria-valuenow"))
        box = stage.bounding_box()
        for part in (0.1, 0.9):  # on the spectrogram, and on the timeline under it
            page.mouse.click(box["x"] + box["width"] / 4, box["y"] + part * box["height"])
            assert place() == pytest.approx(3.0, abs=0.1)
            stage.press("Home")
            assert place() == 0
        stage.press("ArrowRight")
        assert place() == 5
        cursor = page.locator("#cursor").bounding_box()
        assert cursor["x"] + 1 == pytest.approx(box["x"] + box["width"] * 5 / 12, abs=2)
        assert cursor["height"] == box["height"]
        expect(page.locator("#clock")).to_have_text("0:05 / 0:12")
        page.locator("#play").click()
        expect(page.locator("#clock")).to_have_text("0:06 / 0:12")
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("button", name="Play")).to_be_enabled()
        stage.press("End")
        assert place() == 12


def test_a_file_may_be_dropped(browser, server, tmp_path):
    body = wav(tmp_path / "x.wav", 2.0).read_bytes()
    with opened(browser, server) as page:
        dropped = page.evaluate_handle(
            """(bytes) => {
                const dropped = new DataTransfer();
                dropped.items.add(new File([new Uint8Array(bytes)], "dropped.wav"));
                return dropped;
            }""",
            list(body),
        )
        page.dispatch_event("#drop", "dragover", {"dataTransfer": dropped})
        expect(page.locator("body")).to_have_class("over")
        page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
        expect(page.locator("#name")).to_have_text("dropped.wav")


def test_what_is_refused_is_said_and_the_next_file_is_taken(browser, server, tmp_path, odd_mp3):
    (tmp_path / "large.wav").write_bytes(bytes(5_000_000))
    good = wav(tmp_path / "good.wav", 2.0)
    for file, why in [
        (odd_mp3 / "bad_random_bytes.mp3", "not_audio"),
        (odd_mp3 / "bad_text_renamed.mp3", "not_audio"),
        (odd_mp3 / "warn_middle_zeroed.mp3", "decode_error"),
        (odd_mp3 / "bad_zero_length.mp3", "empty"),
        (tmp_path / "large.wav", "more than 2 MB"),
    ]:
        with opened(browser, server) as page:
            choose(page, good)
            choose(page, file)
            expect(page.locator("#error")).to_contain_text(f"{file.name}: {why}")
            expect(page.locator("#answer")).to_be_hidden()
            choose(page, good)
            expect(page.locator("#error")).to_be_hidden()
            expect(page.locator("#answer")).to_be_visible()


def test_a_damaged_file_is_warned_of(browser, server, odd_mp3):
    with opened(browser, server) as page:
        choose(page, odd_mp3 / "short_truncated_half.mp3")
        expect(page.locator("#warning")).to_contain_text("damaged")


def test_two_tabs_at_once_get_the_answer_to_their_own_file(browser, server, tmp_path):
    files = [wav(tmp_path / f"{name}.wav", seconds) for name, seconds in (("one", 9.0), ("two", 4.0))]
    with opened(browser, server) as one, opened(browser, server) as two:
        for page, file in zip((one, two), files, strict=True):
            page.set_input_files("#file", file)
        for page, file, clock in zip((one, two), files, ("0:00 / 0:09", "0:00 / 0:04"), strict=True):
            expect(page.locator("#name")).to_have_text(file.name)
            expect(page.locator("#clock")).to_have_text(clock)


def test_the_token_is_asked_for_and_kept_in_the_tab(browser, tmp_path):
    with serving(small_model(), token="a token") as client, opened(browser, client) as page:
        token = page.get_by_label("This server wants its token")
        expect(token).to_be_focused()
        expect(page.locator("#choose")).to_be_hidden()
        token.fill("another")
        token.press("Enter")
        expect(page.locator("#error")).to_have_text("That is not the server's token.")
        token.fill("a token")
        token.press("Enter")
        expect(page.locator("#choose")).to_be_visible()
        expect(page.locator("#error")).to_be_hidden()
        page.reload()
        choose(page, wav(tmp_path / "x.wav", 2.0))
        expect(page.locator("#genre")).not_to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen_and_its_text_is_readable(browser, server, tmp_path, width, scheme):
    with opened(browser, server, width, scheme) as page:
        choose(page, wav(tmp_path / f"{'a long name ' * 15}.wav", 3.0))
        assert page.evaluate("() => document.documentElement.scrollWidth") == width
        assert "hoose" in page.locator("#drop").inner_text()
        for name in ("#genre", "#sureness", "#name", "#bars .share", "#model"):
            assert contrast(page, name) >= 4.5, name
        page.goto(f"{page.url}docs")
        assert page.evaluate("() => document.documentElement.scrollWidth") == width


def contrast(page, name):
    """The contrast of a text and the ground under it, by WCAG 2."""
    colours = page.evaluate(
        """(element) => {
            const text = getComputedStyle(element).color;
            while (getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)") element = element.parentElement;
            return [text, getComputedStyle(element).backgroundColor].map((each) => each.match(/[\\d.]+/g).map(Number));
        }""",
        page.query_selector(name),
    )
    light = []
    for colour in colours:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour[:3])
        ]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_it_is_used_by_the_keyboard_alone(browser, server, tmp_path):
    with opened(browser, server) as page:
        seen = []
        for _ in range(3):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("() => document.activeElement.id || document.activeElement.textContent"))
        assert seen == ["mgc", "API", "file"]
        assert page.evaluate("() => getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files(wav(tmp_path / "x.wav", 8.0))
        expect(page.locator("#genre")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#clock")).to_have_text("0:05 / 0:08")


def test_a_server_that_has_gone_is_said(browser, tmp_path):
    with serving(small_model()) as client:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{client.port}/")
        expect(page.locator("#model")).not_to_be_empty()
    choose(page, wav(tmp_path / "x.wav", 2.0))
    expect(page.locator("#error")).to_have_text("The server does not answer.")
    context.close()
