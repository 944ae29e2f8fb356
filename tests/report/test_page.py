"""The page in a real browser: headless Chromium, where the machine has one (Debian's package ``chromium``)."""

from __future__ import annotations

import re
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


def test_the_summary_follows_the_filters_and_the_search(page: Page) -> None:
    totals = "document.getElementById('totals').textContent"
    whole = page.evaluate(totals)
    assert "images6instances12" in whole
    choose(page, "category", "plate")
    assert "images6instances6" in page.evaluate(totals)
    page.fill("#search", "photo_1")
    assert "images1instances1" in page.evaluate(totals)
    assert "→ 100.0" in page.evaluate(totals)  # photo 1 is exact after
    page.fill("#search", "no such name")
    assert shown_names(page) == []
    choose(page, "category", "")
    page.fill("#search", "record 5")  # the coin of photo 2
    assert shown_names(page) == ["photo_2.png"]
    page.fill("#search", "")
    assert page.evaluate(totals) == whole


def test_the_address_keeps_what_is_shown(page: Page, browser: Browser) -> None:
    choose(page, "sort", "worst")
    choose(page, "measure", "boundary")
    page.fill("#search", "coin")
    page.click("#images li:nth-child(2) button")
    page.click("#layer-fill")
    address, title = (
        page.evaluate("location.href"),
        page.evaluate("document.getElementById('caption').textContent"),
    )
    other = browser.new_page(viewport={"width": 1440, "height": 900})
    other.goto(address)
    other.wait_for_function(READY)
    assert other.evaluate("document.getElementById('caption').textContent") == title
    assert [other.input_value(f"#{name}") for name in ("sort", "measure", "search")] == [
        "worst",
        "boundary",
        "coin",
    ]
    assert other.evaluate("document.getElementById('layer-fill').getAttribute('aria-pressed')") == "false"
    assert other.evaluate("report.viewer.selected()") == page.evaluate("report.viewer.selected()")
    assert other.evaluate("location.href") == address
    other.goto("about:blank")
    other.goto(address.replace("sort=worst", "sort=nonsense&image=99"))  # what nobody meant is passed over
    other.wait_for_function(READY)
    assert other.input_value("#sort") == "listed"
    other.close()


@pytest.mark.parametrize("width", [390, 768, 1000, 1400])
def test_names_stand_in_full_and_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate("report.content.images[0].name = 'a_very_long_name_'.repeat(6) + '.png'")
    page.evaluate("report.content.images[0].instances[0].label = 'folder/' + 'long_'.repeat(12)")
    choose(page, "sort", "listed")
    cut = """[...document.querySelectorAll('#images .name, #instances button span, #instances td')]
        .filter((each) => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== 'inline')
        .map((each) => each.textContent)"""
    assert page.evaluate(cut) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.getElementById('chart').getBoundingClientRect().width") > 150


def test_on_a_phone_the_picture_is_high_and_comes_into_sight(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    stage = "document.getElementById('stage').getBoundingClientRect()"
    assert page.evaluate(f"{stage}.height") > 0.55 * 844
    assert page.evaluate("document.getElementById('overview').hasAttribute('hidden')")
    page.click("#images li:nth-child(5) button")
    page.wait_for_function("document.documentElement.dataset.shown === '00004'")
    page.wait_for_timeout(100)
    assert page.evaluate(f"{stage}.top") >= -1
    assert page.evaluate(f"{stage}.bottom") <= 845


def test_the_boundary_of_a_small_object_keeps_its_surroundings(page: Page) -> None:
    page.click("#instances-body tr:nth-child(2) button")  # the coin, 29 pixels wide
    page.keyboard.press("z")
    box = page.evaluate(
        "document.querySelector('#picture .ground').getAttribute('viewBox').split(' ').map(Number)"
    )
    assert min(box[2:]) >= 63
    assert not page.evaluate("document.getElementById('overview').hasAttribute('hidden')")
    rect = "document.querySelector('#overview rect').getAttribute"
    assert float(page.evaluate(f"{rect}('width')")) == pytest.approx(box[2])


def test_small_objects_explain_why_both_measures_are_equal(page: Page) -> None:
    note = "document.getElementById('small-note').hidden"
    assert page.evaluate(note)
    page.evaluate("""for (const one of report.content.images[0].instances) one.boundary = [...one.iou];
        report.instances.draw()""")
    assert not page.evaluate(note)
    assert page.evaluate("document.querySelectorAll('#instances .covered').length") == 2


def test_charts_show_gain_by_size_and_iou_by_score(page: Page) -> None:
    dots = "document.querySelectorAll('#plot circle').length"
    for kind in ("pair", "size", "score"):
        choose(page, "chart-kind", kind)
        assert page.evaluate(dots) == 12
        bad = "[...document.querySelectorAll('#plot *')].some((each) => each.outerHTML.includes('NaN'))"
        assert not page.evaluate(bad)
    assert page.evaluate("document.querySelector('#plot .means').getAttribute('points')") != ""
    # red means worse, and nothing else
    worse = "document.querySelectorAll('#plot circle.worse').length"
    assert page.evaluate(worse) < 12
    assert page.evaluate("document.querySelectorAll('#plot circle.now').length") == 2


def test_one_file_holds_the_whole_page(job: Any, browser: Browser, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    built = build_report(
        **job.files, output=output, single_file=True, title="Discs </script>", weights="lite"
    )
    assert built.page == output
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    tab = browser.new_page(viewport={"width": 1440, "height": 900})
    requests, complaints = list[str](), list[str]()
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(output.rename(moved / "report.html").as_uri())
    tab.wait_for_function(READY)
    assert tab.title() == "Discs </script>"
    assert re.search(r"weights lite, \d{4}-\d\d-\d\d, transfiner-refine", tab.text_content("#made") or "")
    for _ in range(5):
        tab.keyboard.press("ArrowDown")
    tab.wait_for_function("document.documentElement.dataset.shown === '00005'")
    assert tab.evaluate("document.querySelectorAll('#picture .after .line').length") == 2
    assert tab.evaluate("document.querySelector('#images img').naturalWidth") > 0
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1
    tab.close()
