"""The page in a real browser: headless Chromium, where the machine has one (Debian's package ``chromium``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page, find_chromium

from transfiner_refine import load_refiner
from transfiner_refine.report import build_report

chromium = find_chromium()
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
    assert chromium is not None
    with Browser(chromium) as running:
        yield running


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The page, freshly opened; whatever a test does with it, nothing may be complained about."""
    tab = browser.open(report)
    tab.wait(READY)
    yield tab
    assert tab.complaints == []
    assert all(url.startswith(("file://", "data:")) for url in tab.requests)
    tab.call("Page.close")


def names(page: Page) -> list[str]:
    found: list[str] = page.eval(
        "[...document.querySelectorAll('#images .name')].map((name) => name.textContent)"
    )
    return found


def choose(page: Page, control: str, value: str) -> None:
    page.eval(
        f"(() => {{ const s = document.getElementById('{control}'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change')); })()"
    )


def test_the_page_loads_without_complaints_and_shows_the_first_image(page: Page) -> None:
    assert names(page) == [f"photo_{n}.png" for n in range(6)]
    assert page.eval("document.getElementById('caption').textContent").startswith(
        "1 of 6 · photo_0.png · 220×150"
    )
    assert page.eval("document.querySelectorAll('#picture .before .line').length") == 2
    assert "IoU" in page.eval("document.getElementById('totals').textContent")


def test_the_mouse_pulls_the_divider(page: Page) -> None:
    assert page.eval(DIVIDER) == "inset(0px 50% 0px 0px)"
    x, y = page.middle("#divider")
    page.drag((x, y), (x + 150, y))
    assert page.eval(DIVIDER) != "inset(0px 50% 0px 0px)"
    assert 50 < page.eval("report.viewer.divider()") < 100


def test_keys_move_the_divider_and_the_range_says_where_it_is(page: Page) -> None:
    page.press("ArrowLeft", shift=True)
    assert page.eval("report.viewer.divider()") == 40
    slider = "document.getElementById('slider')"
    assert page.eval(f"{slider}.getAttribute('aria-valuetext')") == "40 % before"
    page.press(" ")
    assert page.eval("report.viewer.divider()") == 100


def test_sorting_sorts_by_gain_and_by_loss(page: Page) -> None:
    choose(page, "sort", "best")
    assert names(page)[0] == "photo_1.png"  # exact after
    assert page.eval("document.querySelector('#images .gain').textContent").startswith("+")
    choose(page, "sort", "worst")
    assert names(page)[0] == "photo_5.png"  # as far off as before
    assert page.eval("document.getElementById('caption').textContent").startswith("1 of 6 · photo_5.png")
    choose(page, "sort", "random")
    first = names(page)
    assert sorted(first) == [f"photo_{n}.png" for n in range(6)]


def test_class_and_size_filter_instances(page: Page) -> None:
    choose(page, "category", "coin <b>")
    assert page.eval("document.querySelectorAll('#instances-body tr').length") == 1
    assert page.eval("document.querySelectorAll('#picture .before .line').length") == 1
    choose(page, "size", "large")
    assert names(page) == []
    assert page.eval("document.getElementById('caption').textContent") == "No image has such instances."
    choose(page, "size", "")
    page.wait("document.querySelectorAll('#picture .before .line').length === 1")


def test_arrow_keys_go_through_the_images(page: Page) -> None:
    page.press("ArrowDown")
    page.press("ArrowDown")
    page.wait("document.documentElement.dataset.shown === '00002'")
    page.press("ArrowUp")
    page.wait("document.documentElement.dataset.shown === '00001'")
    current = "document.querySelector('#images [aria-current]').textContent"
    assert "photo_1.png" in page.eval(current)


def test_layers_are_switched_by_keys_and_buttons(page: Page) -> None:
    line = "getComputedStyle(document.querySelector('#picture .line')).display"
    assert page.eval(line) != "none"
    page.press("o")
    assert page.eval(line) == "none"
    assert page.eval("document.getElementById('layer-outlines').getAttribute('aria-pressed')") == "false"
    page.click("#layer-nodes")
    assert page.eval("document.querySelectorAll('#picture .nodes [data-level]').length") >= 4
    assert page.eval("getComputedStyle(document.querySelector('#picture .nodes')).display") != "none"
    page.press("1")
    assert page.eval("document.querySelector('#picture [data-level=\"0\"]').style.display") == "none"


def test_zooming_to_the_boundary_fills_the_stage_with_it(page: Page) -> None:
    zoom = "document.getElementById('zoom').textContent"
    before = int(page.eval(zoom).split()[0])
    page.press("z")
    assert int(page.eval(zoom).split()[0]) > 2 * before
    page.press("0")
    assert int(page.eval(zoom).split()[0]) == before


def test_an_instance_is_selected_in_the_table_and_on_the_photo(page: Page) -> None:
    page.click("#instances-body tr:nth-child(2) button")
    assert page.eval("report.viewer.selected()") == 1
    assert page.eval("document.querySelectorAll('#picture .before .faded').length") == 1
    page.press("Escape")
    page.click("#picture .before [data-instance='0'] .mask")
    assert page.eval("report.viewer.selected()") == 0


def test_names_from_the_files_are_text_and_never_markup(page: Page) -> None:
    assert "coin <b>" in page.eval("document.getElementById('instances-body').textContent")
    assert page.eval("document.querySelectorAll('b').length") == 0


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
        page.dark(dark)
        assert page.eval(contrast) >= 4.5  # WCAG 2.2, AA
    page.click("#theme")
    assert page.eval("document.documentElement.dataset.theme") == "light"
    page.eval("localStorage.clear()")


def test_every_control_has_a_name_for_a_screen_reader(page: Page) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "slider", "combobox", "image", "table", "navigation", "main", "complementary")
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    nameless = [n["role"]["value"] for n in nodes if not n.get("name", {}).get("value")]
    assert {"button", "slider", "combobox", "image", "table", "navigation"} <= {
        n["role"]["value"] for n in nodes
    }
    assert nameless == []
