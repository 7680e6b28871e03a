"""The page of a report: every number is the record's, what is unknown is left out, and nothing in it can break it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from hf_mpruner.config import PruningConfig
from hf_mpruner.report import PruningReport, charts
from hf_mpruner.report.series import layer_strips, measured_models, metric_curve
from hf_mpruner.report.svg import viridis
from hf_mpruner.report.words import count_labels, format_count, format_ranges, format_seconds, nice_ticks
from report_kit import bert_report, build_report

BERT = "bert.encoder.layer"
VOID = {"meta", "link", "br", "wbr"}


class Node:
    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    def find(self, tag, css=None):
        """All elements below with this tag and, if given, this class."""
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag and (css is None or css in (child.attributes.get("class") or "").split()):
                    yield child
                yield from child.find(tag, css)

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def everything(self):
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.everything()


class Tree(HTMLParser):
    """Elements as a tree; a tag that is not closed, or closed twice, is an error."""

    def __init__(self, text):
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], [node.tag for node in self.open]

    def handle_starttag(self, tag, attrs):
        self.open[-1].children.append(node := Node(tag, attrs))
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, attrs))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(report):
    return Tree(report.to_html()).root


def titles(node):
    return [title.text for title in node.find("title")]


FULL = {
    "halfwidth": 0.01, "model_type": "bert", "source_revision": "86b5e09", "stopped": "rejected up to granularity 3",
    "versions": {"python": "3.11.9", "torch": "2.13.0"}, "device": "one CPU", "training": {"learning_rate": 2e-5},
    "data": {
        "judging": {"dataset": "dair-ai/emotion", "split": "validation", "num_examples": 2000},
        "calibration": {"source": "sample of the training set", "num_examples": 512},
    },
    "metric_sources": {"accuracy": {"name": "accuracy", "config": None, "library": "evaluate 0.4.6"}},
    "latency": {"batch_size": 32, "shape": {"input_ids": [32, 128]}, "dtype": "float32"},
    "config": PruningConfig(max_metric_drop=0.02, protect=["0"]).to_dict(),
}  # fmt: skip


# -- numbers --------------------------------------------------------------------------------------------------------


def test_the_table_has_the_report_s_cells():
    report = bert_report()
    (table,) = parse(report).find("table")
    rows = [[cell.text for cell in row.children if isinstance(cell, Node)] for row in table.find("tr")]
    markdown = [[cell.strip() for cell in line[1:-1].split("|")] for line in report.to_markdown().splitlines()]
    assert rows == [markdown[0], *markdown[2:]]
    assert [row.text for row in table.find("tr", "kept")] == ["".join(markdown[4])]  # round 2


def test_the_strip_s_cells_are_the_rounds():
    report = bert_report()
    (picture,) = parse(report).find("svg", "strip")
    (strip,) = layer_strips(report.record)
    cells = [cell.attributes["class"].split()[1] for cell in picture.find("g", "cell")]
    assert cells == [state for row in strip.rows for state in row.states] + ["kept"] * 3 + ["gone"] + ["kept"] * 2
    assert titles(picture)[1] == "layer 1, round 1, rejected: would have gone, but the cut was rejected"
    assert titles(picture)[9] == "layer 3, round 2, accepted: removed in this round"
    assert titles(picture)[21] == "layer 3, in the end: removed"
    assert (
        "Round 2, accepted, removed 3. Round 3, rejected, would have removed 1, 4." in picture.attributes["aria-label"]
    )


def test_every_cell_of_a_heat_map_says_its_value_and_has_its_colour():
    report = bert_report()
    models = measured_models(report.record)
    pictures = list(parse(report).find("svg", "heat"))
    assert len(pictures) == len(models) == 2
    for picture, model in zip(pictures, models, strict=True):
        matrix = model.matrices[BERT]
        pairs = [(i, j) for i in range(len(matrix.layers)) for j in range(len(matrix.layers))]
        assert titles(picture) == [
            f"{matrix.layers[i]}, {matrix.layers[j]}: {matrix.values[i, j].item():.4f}" for i, j in pairs
        ]
        cells = [cell.attributes["fill"] for cell in picture.find("path") if "fill" in cell.attributes]
        assert cells == [viridis(matrix.values[i, j].item()) for i, j in pairs]
        frames = list(picture.find("rect", "cluster"))
        assert len(frames) == 1  # layers 1 and 2
        assert (frames[0].attributes["x"], frames[0].attributes["width"]) == ("66", "64")


def test_the_points_say_what_was_measured():
    (picture,) = parse(bert_report(halfwidth=0.01)).find("svg", "metric")
    assert titles(picture) == [
        "original: 6,500 parameters, accuracy 0.9400 (0.9300 to 0.9500)",
        "round 1: 3,500 parameters, accuracy 0.8100 (0.8000 to 0.8200), drop +0.1300, rejected",
        "round 2: 5,500 parameters, accuracy 0.9325 (0.9225 to 0.9425), drop +0.0075",
        "round 3: 3,500 parameters, accuracy 0.7800 (0.7700 to 0.7900), drop +0.1600, rejected",
    ]
    assert len(list(picture.find("path", "bar"))) == 4
    assert "worst value allowed: 0.92" in picture.text


def test_points_lie_in_proportion_to_what_was_measured():
    report = bert_report()
    (picture,) = parse(report).find("svg", "metric")
    places = [
        (float(mark.attributes["cx"]), float(mark.attributes["cy"])) for mark in picture.find("circle", "mark")
    ]  # rounds 1, 2 and 3; the original is a square
    one, two, three = metric_curve(report.record).points[1:]
    assert places[0][0] == places[2][0]
    share = (places[0][1] - places[1][1]) / (places[2][1] - places[1][1])
    assert share == pytest.approx((two.metric - one.metric) / (two.metric - three.metric), abs=0.001)


def test_the_curves_say_their_values():
    report = bert_report()
    (picture,) = parse(report).find("svg", "curves")
    expected = [
        f"{model.name}, layers {one} and {other}: {value:.4f}"
        for model in measured_models(report.record)
        for matrix in [model.matrices[BERT]]
        for one, other, value in zip(matrix.layers, matrix.layers[1:], matrix.adjacent, strict=False)
    ]
    assert titles(picture) == expected


def test_what_happened_is_said_in_one_sentence_and_in_tiles():
    page = parse(bert_report())
    (lead,) = page.find("p", "lead")
    assert lead.text == "1 of 6 layers of google-bert/bert-base-uncased was removed: 3 of bert.encoder.layer."
    (tiles,) = page.find("dl", "tiles")
    shown = [[part.text for part in tile.children if isinstance(part, Node)] for tile in tiles.find("div")]
    assert [[text.replace("\N{NO-BREAK SPACE}", " ") for text in tile] for tile in shown] == [
        ["layers", "6 → 5"], ["parameters", "6.5K → 5.5K", "15.4% fewer"], ["size", "26.0 kB → 22.0 kB"],
        ["accuracy", "0.9400 → 0.9325", "drop +0.0075, 0.02 allowed"], ["evaluation", "1.50 s"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (build_report({"h": 4}, [({"h": [0]}, "rejected", 0.1)]), "No layer of the model was removed: the cut was rejected."),
        (
            build_report({"h": 4}, [({"h": [0]}, "rejected", 0.1), ({"h": [0, 1]}, "refused", None)], model_type="vit"),
            "No layer of vit was removed: all 2 cuts were rejected.",
        ),
        (build_report({"h": 4}, []), "No layer of the model was removed."),
        (
            build_report({"encoder.block": 4, "decoder.block": 4},
                         [({"encoder.block": [0], "decoder.block": [0, 1, 3]}, "accepted", 0.93)]),
            "4 of 8 layers of the model were removed: 1-3 of encoder.block; 2 of decoder.block.",
        ),
    ],
    ids=["one", "all rejected", "no round", "two stacks"],
)  # fmt: skip
def test_the_sentence_fits_what_happened(report, sentence):
    (lead,) = parse(report).find("p", "lead")
    assert lead.text == sentence


def test_latency_is_shown_where_it_was_measured():
    report = bert_report()
    report.record.baseline.latency_seconds = 0.030
    report.record.rounds[1].after.latency_seconds = 0.024
    assert "30.0\N{NO-BREAK SPACE}ms\N{NO-BREAK SPACE}→ 24.0\N{NO-BREAK SPACE}ms" in report.to_html()
    assert "1.25 times as fast" in report.to_html()


def test_all_facts_are_there():
    page = parse(bert_report(**FULL))
    facts = {
        tuple(part.text for part in row.children if isinstance(part, Node))
        for group in page.find("dl", "facts")
        for row in group.find("div")
    }
    assert {
        ("base model", "google-bert/bert-base-uncased"), ("revision", "86b5e09"), ("device", "one CPU"),
        ("python", "3.11.9"), ("torch", "2.13.0"), ("learning rate", "2e-05"), ("threshold", "0.98"), ("protect", "0"),
        ("stop when done", "no"), ("shape", "input_ids 32 x 128"),
        ("accuracy", "name accuracy, library evaluate 0.4.6"), ("Judging rounds", "dair-ai/emotion, 2,000 examples, split validation"),
        ("Choosing layers", "sample of the training set, 512 examples"),
    } <= facts  # fmt: skip
    text = page.text
    assert "The run stopped: rejected up to granularity 3." in text
    for number in (1, 2, 3):
        assert f"reason of round {number}" in text


# -- what is not known ----------------------------------------------------------------------------------------------

BARE = {"baseline": None, "metric": None, "greater_is_better": None, "config": {}, "measured_after": False}
REPORTS = {
    "everything": bert_report(**FULL),
    "no facts": bert_report(),
    "no metric": build_report({"h": 3}, [({"h": [0]}, "unjudged", None)], metric=None, baseline=None),
    "no rounds": build_report({"h": 3}, []),
    "no baseline": build_report({"h": 3}, [], **BARE),
    "refused": build_report({"h": 3}, [({"h": [0]}, "refused", None), ({"h": [0, 1]}, "accepted", 0.93)]),
    "all rejected": build_report({"h": 3}, [({"h": [0]}, "rejected", 0.1)]),
    "not finite": build_report({"h": 3}, [({"h": [0]}, "rejected", None)]),
    "one layer left": build_report({"h": 3}, [({"h": [0]}, "accepted", 0.94)]),
    "no name": bert_report(source_model=None),
}
REPORTS["no baseline"].record.baseline = None


@pytest.mark.parametrize("name", REPORTS)
def test_what_is_not_known_is_left_out(name):
    page = parse(REPORTS[name])
    for word in ("None", "nan", "inf", "null", "Undefined"):
        assert not re.search(rf"\b{word}\b", page.text)
        assert not any(
            re.search(rf"\b{word}\b", str(value)) for node in page.everything() for value in node.attributes.values()
        )
    headings = [heading.text for heading in page.find("h2")]
    assert ("Layers" in headings) == bool(REPORTS[name].rounds)
    assert any(heading.startswith("Size and") for heading in headings) == (
        metric_curve(REPORTS[name].record) is not None
    )


def test_a_report_of_an_older_version_is_shown(tmp_path):
    values = bert_report(measured_after=False).to_dict()
    for name in (
        "data",
        "training",
        "versions",
        "metric_sources",
        "device",
        "latency",
        "confidence",
        "similarity_after",
    ):
        del values["record"][name]
    for measured in (values["record"]["baseline"], *(round_["after"] for round_ in values["record"]["rounds"])):
        for name in ("metrics", "num_examples", "interval", "latency_seconds"):
            del measured[name]
    page = parse(PruningReport.from_dict(values))
    assert len(list(page.find("svg", "heat"))) == 2
    assert not {"Versions", "Latency", "Recovery training"} & {heading.text for heading in page.find("h2")}


# -- what must not happen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_fetched_and_nothing_runs(name):
    page = parse(REPORTS[name])
    tags = {node.tag for node in page.everything()}
    assert not tags & {"script", "iframe", "object", "embed", "img", "image", "use", "a", "form", "base"}
    for node in page.everything():
        for attribute, value in node.attributes.items():
            assert not attribute.startswith("on")
            assert attribute not in ("src", "srcset", "xlink:href")
            assert attribute != "href" or value == "data:,"
            assert "http:" not in (value or "")
            assert "https:" not in (value or "")
    (style,) = page.find("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    (policy,) = (node for node in page.find("meta") if node.attributes.get("http-equiv"))
    assert policy.attributes["content"].startswith("default-src 'none'; style-src 'unsafe-inline'")


HOSTILE = (
    "</title><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "'; }</style>&lt;b&gt;",
)


@pytest.mark.parametrize("evil", HOSTILE)
def test_no_name_can_break_the_page(evil):
    def make(name):
        report = build_report(
            {name: 3, "h": 3}, [({name: [0], "h": [0, 2]}, "accepted", 0.93)],
            metric=name, source_model=name, source_revision=name, model_type=name, stopped=name, device=name,
            versions={name: name}, data={"judging": {"source": name, name: name}}, training={name: [name, {name: name}]},
            config={"max_metric_drop": 0.02, "threshold": 0.98, "protect": [name], name: name},
        )  # fmt: skip
        report.record.metric_sources = {name: {name: name}}
        report.record.rounds[0].reason = name
        report.record.rounds[0].after.metrics = report.record.baseline.metrics = {name: 1.0, "loss": 0.5}
        return parse(report)

    harmless, tested = make("name"), make(evil)
    assert [node.tag for node in tested.everything() if node.tag != "wbr"] == [
        node.tag for node in harmless.everything() if node.tag != "wbr"
    ]
    assert [sorted(node.attributes) for node in tested.find("svg")] == [
        sorted(node.attributes) for node in harmless.find("svg")
    ]
    assert next(tested.find("title")).text == f"Pruning report: {evil}"
    assert "49" not in next(tested.find("h1")).text


def test_every_picture_and_region_has_a_name_for_who_cannot_see_it():
    page = parse(bert_report(**FULL))
    for picture in page.find("svg"):
        assert picture.attributes["role"] == "img"
        assert picture.attributes["aria-label"]
    named = [node.attributes["id"] for node in page.everything() if "id" in node.attributes]
    assert len(named) == len(set(named))
    for node in page.everything():
        if node.attributes.get("role") == "region":
            assert node.attributes["aria-label"]
        for attribute in ("aria-labelledby", "aria-describedby"):
            assert node.attributes.get(attribute, named[0]) in named


def luminance(colour):
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_marks_can_be_told_from_what_is_behind_them(scheme):
    (style,) = parse(bert_report()).find("style")
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", style.text.split(":root {")[1 + scheme].split("}")[0]))
    for ground in ("page", "panel", "mark"):
        assert contrast(colours["ink"], colours[ground]) >= 7
        assert contrast(colours["soft"], colours[ground]) >= 4.5
    for mark in ("kept", "change", *(f"look-{i}" for i in range(charts.NUM_LOOKS))):
        assert contrast(colours[mark], colours["page"]) >= 3


def test_numbers_in_heat_maps_can_be_read():
    for i in range(1001):
        value = i / 1000
        assert contrast(viridis(value), "#ffffff" if value < charts._LIGHT_FROM else "#000000") >= 4.5


# -- parts ----------------------------------------------------------------------------------------------------------


def test_colours_are_matplotlib_s():
    for i in range(256):
        assert to_rgb(viridis(i / 255)) == pytest.approx(colormaps["viridis"](i)[:3], abs=6 / 255)
    assert viridis(-0.2) == viridis(0.0)
    assert viridis(1.0) == "#fde725"


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.87, 0.943), (0.0, 1.0), (3.9137, 3.9338), (-0.3, 2.0), (123_456.0, 9_876_543.0), (0.9999, 0.99991)],
)
def test_ticks_are_round_and_cover_the_axis(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 4 <= len(ticks) <= 10


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7"), (999, "999"), (1000, "1.0K"), (999_949, "999.9K"), (999_951, "1.0M"), (7_240_000_000, "7.2B")],
)
def test_counts(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0.4 ms"), (1.0, "1.00 s"), (119.9, "119.90 s"), (150.0, "2 min"), (7261.0, "2 h 01 min")],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_ranges_and_labels():
    assert format_ranges(()) == ""
    assert format_ranges((0, 1, 3)) == "0-1, 3"
    assert count_labels([0.0, 500.0]) == ["0", "500"]


def test_the_file_is_whole_and_the_same_each_time(tmp_path):
    report = bert_report(**FULL)
    file = report.save_html(tmp_path / "new")
    assert file == tmp_path / "new" / "report.html"
    assert file.read_text(encoding="utf-8") == report.to_html()
    report.save(tmp_path / "new")
    assert PruningReport.load(tmp_path / "new").to_html() == report.to_html()
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["report.html", "report.json"]
