"""The page in a real browser: headless Chromium, where the machine has one (Debian's package ``chromium``)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from transfiner_refine import load_refiner
from transfiner_refine.report import build_report

names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
chromium = next((program for name in names if (program := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    chromium is None, reason="this machine has no Chromium (apt-get install chromium)"
)

READY = "document.documentElement.dataset.shown !== undefined"
DIVIDER = "document.querySelector('#picture .before').style.clipPath"


@pytest.fixture(scope="module")
def report(job: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report"
    build_report(**job.files, output=output, refiner=load_refiner(device="cpu", engine="torch"))
    return output / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The page, freshly opened; whatever a test does with it, nothing may be complained about."""
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    complaints: list[str] = []
    requests: list[str] = []
    tab.on(
        "console",
        lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None,
    )
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(report.resolve().as_uri())
    tab.wait_for_function(READY)
    yield tab
    assert complaints == []
    assert all(url.startswith(("file://", "data:")) for url in requests)
    tab.close()


def shown_names(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('#images .name')].map((name) => name.textContent)"
    )
    return found


def choose(page: Page, control: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const s = document.getElementById('{control}'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change')); })()"
    )


def test_the_page_loads_without_complaints_and_shows_the_first_image(page: Page) -> None:
    assert shown_names(page) == [f"photo_{n}.png" for n in range(6)]
    assert page.evaluate("document.getElementById('caption').textContent").startswith(
        "1 of 6 · photo_0.png · 220×150"
    )
    assert page.evaluate("document.querySelectorAll('#picture .before .line').length") == 2
    assert "IoU" in page.evaluate("document.getElementById('totals').textContent")


def test_the_mouse_pulls_the_divider(page: Page) -> None:
    assert page.evaluate(DIVIDER) == "inset(0px 50% 0px 0px)"
    box = page.locator("#divider").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 150, y, steps=2)
    page.mouse.up()
    assert page.evaluate(DIVIDER) != "inset(0px 50% 0px 0px)"
    assert 50 < page.evaluate("report.viewer.divider()") < 100


def test_keys_move_the_divider_and_the_range_says_where_it_is(page: Page) -> None:
    page.keyboard.press("Shift+ArrowLeft")
    assert page.evaluate("report.viewer.divider()") == 40
    slider = "document.getElementById('slider')"
    assert page.evaluate(f"{slider}.getAttribute('aria-valuetext')") == "40 % before"
    page.keyboard.press("Space")
    assert page.evaluate("report.viewer.divider()") == 100


def test_sorting_sorts_by_gain_and_by_loss(page: Page) -> None:
    choose(page, "sort", "best")
    assert shown_names(page)[0] == "photo_1.png"  # exact after
    assert page.evaluate("document.querySelector('#images .gain').textContent").startswith("+")
    choose(page, "sort", "worst")
    assert shown_names(page)[0] == "photo_5.png"  # as far off as before
    assert page.evaluate("document.getElementById('caption').textContent").startswith("1 of 6 · photo_5.png")
    choose(page, "sort", "random")
    first = shown_names(page)
    assert sorted(first) == [f"photo_{n}.png" for n in range(6)]


def test_class_and_size_filter_instances(page: Page) -> None:
    choose(page, "category", "coin <b>")
    assert page.evaluate("document.querySelectorAll('#instances-body tr').length") == 1
    assert page.evaluate("document.querySelectorAll('#picture .before .line').length") == 1
    choose(page, "size", "large")
    assert shown_names(page) == []
    assert page.evaluate("document.getElementById('caption').textContent") == "No image has such instances."
    choose(page, "size", "")
    page.wait_for_function("document.querySelectorAll('#picture .before .line').length === 1")


def test_arrow_keys_go_through_the_images(page: Page) -> None:
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.documentElement.dataset.shown === '00002'")
    page.keyboard.press("ArrowUp")
    page.wait_for_function("document.documentElement.dataset.shown === '00001'")
    current = "document.querySelector('#images [aria-current]').textContent"
    assert "photo_1.png" in page.evaluate(current)


def test_layers_are_switched_by_keys_and_buttons(page: Page) -> None:
    line = "getComputedStyle(document.querySelector('#picture .line')).display"
    assert page.evaluate(line) != "none"
    page.keyboard.press("o")
    assert page.evaluate(line) == "none"
    assert page.evaluate("document.getElementById('layer-outlines').getAttribute('aria-pressed')") == "false"
    page.click("#layer-nodes")
    assert page.evaluate("document.querySelectorAll('#picture .nodes [data-level]').length") >= 4
    assert page.evaluate("getComputedStyle(document.querySelector('#picture .nodes')).display") != "none"
    page.keyboard.press("1")
    assert page.evaluate("document.querySelector('#picture [data-level=\"0\"]').style.display") == "none"


def test_zooming_to_the_boundary_fills_the_stage_with_it(page: Page) -> None:
    zoom = "document.getElementById('zoom').textContent"
    before = int(page.evaluate(zoom).split()[0])
    page.keyboard.press("z")
    assert int(page.evaluate(zoom).split()[0]) > 2 * before
    page.keyboard.press("0")
    assert int(page.evaluate(zoom).split()[0]) == before


def test_an_instance_is_selected_in_the_table_and_on_the_photo(page: Page) -> None:
    page.click("#instances-body tr:nth-child(2) button")
    assert page.evaluate("report.viewer.selected()") == 1
    assert page.evaluate("document.querySelectorAll('#picture .before .faded').length") == 1
    page.keyboard.press("Escape")
    page.click("#picture .before [data-instance='0'] .mask")
    assert page.evaluate("report.viewer.selected()") == 0


def test_names_from_the_files_are_text_and_never_markup(page: Page) -> None:
    assert "coin <b>" in page.evaluate("document.getElementById('instances-body').textContent")
    assert page.evaluate("document.querySelectorAll('b').length") == 0


def test_both_themes_have_readable_text(page: Page) -> None:
    contrast = """(() => {
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => {
                const share = part / 255;
                return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const probe = document.createElement('span');
        document.body.append(probe);
        const read = (name) => {
            probe.style.color = `var(--${name})`;
            return light(getComputedStyle(probe).color);
        };
        const worst = ['ink', 'quiet', 'accent', 'better', 'worse'].flatMap((text) =>
            ['paper', 'panel'].map((ground) => {
                const [a, b] = [read(text), read(ground)].sort((one, other) => other - one);
                return (a + 0.05) / (b + 0.05);
            }));
        probe.remove();
        return Math.min(...worst);
    })()"""
    for dark in (False, True):
        page.emulate_media(color_scheme="dark" if dark else "light")
        assert page.evaluate(contrast) >= 4.5  # WCAG 2.2, AA
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.evaluate("localStorage.clear()")


def test_every_control_has_a_name_for_a_screen_reader(page: Page) -> None:
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "slider", "combobox", "image", "table", "navigation", "main", "complementary")
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    nameless = [n["role"]["value"] for n in nodes if not n.get("name", {}).get("value")]
    assert {"button", "slider", "combobox", "image", "table", "navigation"} <= {
        n["role"]["value"] for n in nodes
    }
    assert nameless == []
