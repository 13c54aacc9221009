"""The report of a run, read by a real browser."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tenfold.report import frontier, render, scale, strips, waterfall, words, write

from .report_sample import bare, crowded, interval, sample, uncertified

Result = dict[str, Any]

HOSTILE = "<script>alert(1)</script>"
QUOTES = """x" onmouseover="alert(2)" y='z' onfocus='alert(3)' autofocus>&amp;<img src="http://192.0.2.1/p.png" onerror=alert(4)>"""


def hostile() -> Result:
    """A result in which every name and reason wants to be markup."""
    result = sample()
    result["workload"] |= {"name": HOSTILE, "labels": [HOSTILE, QUOTES], "notes": [QUOTES], "metric": QUOTES}
    result |= {"run": QUOTES, "command": QUOTES, "notices": [HOSTILE, QUOTES], "bundle": QUOTES, "unit": QUOTES, "tenfold": QUOTES}
    result["created"] = QUOTES
    result["certified"]["label"] = QUOTES
    for row in result["ladder"]:
        row |= {"lever": QUOTES, "reason": HOSTILE, "config": {QUOTES: QUOTES, "parts": [{HOSTILE: HOSTILE}]}, "stage": QUOTES, "recipe": QUOTES}
    for row in result["candidates"]:
        row |= {"label": QUOTES, "reason": HOSTILE, "stage": HOSTILE, "recipe": QUOTES}
    for row in result["sequence"]:
        row |= {"label": HOSTILE, "reason": QUOTES}
    for row in result["slices"]:
        row["name"] = HOSTILE
    for row in result["disagreements"]:
        row |= {"target": HOSTILE, "baseline": HOSTILE, "candidate": QUOTES}
    pictures = [QUOTES, "http://192.0.2.1/a.png", "javascript:alert(5)", "data:image/svg+xml;base64,PHN2Zz4="]
    for row, picture in zip(result["disagreements"], pictures, strict=False):
        row["image"] = picture
    result["environment"] |= {"cpu": HOSTILE, "platform": QUOTES, "versions": {QUOTES: HOSTILE}}
    result["baseline"]["costs"] |= {QUOTES: {"reason": HOSTILE}}
    result["spent"]["by_activity"][QUOTES] = 1.0
    return result


# ---------------------------------------------------------------- the text itself


def test_it_is_one_document_that_names_nothing_outside() -> None:
    html = render(sample())
    assert html.startswith("<!doctype html>")
    assert "default-src 'none'" in html
    assert not re.search(r"""https?:|["']//|url\(|@import|<script|<link(?! rel="icon" href="data:,")|<iframe|srcset""", html)
    assert set(re.findall(r"""(?:href|src)="([^"#:]*)""", html)) <= {"", "data"}


def test_names_and_reasons_are_text_everywhere() -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    html = render(hostile())
    Reader().feed(html)
    assert "<script" not in html
    assert {tag for tag, _ in tags}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})
    assert [name for _, attributes in tags for name in attributes if name.startswith(("on", "autofocus"))] == []
    sources = [a["src"] for tag, a in tags if tag == "img"]
    assert len(sources) == 1  # the others are no pictures, or pictures from elsewhere
    assert str(sources[0]).startswith("data:image/png;base64,")


def test_half_a_surrogate_pair_does_not_stop_it(tmp_path: Path) -> None:
    result = sample()
    result["workload"]["labels"] = ["\ud800", "\0", "\u202eright to left"]
    write(result, tmp_path / "report.html")
    assert "right to left" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_another_schema_is_named() -> None:
    with pytest.raises(ValueError, match="schema 1, not 2"):
        render(sample() | {"schema": 2})


def test_it_changes_nothing_in_the_result() -> None:
    result = sample()
    render(result)
    assert result == sample()


@pytest.mark.parametrize("objective", ["serve", "latency", "throughput", "size", "train"])
@pytest.mark.parametrize("missing", ["gain", "points", "cheaper"])
def test_every_objective_with_what_may_be_missing(objective: str, missing: str) -> None:
    result = sample() | {"objective": objective}
    result["gain"]["train"] = interval(1.4, 1.3, 1.5)
    if missing == "gain":
        result["gain"] = dict.fromkeys(result["gain"])
    elif missing == "points":
        result["points"] = []
    else:
        result["baseline"]["cheaper"] = "eager"
    html = render(result)
    assert ("not measured" in html) or missing != "gain"
    assert "nan" not in html.lower().replace("finance", "")


def test_a_headline_is_that_of_the_objective() -> None:
    result = sample() | {"objective": "size"}
    assert f'id="gain-size" data-value="{result["gain"]["size"]["value"]}">3.90×</span> smaller' in render(result)


def test_what_has_become_dearer_is_called_more() -> None:
    result = sample()
    result["gain"]["train"] = interval(0.5, 0.4, 0.8)
    html = render(result)
    assert 'id="gain-train" data-value="0.5">2.00×</span> more <span class="interval">90 % interval 1.25× to 2.50×' in html


def test_scores_of_a_metric_that_is_better_lower_are_explained() -> None:
    result = sample()
    result["workload"] |= {"metric": "squared_error", "higher_is_better": False}
    assert "with its sign turned" in render(result)


def test_colours_have_contrast_in_both_schemes() -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text."""
    html = render(sample())
    schemes = [dict(re.findall(r"--(paper|raised|ink|muted|accent): (#\w{6});", block)) for block in re.findall(r":root \{[^}]*\}", html)]
    assert len(schemes) == 2
    for colours in schemes:
        for text in ("ink", "muted", "accent"):
            for ground in ("paper", "raised"):
                assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


# ---------------------------------------------------------------- words and layout


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (words.ratio(4.676), "4.68×"),
        (words.ratio(12.36), "12.4×"),
        (words.ratio(130.4), "130×"),
        (words.ratio(10.04, like=9.5), "10.04×"),
        (words.signed(-0.00167, 4), "−0.0017"),
        (words.signed(0.00167, 4), "+0.0017"),
        (words.signed(0.0, 4), "0.0000"),
        (words.signed(-0.0, 4), "0.0000"),
        (words.number(-1234.5, 1), "−1,234.5"),
        (words.number(math.inf, 1), "–"),
        (words.duration(0.42), "0.42 s"),
        (words.duration(59.96), "1 min 00 s"),
        (words.duration(582), "9 min 42 s"),
        (words.duration(7_499), "2 h 05 min"),
        (words.duration(3_599.7), "1 h 00 min"),
        (words.size(4_412_873), "4.41 MB"),
        (words.size(812), "812 B"),
        (words.chance(0.0000012), "p < 0.0001"),
        (words.chance(0.00123), "p = 0.0012"),
        (words.day("2026-11-24T06:00:00+00:00"), "24 November 2026, 06:00 UTC"),
        (words.day("yesterday"), "yesterday"),
        (words.settings({"a": 1, "b": "x", "c": True, "d": 0.5}), "a = 1, b = x, c = true, d = 0.5"),
    ],
)
def test_words(text: str, wanted: str) -> None:
    assert text == wanted


@pytest.mark.parametrize(("margin", "digits"), [(0.02, 4), (0.005, 5), (1.0, 2), (50.0, 1), (3e-12, 8), (math.nan, 4)])
def test_a_margin_is_shown_to_three_digits(margin: float, digits: int) -> None:
    assert words.score_digits(margin) == digits


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (1.0, 1.02), (0.3, 8.0), (0.01, 900.0), (1.0, 5.1)])
def test_logarithmic_ticks_lie_inside_and_apart(low: float, high: float) -> None:
    ticks = scale.Log(low, high).ticks(lambda v, _: f"{v:g}")
    places = [t.at for t in ticks]
    assert 2 <= len(ticks) <= 6
    assert places == sorted(places)
    assert len({t.text for t in ticks}) == len(ticks)
    assert all(scale.Log(low, high)(float(t.text)) == pytest.approx(t.at, abs=0.1) for t in ticks)


def test_equal_factors_are_equal_lengths_and_reach_the_headline() -> None:
    rows = [
        {"lever": "a", "verdict": "take", "cost_ratio": interval(2.0, 1.9, 2.1)},
        {"lever": "b", "verdict": "refuse", "cost_ratio": interval(0.5, 0.4, 0.6)},
        {"lever": "c", "verdict": "take", "cost_ratio": interval(2.0, 1.9, 2.1)},
        {"lever": "d", "verdict": "take", "cost_ratio": None},
    ]
    drawn = waterfall.waterfall(rows, interval(4.0, 3.8, 4.2))
    first, second, third = drawn.steps
    assert first.bar is not None
    assert second.bar is not None
    assert third.bar is None
    assert first.bar.width == pytest.approx(second.bar.width, abs=0.01)
    assert second.bar.start == first.bar.end
    assert drawn.total is not None
    assert drawn.total.end == pytest.approx(second.bar.end, abs=0.01)
    assert drawn.multiplies
    assert not waterfall.waterfall(rows, interval(5.0, 4.8, 5.2)).multiplies


def test_the_frontier_is_what_nothing_beats() -> None:
    places = [(1.0, 0.0), (2.0, -0.1), (3.0, -0.05), (4.0, -0.2), (0.5, 0.1), (0.4, 0.1), (3.0, -0.06)]
    slow = [p for p in places if not any(o != p and o[0] >= p[0] and o[1] >= p[1] for o in places)]
    assert frontier.best(places) == sorted(slow)


def test_a_candidate_far_below_does_not_squeeze_the_chart() -> None:
    drawn = frontier.frontier(sample()["candidates"], 0.02)
    far = next(p for p in drawn.points if p.candidate["quality_difference"]["value"] < -0.6)
    assert far.below
    assert drawn.unplotted == 1
    assert drawn.margin - drawn.baseline[1] > 10
    assert all(0 <= p.x <= 100 and 0 <= p.y <= 100 for p in drawn.points)


def test_a_strip_holds_interval_zero_and_margin() -> None:
    drawn = strips.strip(interval(-0.05, -0.06, -0.04), 0.02, 4)
    assert drawn.margin is not None
    assert 0 < drawn.low < drawn.value < drawn.high < drawn.margin < drawn.zero < 100
    assert "−0.0500, from −0.0600 to −0.0400; the margin is −0.0200" in drawn.label


# ---------------------------------------------------------------- in the browser

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Page:
    """A report in a browser, and what it asked the network for."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver = driver
        self.folder = folder

    def open(self, result: Result, *, width: int = 1280, scheme: str = "light") -> None:
        path = self.folder / "report.html"
        write(result, path)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())

    def js(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self) -> str:
        """All of it, what is folded away included."""
        return str(self.js("document.body.textContent.replace(/\\s+/g, ' ')"))

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, chromedriver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium and chromedriver are not both installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield running
    running.quit()


@pytest.fixture
def page(driver: Any, tmp_path: Path) -> Page:
    return Page(driver, tmp_path)


KINDS: list[Callable[[], Result]] = [sample, uncertified, bare, crowded, hostile]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_it_fits_and_stays_silent(page: Page, make: Callable[[], Result], width: int, scheme: str) -> None:
    page.open(make(), width=width, scheme=scheme)
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.driver.get_log("browser") == []
    assert all(url.startswith(("file:", "data:")) for url in page.requests())
    ground = page.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 380) == (scheme == "light")


@pytest.mark.browser
def test_the_policy_stops_requests(page: Page) -> None:
    page.open(sample())
    page.requests()
    page.js("document.body.append(Object.assign(new Image(), {src: 'http://192.0.2.1/a.png'}))")
    blocked = page.driver.execute_async_script("const done = arguments[0]; fetch('http://192.0.2.1/').then(() => done(false), () => done(true))")
    assert blocked
    assert any("Content Security Policy" in entry["message"] for entry in page.driver.get_log("browser"))


@pytest.mark.browser
def test_figures_are_those_of_the_result(page: Page) -> None:
    result = json.loads(json.dumps(sample()))
    page.open(result)
    gain = page.one("#gain-serve")
    assert float(gain.get_attribute("data-value")) == result["gain"]["serve"]["value"]
    assert gain.text == f"{result['gain']['serve']['value']:.2f}×"
    quality = page.one("#quality-difference")
    assert float(quality.get_attribute("data-value")) == result["certified"]["quality_difference"]["value"]
    assert quality.text == f"{result['certified']['quality_difference']['value']:+.4f}".replace("-", "−")
    headline = page.one("#headline").text
    for wanted in ("90 % interval 4.51× to 4.86×", "90 % interval −0.0096 to +0.0059", "600 test examples", "5,570,412"):
        assert wanted in headline
    taken = [row for row in result["ladder"] if row["verdict"] == "take"]
    rungs = page.all(".rung[data-lever]")
    assert [float(r.get_attribute("data-value")) for r in rungs] == [row["cost_ratio"]["value"] for row in taken]
    assert math.prod(float(r.get_attribute("data-value")) for r in rungs) == pytest.approx(result["gain"]["serve"]["value"])
    for rung, row in zip(rungs, taken, strict=True):
        assert f"{row['cost_ratio']['value']:.2f}×" in rung.text
        assert row["reason"] in rung.text


@pytest.mark.browser
def test_every_candidate_is_drawn_and_in_the_table(page: Page) -> None:
    result = crowded()
    page.open(result)
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    measured = {
        (c["recipe"], c["gain"]["value"], c["quality_difference"]["value"])
        for c in result["candidates"]
        if c["gain"] is not None and c["quality_difference"] is not None
    }
    assert {
        (a.get_attribute("data-recipe"), float(a.get_attribute("data-value")), float(a.get_attribute("data-quality")))
        for a in page.all(".points a")
    } == measured
    assert {r.get_attribute("data-recipe") for r in page.all(".candidates tbody tr")} == {c["recipe"] for c in result["candidates"]}


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 1280])
def test_pointing_and_tabbing_tell_which(page: Page, width: int) -> None:
    from selenium.webdriver import ActionChains, Keys

    page.open(sample(), width=width)
    first, second = page.all(".points a")[:2]
    tips = [page.one(f"#{a.get_attribute('aria-describedby')}") for a in (first, second)]
    assert not tips[0].is_displayed()
    ActionChains(page.driver).move_to_element(first).perform()
    assert tips[0].is_displayed()
    assert tips[0].text.startswith(first.get_attribute("aria-label"))
    assert "90 % interval" in tips[0].text
    ActionChains(page.driver).move_to_element(page.one("#frontier")).perform()
    first.send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element == second
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert tips[1].is_displayed()
    assert not tips[0].is_displayed()
    second.send_keys(Keys.ENTER)
    assert page.one("tr:target").is_displayed()  # following it opens the table


@pytest.mark.browser
def test_hostile_names_are_shown_and_do_nothing(page: Page) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    page.open(hostile())
    page.js("document.querySelectorAll('*').forEach(e => e.dispatchEvent(new Event('mouseover')) && e.dispatchEvent(new Event('focus')))")
    with pytest.raises(NoAlertPresentException):
        page.driver.switch_to.alert.dismiss()
    assert page.all("script") == []
    assert HOSTILE in page.text()
    assert re.sub(r"\s+", " ", QUOTES) in page.text()
    assert page.one(".points a").get_attribute("aria-label") == QUOTES
    assert HOSTILE in page.one(".slices tbody th").text
    assert page.js("[...document.querySelectorAll('*')].every(e => [...e.attributes].every(a => !a.name.startsWith('on')))")
    assert page.all("img[src^='http'], img[src^='javascript']") == []


@pytest.mark.browser
def test_pictures_only_where_there_are_some(page: Page) -> None:
    result = sample()
    del result["disagreements"][0]["image"]
    page.open(result)
    assert len(page.all(".cases li")) == len(result["disagreements"])
    assert len(page.all(".cases img")) == len(result["disagreements"]) - 1
    assert page.js("[...document.querySelectorAll('.cases img')].every(i => i.complete && i.naturalWidth == 8)")
    assert len(page.all(".cases .right")) == len(result["disagreements"])


@pytest.mark.browser
@pytest.mark.parametrize("make", [uncertified, bare])
def test_nothing_certified_is_the_headline(page: Page, make: Callable[[], Result]) -> None:
    result = make()
    page.open(result)
    assert "Nothing could be certified" in page.one("h1").text
    headline = page.one("#headline").text
    assert "The bundle is the baseline’s" in headline
    assert "×" not in headline
    if result["sequence"]:
        assert result["sequence"][0]["reason"] in headline
        assert result["sequence"][0]["label"] in headline
    else:
        assert "No candidate came as far as the test split" in headline


@pytest.mark.browser
@pytest.mark.parametrize("demo", [True, False])
def test_a_demonstration_says_so_before_anything_else(page: Page, demo: bool) -> None:
    result = sample()
    result["workload"]["demo"] = demo
    page.open(result)
    banners = page.all(".demo")
    assert len(banners) == demo
    if demo:
        assert "claim nothing" in banners[0].text
        assert banners[0].location["y"] < page.one("h1").location["y"]


@pytest.mark.browser
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_it_can_be_read_without_seeing(page: Page, make: Callable[[], Result]) -> None:
    page.open(make())
    levels = page.js("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.js("""[...document.querySelectorAll('main svg')].every(s =>
        s.closest('[aria-hidden=true]') || s.parentElement.closest('svg') || (s.getAttribute('role') == 'img' && s.getAttribute('aria-label')))""")
    assert page.js("[...document.querySelectorAll('table')].every(t => t.querySelector('thead th') && t.querySelector('tbody th'))")
    assert page.js("[...document.querySelectorAll('th')].every(h => h.scope)")
    assert page.js("[...document.querySelectorAll('img')].every(i => i.alt)")
    identities = page.js("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(identities) == len(set(identities))
    links = page.js("[...document.querySelectorAll('a')].map(a => a.getAttribute('href').slice(1))")
    assert set(links) <= set(identities)


@pytest.mark.browser
def test_what_is_refused_says_why(page: Page) -> None:
    result = sample()
    page.open(result)
    rows = page.all(".refused tbody tr")
    refused = [row for row in result["ladder"] if row["verdict"] != "take"]
    for shown, row in zip(rows, refused, strict=True):
        assert row["lever"] in shown.text
        assert row["reason"] in shown.text


@pytest.mark.browser
def test_the_rest_of_the_run_is_there(page: Page) -> None:
    result = sample()
    page.open(result)
    text = page.text()
    for wanted in (
        result["command"], result["bundle"], result["environment"]["cpu"], "no C++ compiler on this machine", "99.2 % of 600",
        "0.0081", "0.0114", "6 min 52 s", "51.1 s", "This test split has been opened once", result["notices"][0],
        result["workload"]["notes"][0], "p = 0.00021", "onnxruntime1.32.0",
    ):  # fmt: skip
        assert wanted in text
    for name, seconds in result["spent"]["by_activity"].items():
        assert any(name in row.text and words.duration(seconds) in row.text for row in page.all(".spent tbody tr"))
    assert len(page.all(".slices tbody tr")) == len(result["slices"])
    assert len(page.all(".sequence tbody tr")) == len(result["sequence"])
