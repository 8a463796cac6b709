"""The page with the latest traces, in a real Chromium."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from making import at, exception, span
from servers import DEADLINE, environment, gunicorn, wait_until

from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.traces import Traces
from mackerel_otel_server.cli.receiver.web import Web

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

EVIL = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    """Start a headless Chromium, one for all tests of this file in a process."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(programs) or importlib.util.find_spec("selenium") is None:
        reason = "Chromium, its driver or selenium is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, and CI=true skips nothing")
        pytest.skip(reason)
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = programs[0] or ""
    # A container's root has no sandbox, and little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Chrome(options, ChromeService(programs[1])) as driver:
        driver.set_page_load_timeout(DEADLINE)
        yield driver


class Page:
    """The page in a browser."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, web: Web, *, width: int = 1280, scheme: str = "light") -> None:
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")  # otherwise a URL that differs in its fragment alone loads nothing
        self.complaints()  # about other tests' pages
        self.driver.get(web.url)

    def all(self, selector: str) -> list[WebElement]:
        return [element for element in self.driver.find_elements("css selector", selector) if element.is_displayed()]

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        wait_until(condition, what, lambda: self.driver.find_element("tag name", "body").text)

    def one(self, selector: str) -> WebElement:
        self.wait(lambda: self.all(selector), selector)
        return self.all(selector)[0]

    def read(self, selector: str) -> list[str]:
        """Return the texts of all elements at one moment: the page redraws them whenever something arrives."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.innerText)"
        )
        texts: list[str] = self.driver.execute_script(script, selector)
        return texts

    def wait_for(self, selector: str, text: str) -> None:
        self.wait(lambda: any(text in found for found in self.read(selector)), f"{text!r} in {selector}")

    def choose(self, text: str) -> None:
        self.wait_for("#traces a", text)
        script = "[...document.querySelectorAll('#traces a')].find(e => e.innerText.includes(arguments[0])).click()"
        self.driver.execute_script(script, text)

    def keys(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str:
        return self.driver.switch_to.active_element.text

    def picture(self, name: str) -> None:
        """Keep what is seen, for people, where they ask for it."""
        if folder := os.environ.get("SCREENSHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def complaints(self) -> list[str]:
        """Return what the browser complains about: scripts that fail, and what the page's policy has refused."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] in {"SEVERE", "WARNING"}]


@pytest.fixture
def page(chromium: Chrome) -> Page:
    return Page(chromium)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(Traces(), "http://127.0.0.1:4318/v1/traces") as running:
        yield running


def request(number: int, route: str, **changes: Any) -> Any:
    attributes = {"http.request.method": "GET", "http.route": route, "http.response.status_code": 200}
    values = {"kind": "SERVER", "trace_id": f"{number:032x}", "attributes": attributes, **at(number, 20)}
    return span(f"GET {route}", f"{number:016x}", **(values | changes))


def test_a_request_to_a_real_gunicorn_appears_and_its_waterfall_opens(page: Page, tmp_path: Path) -> None:
    traces = Traces()
    with (
        Receiver(api_key="test-key", on_request=lambda request: traces.add(request.spans)) as receiver,
        Web(traces, receiver.url) as web,
        gunicorn(tmp_path, env=environment(receiver, OTEL_BSP_SCHEDULE_DELAY="200")) as server,
    ):
        page.open(web)
        page.wait_for("#none", f"MACKEREL_OTEL_ENDPOINT={receiver.url}")
        page.wait_for("#state", "live")
        pid = server.get("/pid").body.decode()
        page.wait_for("#traces a", f"shop · pid {pid}")
        server.get("/query")
        page.choose("/query")
        page.wait_for(".span .hint", "SELECT 41 + ?")
        assert len(page.all(".span .bar")) == 2
        page.one(".span.CLIENT").click()
        page.wait_for(".about td", "sqlite")
        server.get("/fail")
        page.choose("/fail")
        page.wait_for(".exception h3", "RuntimeError: this route fails")
        page.wait_for(".exception .stack", 'raise RuntimeError("this route fails")')
        assert page.read(".title .status") == ["500"]
        page.one("#errors").click()
        page.wait_for("#count", "1 of 3")
        assert ["/fail" in text for text in page.read("#traces li")] == [True]
        page.picture("light")
        assert page.complaints() == []


def test_what_a_span_says_is_text(page: Page, web: Web) -> None:
    attributes = {EVIL: EVIL, "http.request.method": EVIL, "http.route": EVIL, "http.response.status_code": EVIL}
    resource = {"service.name": EVIL, "process.pid": EVIL, "host.name": EVIL, EVIL: EVIL}
    told = {"attributes": attributes, "resource": resource, "status_code": "ERROR", "status_message": EVIL}
    web.traces.add([request(1, EVIL, events=exception(EVIL, EVIL), **told)])
    web.traces.add([span(EVIL, "2", f"{1:016x}", trace_id=f"{1:032x}", attributes={"db.query.text": EVIL})])
    page.open(web)
    page.choose(EVIL)
    page.wait_for(".exception h3", f"{EVIL}: {EVIL}")
    page.wait_for(".about th", EVIL)
    page.wait_for(".hint", EVIL)
    page.wait_for("h2", EVIL)
    assert page.driver.execute_script("return window.hacked") is None
    assert page.driver.execute_script("return document.querySelectorAll('img, script').length") == 1
    assert page.complaints() == []


@pytest.mark.parametrize(
    "attempt",
    [
        "document.body.innerHTML = '<img src=x onerror=window.hacked=1>'",
        "document.createElement('img').setAttribute('onerror', 'window.hacked=1')",
        "document.createElement('script').text = 'window.hacked=1'",
    ],
    ids=["HTML", "handler", "script"],
)
def test_the_policy_stops_what_would_get_in_all_the_same(page: Page, web: Web, attempt: str) -> None:
    page.open(web)
    script = f"try {{ {attempt}; return 'done'; }} catch (error) {{ return error.name; }}"
    assert page.driver.execute_script(script) == "TypeError"
    assert page.driver.execute_script("return window.hacked") is None


def test_the_filter_finds_names_attributes_and_services(page: Page, web: Web) -> None:
    web.traces.add([request(1, "/carts"), request(2, "/fish", resource={"service.name": "stock"})])
    query = span("SELECT", "9", f"{2:016x}", trace_id=f"{2:032x}", attributes={"db.query.text": "SELECT 鯖"}, **at(3))
    web.traces.add([query])
    page.open(web)
    page.wait_for("#count", "2 traces")
    search = page.one("#search")
    for words, expected in (("鯖 select", "/fish"), ("CART", "/carts"), ("stock", "/fish")):
        search.clear()
        search.send_keys(words)
        page.wait(lambda: page.read("#count") == ["1 of 2"], words)
        (found,) = page.read("#traces li")
        assert expected in found
    search.send_keys("no such thing")
    page.wait_for("#unmatched", "No trace matches")
    web.traces.add([request(3, "/new")])
    page.wait_for("#count", "0 of 3")  # what arrives is filtered, too
    page.one("#clear").click()
    page.wait_for("#count", "3 traces")


def test_a_page_that_stays_open_goes_on_with_the_next_receiver(page: Page) -> None:
    with Web(Traces(), "http://127.0.0.1:4318/v1/traces") as first:
        first.traces.add([request(1, "/before")])
        page.open(first)
        page.wait_for("#traces", "/before")
        page.wait_for("#state", "live")
    page.wait_for("#state", "no connection, trying again")
    port = int(first.url.rstrip("/").rpartition(":")[2])
    with Web(Traces(), "http://127.0.0.1:4318/v1/traces", port) as second:
        second.traces.add([request(2, "/after")])
        page.wait_for("#traces", "/after")
        page.wait_for("#state", "live")
        assert "/before" not in "".join(page.read("#traces"))


def test_traces_that_are_not_kept_leave_the_list_and_the_one_that_is_open_stays_and_says_so(page: Page) -> None:
    with Web(Traces(most_traces=2), "") as web:
        web.traces.add([request(1, "/one"), request(2, "/two")])
        page.open(web)
        page.choose("/one")
        page.wait_for("h2", "/one")
        page.one(".span").click()
        page.wait_for(".about td", "/one")
        web.traces.add([request(3, "/three")])
        page.wait_for("#trace .gone", "This trace is not kept any more")
        assert len(page.read("#traces li")) == 2
        web.traces.add([request(4, "/four")])
        page.wait_for("#traces", "/four")
        assert page.read("h2") == ["/one"]
        assert len(page.read("#trace .gone")) == 1
        assert "/one" in page.one(".about").text
        page.choose("/four")
        page.wait_for("h2", "/four")
        assert page.read("#trace .gone") == []
        page.driver.back()
        page.wait_for("#trace", "This trace is not here any more: only the latest are kept.")


def test_a_very_large_trace_says_what_is_left_out(page: Page) -> None:
    with Web(Traces(most_spans=3), "") as web:
        queries = [span(f"query {n}", f"{n}", f"{1:016x}", trace_id=f"{1:032x}", **at(n)) for n in range(5)]
        web.traces.add([*queries, request(1, "/report")])
        page.open(web)
        page.wait_for("#traces", "6 spans")
        page.choose("/report")
        page.wait_for(".note", "3 more spans arrived and are not shown")
        assert page.read(".span .name") == ["GET /report", "query 0", "query 1"]


def test_a_trace_that_is_open_grows_while_its_spans_arrive(page: Page, web: Web) -> None:
    web.traces.add([request(1, "/")])
    page.open(web)
    page.choose("/")
    page.one(".span").click()
    page.wait_for(".about th", "http.route")
    web.traces.add([span("late", "9", f"{1:016x}", trace_id=f"{1:032x}", **at(5))])
    page.wait_for(".span .name", "late")
    assert len(page.all(".about")) == 1  # what was open stays open


def test_everything_can_be_reached_by_keyboard(page: Page, web: Web) -> None:
    from selenium.webdriver.common.keys import Keys

    web.traces.add([request(1, "/one"), request(2, "/two")])
    page.open(web)
    page.one("#traces a").send_keys(Keys.ARROW_DOWN)
    assert "/one" in page.focused()
    page.keys(Keys.ENTER)
    page.wait_for("h2", "/one")
    page.one(".span").send_keys(Keys.ENTER)
    page.one(".about")
    page.keys(Keys.ESCAPE)
    page.wait_for("#trace", "Choose a trace")
    page.keys("/")
    page.wait(lambda: page.driver.switch_to.active_element.get_attribute("id") == "search", "the search has the focus")
    assert page.driver.switch_to.active_element.get_attribute("value") == ""


def test_durations_are_readable_from_nanoseconds_to_days(page: Page, web: Web) -> None:
    expected = {
        "0": 0, "7 ns": 7, "1.5 µs": 1_500, "270 µs": 270_000, "2.34 ms": 2_340_000, "412 ms": 412_000_000,
        "1.23 s": 1_234_000_000, "2 min 3 s": 123_400_000_000, "3 h 4 min": 11_045_000_000_000,
        "2 d 3 h": 183_600_000_000_000, "-1.50 ms": -1_500_000,
    }  # fmt: skip
    start = 1_700_000_000_000_000_000
    spans = [
        span(text, str(n), trace_id=f"{1:032x}", start_time_unix_nano=start + n, end_time_unix_nano=start + n + took)
        for n, (text, took) in enumerate(expected.items())
    ]
    web.traces.add(spans)
    page.open(web)
    page.choose("11 spans")
    page.wait_for(".span .took", "2 d 3 h")
    assert page.read(".span .took") == page.read(".span .name") == list(expected)
    page.wait_for(".facts", "2 d 3 h")


def test_a_value_of_many_characters_scrolls_by_itself_and_by_keyboard(page: Page, web: Web) -> None:
    from selenium.webdriver.common.keys import Keys

    web.traces.add([request(1, "/", attributes={"long": "SELECT mackerel " * 3_125, "short": "x"})])
    page.open(web, width=400)
    page.choose("GET /")
    page.one(".span").click()
    box = page.one("td .long")
    assert box.size["height"] < 300
    assert page.driver.execute_script("return [arguments[0].scrollWidth <= arguments[0].clientWidth,"
                                      "arguments[0].scrollHeight > 3000]", box) == [True, True]  # fmt: skip
    box.send_keys(Keys.END)
    page.wait(lambda: page.driver.execute_script("return arguments[0].scrollTop > 1000", box), "the value is scrolled")
    assert len(page.all("td .long")) == 1


# https://www.w3.org/TR/WCAG22/#contrast-minimum: of each element with text of its own, over all backgrounds below it.
CONTRASTS = """
const parts = (colour) => {
  const numbers = colour.match(/[\\d.]+/g).map(Number);
  const [r, g, b, alpha = 1] = colour.startsWith("color(") ? numbers.map((n, i) => i < 3 ? n * 255 : n) : numbers;
  return {rgb: [r, g, b], alpha};
};
const over = (above, below) => above.rgb.map((n, i) => n * above.alpha + below[i] * (1 - above.alpha));
const light = (rgb) => rgb.map((n) => n / 255).map((n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4)
  .reduce((sum, n, i) => sum + n * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (element) => element === null ? [255, 255, 255]
  : over(parts(getComputedStyle(element).backgroundColor), ground(element.parentElement));
return [...document.querySelectorAll("body *")]
  .filter((e) => e.checkVisibility() && [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .map((e) => {
    const below = ground(e), text = over(parts(getComputedStyle(e).color), below);
    const [less, more] = [light(below), light(text)].sort((a, b) => a - b);
    return [(more + 0.05) / (less + 0.05), `${e.tagName}.${e.className} ${e.innerText.slice(0, 20)}`];
  });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(page: Page, web: Web, scheme: str) -> None:
    for number, status in enumerate((200, 302, 404, 500), 1):
        attributes = {"http.request.method": "GET", "http.route": f"/{status}", "http.response.status_code": status}
        failed = {"status_code": "ERROR", "events": exception("SoldOutError", "no mackerel")} if status == 500 else {}
        child = span("child", f"c{number}", f"{number:016x}", trace_id=f"{number:032x}", resource={"service.name": "b"})
        web.traces.add([request(number, f"/{status}", attributes=attributes, **failed), child])
    page.open(web, scheme=scheme)
    for status in (200, 302, 404, 500):
        page.choose(f"/{status}")
        page.wait_for("h2", f"/{status}")
        # What has just arrived fades in.
        page.wait(lambda: not page.driver.execute_script("return document.getAnimations().length"), "no animation")
        contrasts = page.driver.execute_script(CONTRASTS)
        assert len(contrasts) > 40
        assert [found for found in contrasts if found[0] < 4.5] == []


@pytest.mark.parametrize("width", [400, 640, 861, 900, 1024, 1280])
def test_the_axis_is_readable_at_every_width(page: Page, web: Web, width: int) -> None:
    web.traces.add([request(1, "/import", **at(0, 11_045_000)), request(2, "/x", **at(0, 333))])
    page.open(web, width=width)
    for route in ("/import", "/x"):
        page.choose(route)
        page.wait_for("h2", route)
        boxes = page.driver.execute_script(
            "return [...document.querySelectorAll('.ticks > span')].filter(e => e.checkVisibility())"
            ".map(e => e.getBoundingClientRect()).map(box => [box.left, box.right])"
        )
        assert len(boxes) in {3, 5}
        assert all(right + 4 < left for (_, right), (left, _) in pairwise(boxes)), boxes
        page.driver.execute_script("location.hash = ''")


def test_the_legend_has_the_colours_of_the_bars(page: Page, web: Web) -> None:
    kinds = ["SERVER", "CLIENT", "INTERNAL", "PRODUCER", "CONSUMER"]
    web.traces.add([span(kind, f"{n}", trace_id=f"{1:032x}", kind=kind, **at(n)) for n, kind in enumerate(kinds)])
    web.traces.add([span("ERROR", "9", trace_id=f"{1:032x}", status_code="ERROR", **at(9))])
    page.open(web)
    page.choose("6 spans")
    page.wait_for(".legend", "error")
    of = "getComputedStyle(e, s).backgroundColor"
    bars, legend = page.driver.execute_script(
        f"return [['.span .bar', null], ['.legend li', '::before']].map(([q, s]) => "
        f"[...document.querySelectorAll(q)].map(e => {of}))"
    )
    assert bars == legend
    assert len(set(bars)) == 5  # producer and consumer share theirs


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1280, "dark")])
def test_it_fits_and_is_dark_where_it_is_dark(page: Page, web: Web, width: int, scheme: str) -> None:
    failed = {"status_code": "ERROR", "events": exception("SoldOutError", "no mackerel left")}
    query = {"db.query.text": "SELECT name, price FROM fish WHERE price < ? " * 5}
    web.traces.add([request(1, "/fish/{id}/with/a/very/long/route/that/has/no/end/at/all"), request(2, "/x", **failed)])
    for number in range(10, 16):
        deep = {"trace_id": f"{1:032x}", **at(number - 8, 3)}
        web.traces.add([span("SELECT", str(number), f"{1:016x}", kind="CLIENT", attributes=query, **deep)])
    page.open(web, width=width, scheme=scheme)
    page.wait_for("#traces", "SoldOutError")
    page.picture(f"{scheme}-{width}-list")
    measure = "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    wide, colour = page.driver.execute_script(measure)
    assert wide <= width
    assert (sum(map(int, colour[4:-1].split(","))) < 200) == (scheme == "dark")
    page.choose("/fish")
    page.one(".span.CLIENT").click()
    page.wait_for(".about td", "SELECT name")
    page.picture(f"{scheme}-{width}-trace")
    fits = "(e => e.scrollWidth <= e.clientWidth)(document.querySelector(s))"
    assert page.driver.execute_script(f"return ['#detail', '.waterfall', '.about'].every(s => {fits})")
    assert page.driver.execute_script(measure)[0] <= width
    if width == 400:
        assert page.all("#traces") == []
        page.one("#back").click()
        page.wait_for("#traces", "/fish")
