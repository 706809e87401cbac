"""The page in a real browser: curves, filters and search, and nothing that leaves the page.

It takes the Chromium of `playwright install chromium-headless-shell`, or the one that
`LIT_SFT_CHROMIUM` names.
"""

import os
from pathlib import Path

import pytest
from run_folders import answer, make_run

from lit_sft.report.report_page import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = {
    "closing": "</script><script>window.hit = 1</script>",
    "image": '<img src="http://127.0.0.1:9/x" onerror="window.hit = 1">',
    "turned": "\u202egnp.exe\u202c and \u200f",
    "long": "x " * 500_000,
}
LEAST_CONTRAST = 4.5
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parse = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => rgb.slice(0, 3).map((x) => x / 255)
    .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const groundOf = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return parse("Canvas");
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || node.closest("script, style, noscript")) continue;
    const [one, two] = [light(parse(getComputedStyle(node).color)), light(groundOf(node))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    found.push([ratio, `${node.tagName}.${node.className}`, node.textContent.slice(0, 40)]);
  }
  for (let i = 0; i < 8; i++) {
    const [one, two] = [`--c${i}`, "--ground"].map((name) =>
      light(parse(getComputedStyle(document.documentElement).getPropertyValue(name).trim())));
    found.push([(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), "curve", `--c${i}`]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 3);
}"""
DRAWN = "html[data-drawn]"
# What stands in shadow roots, which is all that Bokeh draws: curves, and the numbers at the axes.
INKED = """() => [...document.querySelectorAll(".chart")].map((chart) => {
  const within = (node) =>
    [node, ...[...node.children, ...(node.shadowRoot?.children ?? [])].flatMap(within)];
  const nodes = within(chart), seen = (name) => nodes.filter((node) => node.tagName === name);
  return { colours: [...new Set(seen("path").map((x) => x.getAttribute("stroke")))],
           ink: [...new Set(seen("text").map((x) => x.getAttribute("fill")))]
             .filter((x) => x !== "none"),
           width: Math.max(...seen("svg").map((x) => x.getBoundingClientRect().width)) };
})"""


@pytest.fixture(scope="module")
def browser():
    options = {"args": ["--no-sandbox", "--disable-gpu"]}
    if path := os.environ.get("LIT_SFT_CHROMIUM"):
        options |= {"executable_path": path, "args": [*options["args"], "--headless=old"]}
    with playwright.sync_playwright() as started:
        try:
            chromium = started.chromium.launch(**options)
        except playwright.Error as error:
            pytest.skip(f"no browser can be started: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    given = [
        answer(step, row, "r" if row % 3 and step else "w", f"it is {row} after {step} steps")
        for step in (0, 10, 20)
        for row in range(60)
    ]
    given += [
        answer(step, 100 + i, "w", text, question=f"{name} {text}", reference=text)
        for step in (0, 20)
        for i, (name, text) in enumerate(HOSTILE.items())
    ]
    given[0]["tokens"] = [["it is 0 ", 1.0], ["after 0", 0.125], [" steps", 0.9]]
    root = make_run(tmp_path_factory.mktemp("browser") / "run", answers=given)
    return write_report([root])


@pytest.fixture
def open_page(browser, page_file):
    """A function that opens the page; at the end nothing may have been asked for or gone wrong."""
    contexts, requests, trouble = [], [], []

    def _open(path: Path = page_file, **options):
        context = browser.new_context(locale="en-US", **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: trouble.append((message.type, message.text)))
        page.on("pageerror", lambda error: trouble.append(("error", str(error))))
        page.goto(path.as_uri())
        page.wait_for_selector(DRAWN, state="attached")
        return page

    yield _open
    assert [said for said in trouble if said[0] not in ("log", "info")] == []
    assert [url for url in requests if not url.startswith("file:")] == []
    assert len(requests) == len(contexts)
    for context in contexts:
        context.close()


def palette(page, *names):
    style = "getComputedStyle(document.documentElement)"
    return [page.evaluate(f"{style}.getPropertyValue('--{name}').trim()") for name in names]


def test_the_curves_are_drawn_and_tell_their_numbers(open_page):
    page = open_page(viewport={"width": 1280, "height": 900})
    charts = page.evaluate(INKED)
    assert page.locator("figcaption").count() == len(charts) == 5
    *loss, faint, ink = palette(page, "c0", "c1", "faint", "ink")
    ticks = "rgb({},{},{})".format(*bytes.fromhex(faint.removeprefix("#")))  # of evaluations
    assert {*loss, ticks} <= set(charts[0]["colours"])
    assert all(chart["ink"] == [ink] for chart in charts)
    numbers = page.locator("figure").first.locator(".number")
    assert numbers.all_inner_texts() == ["last 0.1", "last 0.1"]
    chart = page.locator(".chart").first.bounding_box()
    page.mouse.move(chart["x"] + chart["width"] * 0.6, chart["y"] + chart["height"] / 2)
    assert numbers.all_inner_texts() == ["step 11: 0.1818", "step 20: 0.1"]
    assert page.locator(".number").last.inner_text() == "step 11: 1,011"  # of the last chart
    page.mouse.move(0, 0)
    assert numbers.first.inner_text() == "last 0.1"


def test_a_drag_zooms_all_charts_and_a_double_click_shows_all(open_page):
    page = open_page(viewport={"width": 1280, "height": 900})
    steps = "Bokeh.documents[0].get_model_by_name('steps').start"
    before = page.evaluate(steps)
    chart = page.locator(".chart").first.bounding_box()
    middle = chart["y"] + chart["height"] / 2
    page.mouse.move(chart["x"] + chart["width"] * 0.5, middle)
    page.mouse.down()
    page.mouse.move(chart["x"] + chart["width"] * 0.8, middle, steps=4)
    page.mouse.up()
    assert page.evaluate(steps) > before + 5
    page.mouse.dblclick(chart["x"] + chart["width"] * 0.5, middle)
    assert page.evaluate(steps) == before


def test_a_line_of_the_legend_can_be_taken_out(open_page):
    page = open_page(viewport={"width": 1280, "height": 900})
    page.get_by_label("train/loss").uncheck()
    blue = palette(page, "c0")[0]
    page.wait_for_timeout(200)  # until the frame after
    assert blue not in page.evaluate(INKED)[0]["colours"]


def test_a_finger_gets_numbers_and_can_scroll(open_page):
    page = open_page(viewport={"width": 390, "height": 900}, has_touch=True, is_mobile=True)
    chart = page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    assert "step 1" in page.locator(".number").first.inner_text()
    assert page.evaluate("Bokeh.documents[0]._roots[0].toolbar.tools.every((tool) => !tool.active)")


def test_filters_and_search_find_answers(open_page):
    page = open_page()
    count, rows = page.locator("#count"), page.locator("article")
    assert count.inner_text() == "64 of 64 rows"
    assert rows.count() == 25
    page.get_by_role("button", name="Show more").click()
    assert rows.count() == 50
    page.get_by_label("won (40)").check()
    assert count.inner_text() == "40 of 64 rows"
    assert rows.first.locator("h3").inner_text() == "row 1: won"
    assert rows.first.locator("mark").all_inner_texts() == ["10", "20"]
    page.get_by_label("Search").fill("it is 7 AFTER  10")
    assert count.inner_text() == "1 of 64 rows"
    page.get_by_label("Search").fill("nowhere")
    assert rows.count() == 0
    assert not page.get_by_role("button", name="Show more").is_visible()


def test_answers_are_coloured_by_the_probability_of_their_tokens(open_page):
    page = open_page()
    page.get_by_label("Search").fill("it is 0 after 0")
    assert page.locator(".text span").count() == 0
    page.get_by_label("colour tokens").check()
    tokens = page.locator("article .text span")
    assert tokens.all_text_contents() == ["it is 0 ", "after 0", " steps"]
    assert tokens.nth(1).get_attribute("title") == "p = 0.125"
    grounds = tokens.evaluate_all("all => all.map((x) => getComputedStyle(x).backgroundColor)")
    assert grounds[0] == "rgba(0, 0, 0, 0)"
    assert len(set(grounds)) == 3


def test_hostile_rows_are_text(open_page):
    page = open_page()
    for name, text in HOSTILE.items():
        page.get_by_label("Search").fill(f"{name} {text[:9]}")
        assert page.locator("article").count() == 1, name
        shown = page.locator("article .text").first.text_content()
        assert len(shown) <= 8000
        if name in ("closing", "image"):
            assert shown == f"{name} {text}"
    page.get_by_label("Search").fill("turned")
    assert "\\u202egnp.exe\\u202c" in page.locator("article .text").first.text_content()
    page.get_by_label("Search").fill("long x")
    assert "the whole has 1,000,000 characters" in page.locator("article").inner_text()
    assert page.evaluate("window.hit") is None
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_all_is_legible_and_nothing_stands_out_of_the_page(open_page, width, scheme, tmp_path):
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    lowest = page.evaluate(CONTRASTS)
    assert lowest[0][0] >= LEAST_CONTRAST, lowest
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in page.locator("figure").all():
        box = figure.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    for chart in page.evaluate(INKED):
        assert chart["ink"] == palette(page, "ink")
        assert chart["width"] <= width
    folder = Path(os.environ.get("LIT_SFT_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"{width}-{scheme}.png", full_page=True)


def test_on_paper_it_is_light_and_has_no_controls(open_page):
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_selector("html.print", state="attached")
    for chart in page.evaluate(INKED):  # at once: a printer waits for no frame
        assert chart["ink"] == ["#1a1d21"]
        assert chart["width"] < 400
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.get_by_label("Search").is_visible()
    assert page.locator("article").first.is_visible()


def test_a_page_of_three_megabytes_opens_within_a_second(open_page, tmp_path):
    given = [
        answer(step, row, "w", f"{step} {row} " + "so 12 * 3 = 36. " * 25)
        for step in range(0, 1401, 140)
        for row in range(256)
    ]
    path = write_report([make_run(tmp_path / "run", 1400, 1400, answers=given)])
    assert path.stat().st_size < 3 * 10**6
    page = open_page(path)
    took = page.locator(DRAWN).get_attribute("data-drawn")  # ms, with all drawn
    assert float(took) < 3000, took  # 500 on an idle core
