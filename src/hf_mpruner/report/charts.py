"""The figures of a report as SVG, drawn from the data without matplotlib."""

from __future__ import annotations

from hf_mpruner.similarity import SimilarityMatrix

from .series import STATES, LayerStrip, MeasuredModel, MetricCurve, MetricPoint, State, middles
from .svg import Axis, Element, add, drawing, to_text, viridis, with_title
from .words import count_labels, format_ranges, nice_ticks, tick_labels

# Cells say their value up to this depth; beyond it the numbers would not be readable.
_MAX_LABELLED = 16
# Where black on a cell reads as well as white.
_LIGHT_FROM = 0.435
_MARKS = ("circle", "square", "diamond", "triangle")
NUM_LOOKS = 8  # colours of curves


def strip_chart(strip: LayerStrip) -> str:
    """A row a round, a column a layer: kept, removed in this round, removed before, or in a cut that was rejected."""
    cell = 24.0 if strip.depth <= 24 else max(9.0, 860 / strip.depth)
    left, row = 118.0, 26.0
    rows = [(f"round {one.round_.number}, {one.verdict}", one.states) for one in strip.rows]
    kept = set(strip.kept)
    rows.append(("in the end", tuple("kept" if layer in kept else "gone" for layer in range(strip.depth))))
    svg = drawing(left + cell * strip.depth + 8, row * len(rows) + 20, _strip_in_words(strip), "strip")
    for y, (name, states) in enumerate(rows):
        add(svg, "text", name, x=left - 10, y=row * y + 17, text_anchor="end")
        for x, state in enumerate(states):
            words = STATES[state] if y < len(strip.rows) or state == "kept" else "removed"
            box = with_title(add(svg, "g", class_=f"cell {state}"), f"layer {x}, {name}: {words}")
            draw_cell(box, left + cell * x + 1, row * y + 2.0, cell - 2, row - 4, state)
    step = _label_step(strip.depth, cell, 22)
    for layer in range(0, strip.depth, step):
        add(svg, "text", str(layer), x=left + cell * (layer + 0.5), y=row * len(rows) + 15, text_anchor="middle")
    return to_text(svg)


def draw_cell(box: Element, x: float, y: float, width: float, height: float, state: State) -> None:
    """A cell that tells its state by form as well as by colour."""
    inset = 0.75 if state in ("candidate", "gone") else 0.0  # half of an outline
    add(box, "rect", x=x + inset, y=y + inset, width=width - 2 * inset, height=height - 2 * inset, rx=2)
    middle, half = (x + width / 2, y + height / 2), min(4.0, width / 3)
    if state == "removed":
        for sign in (1, -1):
            add(
                box,
                "path",
                d=_line((middle[0] - half, middle[1] - sign * half), (middle[0] + half, middle[1] + sign * half)),
            )
    elif state == "candidate":
        add(box, "path", d=_line((x + 3, y + height - 3), (x + width - 3, y + 3)))


def _strip_in_words(strip: LayerStrip) -> str:
    parts = [f"Layers of {strip.path}, {strip.depth} at first."]
    for row in strip.rows:
        change = row.layers("candidate") if row.round_.verdict == "rejected" else row.layers("removed")
        verb = "would have removed" if row.round_.verdict == "rejected" else "removed"
        parts.append(f"Round {row.round_.number}, {row.verdict}, {verb} {format_ranges(change) or 'none'}.")
    parts.append(f"Kept in the end: {format_ranges(strip.kept)}.")
    return " ".join(parts)


def state_key(state: State) -> str:
    """A cell for the strips' legend."""
    svg = drawing(18, 18, STATES[state], "key")
    draw_cell(add(svg, "g", class_=f"cell {state}"), 1, 1, 16, 16, state)
    return to_text(svg)


def heat_map(matrix: SimilarityMatrix, clusters: list[list[int]]) -> str:
    """Similarity of all pairs of layers, with frames around the layers that looked alike."""
    layers, depth = [str(layer) for layer in matrix.layers], len(matrix.layers)
    cell = 32.0 if depth <= _MAX_LABELLED else max(4.5, 440 / depth)
    left, top, side = 34.0, 4.0, cell * depth
    svg = drawing(
        left + side + 4, top + side + 22, f"{str(matrix).splitlines()[0]}. {_range_in_words(matrix)}", "heat"
    )
    # one unit a cell, so that thousands of cells stay short
    cells = add(
        svg, "g", transform=f"translate({left:g} {top:g}) scale({cell:g})", class_="gaps" if depth <= 24 else ""
    )
    for y, row in enumerate(matrix.values.tolist()):
        for x, value in enumerate(row):
            shape = add(cells, "path", d=f"M{x} {y}h1v1h-1z", fill=viridis(value))
            with_title(shape, f"{layers[y]}, {layers[x]}: {value:.4f}")
    if depth <= _MAX_LABELLED:
        for y, row in enumerate(matrix.values.tolist()):
            for x, value in enumerate(row):
                # ".996" rather than "1.00": thresholds lie in the third decimal
                label = "1" if x == y else f"{value:.3f}".replace("0.", ".", 1)
                place = {"x": left + cell * (x + 0.5), "y": top + cell * (y + 0.5) + 3.5}
                add(
                    svg,
                    "text",
                    label,
                    class_="on-dark" if value < _LIGHT_FROM else "on-light",
                    text_anchor="middle",
                    **place,
                )
    position = {layer: i for i, layer in enumerate(matrix.layers)}
    for cluster in clusters:
        places = [position[layer] for layer in cluster if layer in position]
        if len(places) > 1:
            corner = {"x": left + cell * places[0], "y": top + cell * places[0]}
            span = cell * (places[-1] - places[0] + 1)
            add(svg, "rect", class_="cluster", width=span, height=span, **corner)
    step = _label_step(depth, cell, 20)
    for i in range(0, depth, step):
        add(svg, "text", layers[i], x=left - 6, y=top + cell * (i + 0.5) + 4, text_anchor="end")
        add(svg, "text", layers[i], x=left + cell * (i + 0.5), y=top + side + 16, text_anchor="middle")
    return to_text(svg)


def _range_in_words(matrix: SimilarityMatrix) -> str:
    if len(matrix.layers) < 2:
        return ""
    return f"Neighbouring layers: {min(matrix.adjacent):.4f} to {max(matrix.adjacent):.4f}."


def similarity_scale() -> str:
    """The colours of all heat maps, from 0 to 1."""
    svg = drawing(276, 32, "Colours of the heat maps: dark violet is a similarity of 0, yellow is 1.", "scale")
    for i in range(64):
        add(svg, "rect", x=10 + 4 * i, y=0, width=4.3, height=12, fill=viridis((i + 0.5) / 64))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        add(svg, "text", f"{share:g}", x=10 + 256 * share, y=27, text_anchor="middle")
    return to_text(svg)


def metric_chart(curve: MetricCurve) -> str:
    """The deciding metric of every measured model against its parameters."""
    width, height, left, right, top, bottom = 860.0, 380.0, 64.0, 24.0, 14.0, 46.0
    sizes = [float(point.measured.parameters) for point in curve.points]
    ends = [end for point in curve.points for end in (point.interval or (point.metric,))]
    ends += [] if curve.limit is None else [curve.limit]
    x = Axis(*padded(min(sizes), max(sizes), 0.08), left, width - right)
    y = Axis(*padded(min(ends), max(ends), 0.08), height - bottom, top)
    svg = drawing(width, height, _metric_in_words(curve), "metric wide")
    ticks = [tick for tick in nice_ticks(y.low, y.high, 6) if y.low <= tick <= y.high]
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        add(svg, "path", class_="grid", d=_line((left, y(tick)), (width - right, y(tick))))
        add(svg, "text", label, x=left - 8, y=y(tick) + 4, text_anchor="end")
    ticks = [tick for tick in nice_ticks(x.low, x.high, 6) if x.low <= tick <= x.high]
    for tick, label in zip(ticks, count_labels(ticks), strict=True):
        add(svg, "path", class_="grid", d=_line((x(tick), top), (x(tick), height - bottom)))
        add(svg, "text", label, x=x(tick), y=height - bottom + 17, text_anchor="middle")
    add(svg, "text", "parameters", class_="name", x=(left + width - right) / 2, y=height - 8, text_anchor="middle")
    place = {"transform": f"translate(14 {(top + height - bottom) / 2:g}) rotate(-90)"}
    add(svg, "text", curve.metric, class_="name", text_anchor="middle", **place)
    if curve.limit is not None:
        add(svg, "path", class_="limit", d=_line((left, y(curve.limit)), (width - right, y(curve.limit))))
        words, shift = f"worst value allowed: {curve.limit:.4g}", 14 if curve.greater_is_better else -6
        end = _free_end([x(size) for size in sizes], 6.3 * len(words), x)
        add(svg, "text", words, x=end, y=y(curve.limit) + shift, text_anchor="end")
    stays = [(x(point.measured.parameters), y(point.metric)) for point in curve.points if point.accepted]
    add(svg, "path", class_="path", d=_line(*stays))
    _draw_points(svg, curve, x, y)
    return to_text(svg)


def _free_end(points: list[float], length: float, axis: Axis) -> float:
    """Where a text may end so that no point lies above or below it: as far to the right as can be."""
    last = axis.end - 4
    ends = [last, *sorted((point - 10 for point in points if point - 10 < last), reverse=True)]
    free = [
        end for end in ends if end - length > axis.start and not any(end - length - 8 < p < end + 8 for p in points)
    ]
    return (free or ends)[0]


def _draw_points(svg: Element, curve: MetricCurve, x: Axis, y: Axis) -> None:
    taken: list[tuple[float, float]] = []
    for point in curve.points:
        px, py = x(point.measured.parameters), y(point.metric)
        group = with_title(
            add(svg, "g", class_="point" if point.accepted else "point rejected"), _point_in_words(curve, point)
        )
        if point.interval is not None:
            low, high = (y(end) for end in point.interval)
            add(
                group,
                "path",
                class_="bar",
                d=f"{_line((px, low), (px, high))}M{px - 5:.2f} {low:.2f}h10M{px - 5:.2f} {high:.2f}h10",
            )
        draw_mark(group, "square" if point.label == "original" else "circle", px, py, 5.5)
        width = 7.0 * len(point.label)
        spots = [(10.0, -7.0), (10.0, 17.0), (-10.0 - width, -7.0), (-10.0 - width, 17.0)]
        free = [
            spot
            for spot in spots
            if _is_free(px + spot[0], py + spot[1], width, taken) and px + spot[0] + width < x.end
        ]
        dx, dy = (free or spots)[0]
        taken += [(px, py), (px + dx + width / 2, py + dy - 4)]
        add(svg, "text", point.label, class_="name", x=px + dx, y=py + dy)


def _is_free(x: float, y: float, width: float, taken: list[tuple[float, float]]) -> bool:
    return not any(x - 8 < other[0] < x + width + 8 and abs(other[1] - (y - 4)) < 13 for other in taken)


def _point_in_words(curve: MetricCurve, point: MetricPoint) -> str:
    name = "original" if point.label == "original" else f"round {point.label}"
    text = f"{name}: {point.measured.parameters:,} parameters, {curve.metric} {point.metric:.4f}"
    if point.interval is not None:
        text += f" ({point.interval[0]:.4f} to {point.interval[1]:.4f})"
    if point.drop is not None:
        text += f", drop {point.drop:+.4f}"
    return text if point.accepted else f"{text}, rejected"


def _metric_in_words(curve: MetricCurve) -> str:
    points = "; ".join(_point_in_words(curve, point) for point in curve.points)
    limit = "" if curve.limit is None else f" The worst value allowed is {curve.limit:.4f}."
    return f"{curve.metric} against parameters: {points}.{limit}"


def similarity_chart(path: str, depth: int, models: list[MeasuredModel], threshold: float | None) -> str:
    """Similarity of each layer with the next one that is left, a curve a measured model, on the original numbering."""
    curves = [(i, model, model.matrices[path]) for i, model in enumerate(models) if path in model.matrices]
    values = [value for _, _, matrix in curves for value in matrix.adjacent] + (
        [] if threshold is None else [threshold]
    )
    width, height, left, right, top, bottom = 860.0 if depth > 16 else 520.0, 260.0, 58.0, 14.0, 10.0, 42.0
    words = "; ".join(f"{model.name}: {_range_in_words(matrix)}" for _, model, matrix in curves)
    svg = drawing(
        width,
        height,
        f"Similarity of neighbouring layers of {path}. {words}",
        "curves wide" if depth > 16 else "curves",
    )
    x = Axis(-0.5, depth - 0.5, left, width - right)
    y = Axis(*padded(min(values), max(values), 0.06), height - bottom, top)
    ticks = [tick for tick in nice_ticks(y.low, y.high, 5) if y.low <= tick <= y.high]
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        add(svg, "path", class_="grid", d=_line((left, y(tick)), (width - right, y(tick))))
        add(svg, "text", label, x=left - 8, y=y(tick) + 4, text_anchor="end")
    for layer in range(0, depth, _label_step(depth, (width - left - right) / depth, 24)):
        add(svg, "text", str(layer), x=x(layer), y=height - bottom + 17, text_anchor="middle")
    add(svg, "text", "between layers", class_="name", x=(left + width - right) / 2, y=height - 8, text_anchor="middle")
    if threshold is not None:
        add(svg, "path", class_="limit", d=_line((left, y(threshold)), (width - right, y(threshold))))
    for i, model, matrix in curves:
        points = [(x(place), y(value)) for place, value in zip(*middles(matrix), strict=True)]
        group = add(svg, "g", class_=f"curve look-{i % NUM_LOOKS}" + (" last" if model.kept else ""))
        add(group, "path", d=_line(*points))
        for (px, py), one, other, value in zip(
            points, matrix.layers, matrix.layers[1:], matrix.adjacent, strict=False
        ):
            mark = draw_mark(group, _MARKS[i % len(_MARKS)], px, py, 3.6 if depth <= 32 else 2.2)
            with_title(mark, f"{model.name}, layers {one} and {other}: {value:.4f}")
    return to_text(svg)


def curve_key(number: int, model: MeasuredModel) -> str:
    """A piece of a curve for the legend."""
    svg = drawing(34, 14, model.name, "key")
    group = add(svg, "g", class_=f"curve look-{number % NUM_LOOKS}" + (" last" if model.kept else ""))
    add(group, "path", d=_line((1, 7), (33, 7)))
    draw_mark(group, _MARKS[number % len(_MARKS)], 17, 7, 3.6)
    return to_text(svg)


def draw_mark(group: Element, kind: str, x: float, y: float, radius: float) -> Element:
    """A mark of a curve or a point."""
    if kind == "circle":
        return add(group, "circle", class_="mark", cx=x, cy=y, r=radius)
    r = radius * (0.9 if kind == "square" else 1.25)
    corners = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "diamond": [(0, -r), (r, 0), (0, r), (-r, 0)],
        "triangle": [(0, -r), (r, 0.8 * r), (-r, 0.8 * r)],
    }[kind]
    return add(group, "path", class_="mark", d=_line(*((x + dx, y + dy) for dx, dy in corners)) + "z")


def _line(*points: tuple[float, float]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)


def padded(low: float, high: float, share: float) -> tuple[float, float]:
    """An axis with room at both ends; one value alone has room in proportion to itself."""
    room = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _label_step(depth: int, cell: float, room: float) -> int:
    """Every how many layers a number has `room` pixels."""
    return next(step for step in (1, 2, 4, 8, 16, 32, depth) if step * cell >= room or step >= depth)
