"""The picture of the house: floors as bands, modules as boxes, and how often floors use each other as arrows."""

import collections
import math
from html import escape

WIDTH, LEFT, RIGHT = 900, 10, 672
BAND, GAP, TOP, BOX = 68, 10, 34, 38
# No CSS variables, as not every renderer supports them. A renderer without media queries shows the light picture.
LIGHT = dict(paper="#fff", band="#f3f4f6", box="#fff", edge="#9aa4b2", ink="#1f2933", quiet="#5f6b7a", arrow="#3d6fb4", wrong="#c62828")
DARK = dict(paper="#0d1117", band="#1a212b", box="#262f3b", edge="#556170", ink="#e6edf3", quiet="#9aa7b5", arrow="#7fb0f0", wrong="#ff7b72")
SHAPES = """
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
.name { font-size: 14px; font-weight: 600 }
.quiet { font-size: 11px; font-weight: 400 }
.what { font-size: 12px }
.down, .up { fill: none; stroke-opacity: .75 }
"""


def colours(palette):
    return """
text {{ fill: {ink} }} .quiet, .what {{ fill: {quiet} }}
.paper {{ fill: {paper} }} .band {{ fill: {band} }} .box {{ fill: {box}; stroke: {edge} }}
.down {{ stroke: {arrow} }} .up {{ stroke: {wrong} }} .head {{ fill: {arrow} }} .wrong {{ fill: {wrong} }}
""".format(**palette)


STYLE = f"{SHAPES}{colours(LIGHT)}@media (prefers-color-scheme: dark) {{{colours(DARK)}}}\n"


def draw(crate, floors, placed):
    height = TOP + len(floors) * (BAND + GAP) + 8
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        "<title>The modules of src/ by floor</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="down" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse"'
        ' orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker>'
        '<marker id="up" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse"'
        ' orient="auto"><path class="wrong" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
    ]
    between = collections.Counter()
    for (source, target), places in crate.arrows.items():
        if source in placed and target in placed and placed[source] != placed[target]:
            between[placed[source], placed[target]] += len(places)
    upward = sum(source < target for source, target in between)
    says = "every arrow points down" if not upward else f"{upward} of {len(between)} arrows point up"
    out.append(
        f'<text class="what" x="{LEFT}" y="21">Modules with their lines (without tests). An arrow: a floor uses another, '
        f"the thicker the more often; {says}.</text>"
    )
    for number, floor in enumerate(floors):
        out += band(crate, number, floor, [name for name in sorted(placed) if placed[name] == number], len(floors))
    out += arrows(between, len(floors))
    return "\n".join([*out, "</svg>", ""])


def top(number, floors):
    return TOP + (floors - 1 - number) * (BAND + GAP)


def band(crate, number, floor, names, floors):
    y = top(number, floors)
    out = [
        f'<rect class="band" x="{LEFT}" y="{y}" width="{RIGHT - LEFT}" height="{BAND}" rx="6"/>',
        f'<text class="quiet" x="{LEFT + 10}" y="{y + 16}">{number + 1}  {escape(floor.what)}</text>',
    ]
    x = LEFT + 8
    for name, width in zip(names, widths([crate.modules[name] for name in names], names)):
        inside = listing(sorted(crate.inside[name]), width)
        out += [
            f'<rect class="box" x="{x:.0f}" y="{y + 23}" width="{width:.0f}" height="{BOX}" rx="4"/>',
            f'<text class="name" x="{x + 8:.0f}" y="{y + (39 if inside else 47)}">{name}'
            f'<tspan class="quiet" dx="6">{crate.modules[name]:,}</tspan></text>'.replace(",", "\u202f"),
            f'<text class="quiet" x="{x + 8:.0f}" y="{y + 54}">{inside}</text>' if inside else "",
        ]
        x += width + 8
    return [line for line in out if line]


def widths(lines, names):
    """The band's width, shared by size, but enough for each name."""
    room = RIGHT - LEFT - 16 - 8 * (len(lines) - 1)
    least = [len(name) * 8.5 + 58 for name in names]
    spare = room - sum(least)
    weights = [math.sqrt(count) for count in lines]
    return [smallest + spare * weight / sum(weights) for smallest, weight in zip(least, weights)]


def listing(names, width):
    """As many of the names as there is room for."""
    shown, dots = [], " \u2026"
    for name in names:
        longer = " \u00b7 ".join([*shown, name])
        if len(longer) * 5.7 > width - 28:
            return " \u00b7 ".join(shown) + dots if shown else ""
        shown.append(name)
    return " \u00b7 ".join(shown)


def arrows(between, floors):
    """Arcs in the margin. The nearer the other floor, the nearer to it an arc ends. So few arcs cross."""
    ends = {}
    for number in range(floors):
        touching = [pair for pair in between if number in pair]
        others = [(sum(pair) - number, pair) for pair in touching]
        above = sorted((other - number, pair) for other, pair in others if other > number)
        below = sorted((other - number, pair) for other, pair in others if other < number)
        # From the top: the nearest above first, and the nearest below last.
        for place, (_, pair) in enumerate([*above, *below]):
            ends[number, pair] = top(number, floors) + BAND * (place + 1) / (len(touching) + 1)
    out = []
    for (source, target), count in sorted(between.items(), key=lambda item: -abs(item[0][0] - item[0][1])):
        start, end = ends[source, (source, target)], ends[target, (source, target)]
        bulge = 26 + 27 * abs(source - target)
        kind = "down" if source > target else "up"
        out.append(
            f'<path class="{kind}" stroke-width="{0.8 + 0.55 * math.log2(count):.1f}" marker-end="url(#{kind})" '
            f'd="M{RIGHT} {start:.0f}C{RIGHT + bulge} {start:.0f} {RIGHT + bulge} {end:.0f} {RIGHT + 2} {end:.0f}">'
            f"<title>floor {source + 1} to floor {target + 1}: {count}</title></path>"
        )
    return out
