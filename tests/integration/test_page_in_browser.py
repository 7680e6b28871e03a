"""The page of a report as a browser shows it, with no network: nothing is asked for, nothing is missing."""

from __future__ import annotations

import pytest

from browser_kit import find_browser, open_browser
from report_kit import bert_report, build_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium: apt-get install chromium"),
]

STAGES = {f"resnet.encoder.stages.{i}.layers": depth for i, depth in enumerate((3, 4, 6, 3))}
REPORTS = {
    "bert": bert_report(halfwidth=0.01),
    "deep": build_report({"h": 96}, [({"h": list(range(0, 96, 3))}, "accepted", 0.93)]),
    "t5": build_report(
        {"encoder.block": 12, "decoder.block": 12},
        [({"encoder.block": [0, 1, 5], "decoder.block": [0, 3, 7, 11]}, "accepted", 0.93)],
    ),
    "stages": build_report(STAGES, [({path: [0, 1] for path in STAGES}, "rejected", 0.5)]),
    "hostile": build_report(
        {"<script>alert(1)</script>": 3}, [({"<script>alert(1)</script>": [0]}, "accepted", 0.93)],
        metric="</title><script>alert(2)</script>", source_model='"><img src="http://example.com/x.png">',
    ),
    "bare": build_report({"h": 3}, [], baseline=None, metric=None, config={}, measured_after=False),
}  # fmt: skip

# Texts of pictures that do not lie in them.
CLIPPED = """[...document.querySelectorAll('svg text')].filter(text => {
    const [inner, outer] = [text, text.closest('svg')].map(e => e.getBoundingClientRect());
    return inner.left < outer.left - 1 || inner.right > outer.right + 1
        || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with open_browser(find_browser(), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_the_watcher_sees_requests_and_complaints(page, tmp_path):
    (tmp_path / "page.html").write_text('<img src="http://example.com/x.png"><script>console.error("ouch")</script>')
    page.open((tmp_path / "page.html").as_uri())
    assert "http://example.com/x.png" in page.requests
    assert any("ouch" in text for text in page.complaints)


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_is_whole_without_a_network(name, page, tmp_path):
    report = REPORTS[name]
    address = report.save_html(tmp_path).as_uri()
    page.send("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    page.open(address)
    assert [url for url in page.requests if not url.startswith("data:")] == [address]
    assert page.complaints == []
    model = report.record.source_model
    assert page.value("document.title") == (f"Pruning report: {model}" if model else "Pruning report")
    boxes = page.value(
        "[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert all(width >= 14 and height >= 14 for width, height in boxes)
    assert len(boxes) > (5 if report.rounds else -1)
    assert page.value("document.scripts.length") == 0
    assert page.value(CLIPPED) == []
    # nothing sticks out to the side, at a desk and on a phone
    for width in (1200, 360):
        page.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        assert page.value("document.documentElement.scrollWidth") <= width


def test_dark_and_light_are_the_reader_s_choice(page, tmp_path):
    page.open(REPORTS["bert"].save_html(tmp_path).as_uri())
    colours = {}
    for scheme in ("light", "dark"):
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours[scheme] = page.value("getComputedStyle(document.body).backgroundColor")
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 22, 29)"}


def test_a_cell_says_its_value(page, tmp_path):
    report = REPORTS["deep"]
    page.open(report.save_html(tmp_path).as_uri())
    titles = page.value(
        "[...document.querySelectorAll('svg.heat')[0].querySelectorAll('title')].map(e => e.textContent)"
    )
    assert len(titles) == 96 * 96
    value = report.similarities()[0][1]["h"].values[7, 50].item()
    assert titles[7 * 96 + 50] == f"7, 50: {value:.4f}"
