"""The page of a run in a real browser, which .ci/chromium installs: python -m pytest -m browser."""

import json
import shutil

import pytest
import torch
from playwright.sync_api import sync_playwright

from tests.evaluation.page_runs import draw_and_evaluate, set_classes, train_digits, write_in
from utils.distributed import Distributed

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, SCREEN = (375, 812), (1280, 900)
SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


class Opened:
    """A page in the browser, with its messages on the console and the addresses that it asked for."""

    def __init__(self, browser, path, size=SCREEN, **options):
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self.page = self.context.new_page()
        self.messages, self.requests = [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        if self.page.locator(".chart").count():
            self.page.wait_for_selector(".chart .main-svg")

    def axis(self, chart="Loss;"):
        """Return the range of steps that a chart shows."""
        return self.page.eval_on_selector(f".chart[aria-label^='{chart}']", "chart => chart._fullLayout.xaxis.range")

    def wait(self, condition):
        """Wait until a condition holds; what waits inside the page would need the eval that its policy forbids."""
        for _ in range(200):
            if condition():
                return
            self.page.wait_for_timeout(50)
        pytest.fail("waited for ten seconds")

    def colour(self, selector="body"):
        """Return the colour of the background of an element."""
        return self.page.eval_on_selector(selector, "element => getComputedStyle(element).backgroundColor")


@pytest.fixture(scope="module")
def browser():
    """Start Chromium with a profile of its own."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("there is no chromium: .ci/chromium installs it", pytrace=False)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, scripts):
    """Make a folder with the page of a run that has every section, and a comparison."""
    folder, alone = tmp_path_factory.mktemp("browser"), Distributed(torch.device("cpu"))
    train_digits(folder / "run", alone)
    set_classes(folder / "run", [SCRIPT, *map(str, range(1, 10))])
    draw_and_evaluate(scripts, folder, "run")
    train_digits(folder / "other", alone, "optim.lr=1e-3", "seed=1")
    write_in(folder, "run")
    write_in(folder, "run", "other")
    return {"run": folder / "run/page.html", "comparison": folder / "page.html"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, SCREEN])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_a_page_fits_and_asks_for_nothing(browser, pages, name, size, scheme):
    phone = size == PHONE
    opened = Opened(browser, pages[name], size, color_scheme=scheme, is_mobile=phone, has_touch=phone)
    page = opened.page
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth") == size[0]
    assert opened.messages == [] and page.title() != "taken"
    others = [url for url in opened.requests if not url.startswith("data:image/png;base64,")]
    assert others == [pages[name].as_uri()]
    charts = page.locator(".chart").evaluate_all("charts => charts.map(chart => chart.getBoundingClientRect().width)")
    assert len(charts) == (6 if name == "run" else 7) and all(200 < width <= size[0] for width in charts)
    drawn = page.locator("img:visible").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert drawn and all(drawn)
    buttons = page.locator(".modebar-btn").evaluate_all("buttons => buttons.map(button => button.dataset.title)")
    assert "Zoom in" in buttons and not [title for title in buttons if "hare" in title or "loud" in title]
    opened.context.close()


def test_the_colours_follow_the_scheme_also_when_it_changes(browser, pages):
    opened = Opened(browser, pages["run"], color_scheme="light")

    def text():
        return opened.page.eval_on_selector(".chart .xtick text", "element => getComputedStyle(element).fill")

    light = opened.colour(), opened.colour("section"), text()
    opened.page.emulate_media(color_scheme="dark")
    opened.wait(lambda: text() != light[2])
    dark = opened.colour(), opened.colour("section"), text()
    brightness = [[sum(map(int, colour[4:-1].split(","))) for colour in colours] for colours in (light, dark)]
    assert all(value > 700 for value in brightness[0][:2]) and brightness[0][2] < 150
    assert all(value < 150 for value in brightness[1][:2]) and brightness[1][2] > 650
    opened.context.close()


def test_the_slider_moves_the_picture_by_keyboard_and_finger(browser, pages):
    opened = Opened(browser, pages["run"])
    slider, output = opened.page.get_by_label("Snapshot"), opened.page.locator("output")
    picture = opened.page.locator(".slider img:visible")
    last = picture.get_attribute("src")
    assert output.inner_text().startswith("step 6, about ")
    assert picture.get_attribute("alt") == "Samples drawn at step 6"
    slider.focus()
    opened.page.keyboard.press("ArrowLeft")
    assert output.inner_text().startswith("step 4, ") and slider.get_attribute("aria-valuetext").startswith("step 4, ")
    assert picture.count() == 1 and picture.get_attribute("src") != last
    opened.page.keyboard.press("Home")
    assert picture.get_attribute("alt") == "Samples drawn at step 2"
    box = slider.bounding_box()
    slider.click(position={"x": box["width"] - 3, "y": box["height"] / 2})
    assert picture.get_attribute("src") == last
    opened.context.close()


def test_dragging_zooms_and_a_double_click_undoes_it(browser, pages):
    opened = Opened(browser, pages["run"])
    area = opened.page.locator(".chart").first.locator(".nsewdrag").first
    area.scroll_into_view_if_needed()
    before, box = opened.axis(), area.bounding_box()
    y = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + 0.25 * box["width"], y)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 0.75 * box["width"], y, steps=5)
    opened.page.mouse.up()
    opened.wait(lambda: opened.axis()[1] < 0.9 * before[1])
    low, high = opened.axis()
    width = before[1] - before[0]
    assert low == pytest.approx(before[0] + width / 4, abs=0.02 * width)
    assert high - low == pytest.approx(width / 2, rel=0.03)
    opened.page.mouse.dblclick(box["x"] + box["width"] / 2, y)
    opened.wait(lambda: opened.axis()[1] > high)
    assert opened.axis() == pytest.approx(before) and opened.messages == []
    opened.context.close()


def test_on_a_phone_a_finger_scrolls_and_buttons_zoom(browser, pages):
    opened = Opened(browser, pages["run"], PHONE, is_mobile=True, has_touch=True)
    chart = opened.page.locator(".chart").first
    assert chart.evaluate("chart => chart._fullLayout.dragmode") is False
    before = opened.axis()
    chart.locator("[data-title='Zoom in']").tap()
    opened.wait(lambda: opened.axis()[0] > before[0])
    opened.context.close()


def test_a_command_is_copied(browser, pages):
    opened = Opened(browser, pages["run"], permissions=["clipboard-read", "clipboard-write"])
    button = opened.page.locator("button.copy").first
    button.click()
    opened.wait(lambda: button.text_content() == "Copied")
    copied = opened.page.evaluate("navigator.clipboard.readText()")
    assert copied == "python run_train.py resume=run training.n_iters=12"
    opened.context.close()


def test_a_chart_can_be_saved_without_network(browser, pages):
    opened = Opened(browser, pages["run"])
    chart = opened.page.locator(".chart").first
    chart.hover()
    with opened.page.expect_download() as saving:
        chart.locator("[data-title^='Download']").click()
    assert saving.value.path().read_bytes().startswith(b"\x89PNG") and opened.messages == []
    opened.context.close()


def test_the_policy_stops_scripts_and_requests_that_get_into_a_page(browser, pages, tmp_path):
    """Text that was not escaped, as by a mistake in a template, runs nothing and asks for nothing."""
    path, foreign = tmp_path / "page.html", "http://127.0.0.1:9/"
    added = f"<main><img src='{foreign}image'><iframe src='{foreign}frame'></iframe>{SCRIPT}"
    added += f"<script>fetch({json.dumps(foreign)})</script><link rel='stylesheet' href='{foreign}style'>"
    path.write_text(pages["run"].read_text().replace("<main>", added))
    opened = Opened(browser, path)
    assert opened.page.title() == "run"
    assert len([text for text in opened.messages if "Content Security Policy" in text]) >= 6
    assert len(opened.page.locator(".chart .main-svg").all()) > 0  # the scripts of the page run
    opened.context.close()
