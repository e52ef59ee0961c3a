"""The page in a browser: a Chromium that is there already, driven by playwright."""

import itertools
import json
import os
import re
import shutil

import pytest
from html_pages import HOSTILE, large_report, layer

from onnxdrp.html import to_html

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install '.[browser]'")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_CHROMIUM = os.environ.get("ONNXDRP_CHROMIUM") or next(
    filter(None, map(shutil.which, _NAMES)), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium here; name one in ONNXDRP_CHROMIUM"),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report; what the console says, and any request, fails the test at its end."""
    said, pages = [], []

    def open_(report, **options):
        path = tmp_path / "report.html"
        path.write_text(to_html(json.loads(json.dumps(report))), encoding="utf-8")
        page = browser.new_page(**options)
        page.set_default_timeout(120_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda r: said.append(r.url) if r.url.startswith("http") else None)
        page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()
    assert said == []


def column(page, section, number):
    cells = page.locator(f"#{section} table.sortable tbody tr:not([hidden])")
    return cells.evaluate_all(f"rows => rows.map(row => row.cells[{number}].textContent)")


def test_heads_sort_and_say_so(opened):
    page = opened(large_report(12))
    head = page.locator("#layers thead th", has_text="MAC after")
    assert head.get_attribute("aria-sort") is None
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "layers", 0) == [str(i) for i in range(1, 13)]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "layers", 0) == [str(i) for i in range(12, 0, -1)]  # 10 before 9
    page.locator("#layers thead th", has_text="#").get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert column(page, "layers", 0)[0] == "1"


def test_what_has_no_figure_stands_last_either_way(opened):
    rows = [layer(0, sqnr_db=3.0), layer(1), layer(2, sqnr_db=10.0), layer(3, sqnr_db="inf")]
    del rows[1]["sqnr_db"]
    page = opened({"layers": rows})
    button = page.locator("#layers thead th", has_text="SQNR").get_by_role("button")
    button.click()
    assert column(page, "layers", 0) == ["1", "3", "4", "2"]
    button.click()
    assert column(page, "layers", 0) == ["4", "3", "1", "2"]


def test_a_search_filters_rows(opened):
    page = opened(large_report(30))
    page.get_by_label("Find layers").fill("stage1 BLOCK3")
    assert column(page, "layers", 1) == ["/stage1/block3/conv/Conv"]
    assert page.locator("#layers output").text_content() == "1 of 30"
    page.get_by_label("Find layers").fill("")
    assert len(column(page, "layers", 1)) == 30


def test_charts_show_the_right_numbers(opened):
    report = large_report(5)
    page = opened(report)
    chart = page.locator("#layers svg.chart").first
    bars = chart.locator("rect.bar").evaluate_all("bars => bars.map(b => b.getBBox().height)")
    want = [row["mac_after"] for row in report["layers"]]
    assert [bar / bars[-1] for bar in bars] == pytest.approx([w / want[-1] for w in want], abs=0.01)
    chart.locator("rect.hit").nth(2).hover()
    assert page.locator("#tip").text_content() == (
        "3. /stage0/block2/conv/Conv: 750 thousand multiply-adds, from 3 million"
    )
    chart.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").text_content().startswith("2. ")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_by_the_system_and_by_the_button(opened, scheme):
    page = opened(large_report(2), color_scheme=scheme)

    def brightness():
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 765

    assert (brightness() > 0.9) == (scheme == "light")
    button = page.locator("#theme")
    assert button.text_content() == {"light": "Dark", "dark": "Light"}[scheme]
    button.click()
    assert (brightness() < 0.2) == (scheme == "light")
    assert button.text_content() == scheme.capitalize()


def test_texts_stand_out_from_what_is_behind_them(opened):
    contrast = """selectors => selectors.map(selector => {
        const linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
          return .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b); };
        let node = document.querySelector(selector);
        const style = getComputedStyle(node), ink = node.closest("svg") ? style.fill : style.color;
        const see = n => getComputedStyle(n).backgroundColor;
        while (node.parentElement && see(node) === "rgba(0, 0, 0, 0)") node = node.parentElement;
        const [a, b] = [light(ink), light(see(node))];
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); })"""
    told = [
        ".note",
        ".lead",
        "nav a",
        "#theme",
        "td",
        "caption",
        ".chart text",
        ".warnings p",
        ".chosen p",
        ".swatches li",
        ".sheet .input text",
    ]
    for scheme in ("light", "dark"):
        page = opened(large_report(2) | {"warnings": ["of something"]}, color_scheme=scheme)
        found = dict(zip(told, page.evaluate(contrast, told), strict=True))
        assert min(found.values()) >= 4.5, (scheme, found)  # WCAG 2.2, AA


def test_narrow_screens_scroll_inside_of_tables_only(opened):
    page = opened(large_report(5), viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_on_paper_everything_is_there(opened):
    page = opened(large_report(40))
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    scroll = page.locator("#layers .scroll").last
    assert scroll.evaluate("s => s.clientHeight >= s.firstElementChild.clientHeight")


def boxes(page):
    return page.locator("#graph g[data-item]")


def named(page, name):
    return page.locator(f'#graph g[aria-label^="{name}"]')


def test_scopes_of_the_graph_open_and_close(opened):
    page = opened(large_report(60))
    page.get_by_role("button", name="Close all").click()
    assert boxes(page).count() == 7  # six stages and the input
    named(page, "Scope stage1,").click()
    assert boxes(page).count() == 16
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "Scope stage1/block0, 2 nodes"
    )
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "Conv /stage1/block0/conv/Conv, 0.0 % zeros, layer 11; from stage0; to Relu"
    )
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert "stage1/block1" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Backspace")
    assert boxes(page).count() == 7
    page.get_by_role("button", name="Open more").click()
    assert boxes(page).count() == 61


def test_boxes_stand_below_what_they_read_and_apart(opened):
    report = large_report(30)
    report["graph"]["links"] += [[0, 40], [3, 20], [3, 57], [20, 3]]  # the last closes a cycle
    page = opened(report)
    for _ in range(3):
        page.get_by_role("button", name="Open more").click()
    found = boxes(page).evaluate_all(
        "all => all.map(g => { const r = g.firstChild.getBoundingClientRect();"
        " return [r.left, r.top, r.right, r.bottom]; })"
    )
    assert len(found) == 61
    for i, (left, top, right, bottom) in enumerate(found):
        for other in found[:i]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]
    tops = [top for _, top, _, _ in found]
    assert sum(a < b for a, b in itertools.pairwise(tops)) >= 59  # one link turned
    assert page.locator("#graph path.link").count() == 64


def test_the_table_and_the_graph_lead_to_each_other(opened):
    page = opened(large_report(60))
    page.get_by_role("button", name="Layer 42, show in the graph").click()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "Conv /stage4/block1/conv/Conv"
    )
    page.get_by_role("link", name="Layer 42 in the table").click()
    assert page.evaluate("location.hash") == "#layer-42"
    assert column(page, "layers", 0)[41] == "42"


def test_colours_of_the_graph_are_a_choice(opened):
    page = opened(large_report(20))
    box = named(page, "Scope stage0").or_(named(page, "Conv /stage0/block1")).first
    fills = set()
    for choice, words in (("Sparsity", "zeros"), ("SQNR", "dB"), ("Precision", "8 bit")):
        page.get_by_role("radio", name=choice).check()
        assert words in box.locator(".figure-text").text_content()
        fills.add(box.locator("rect").get_attribute("fill"))
        assert page.locator("#graph .swatches li").count() > 4
    assert len(fills) == 3


def test_graphs_of_thousands_of_nodes_open(opened):
    report = large_report(1) | {"graph": large_report(2500)["graph"]}
    for row in report["graph"]["nodes"]:
        row["name"] = row["name"].replace("/", "_")  # no scopes
    page = opened(report)
    assert boxes(page).count() <= 60
    for _ in range(3):
        page.get_by_role("button", name="Open more").click()
    assert boxes(page).count() <= 250


def test_hostile_names_do_nothing(opened):
    report = large_report(2) | {"input": HOSTILE, "warnings": [HOSTILE]}
    report["layers"][0]["name"] = HOSTILE
    report["graph"]["nodes"][1] |= {"name": HOSTILE, "op": HOSTILE}
    report["ranges"]["tensors"][HOSTILE] = dict(next(iter(report["ranges"]["tensors"].values())))
    report["masks"][HOSTILE] = report["masks"]["w0"]
    page = opened(report)
    assert page.locator("script").count() == 1
    assert column(page, "layers", 1)[0] == HOSTILE
    page.locator("#layers rect.hit").first.hover()
    assert HOSTILE in page.locator("#tip").text_content()
    page.get_by_role("button", name="Layer 1, show in the graph").click()
    assert HOSTILE in page.locator("#graph .chosen p").text_content()
