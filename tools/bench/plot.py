"""The ratios of a benchmark as grouped bars, an SVG written by hand."""

from collections.abc import Sequence
from html import escape

from jasper_mmap.bench.measure import Cell, ratio_text

COLOURS = (
    "#1b6ca8", "#e07b39", "#5f9e6e", "#b5494e", "#857aab",
    "#8d6e5a", "#d58ab5", "#7f7f7f", "#c2a83e", "#4aa5b5",
)  # fmt: skip
BAR, GAP, LEFT, TOP, HEIGHT = 20, 34, 60, 96, 300
LEGEND_WIDTH, LEGEND_COLUMNS = 370, 3
FONT = 'font-family="system-ui, sans-serif"'


def plot(cells: Sequence[Cell], names: dict[str, str], title: str) -> str:
    """Groups of (workers, batch size), a bar a contender; `names` are what the legend tells."""
    contenders = list(dict.fromkeys(cell.contender for cell in cells))
    groups = sorted({(cell.workers, cell.batch_size) for cell in cells})
    ratios = {(c.workers, c.batch_size, c.contender): c.ratio for c in cells}
    top = max(1.0, *ratios.values()) * 1.06
    legend_rows = -(-len(contenders) // LEGEND_COLUMNS)
    base = TOP + 18 * legend_rows + HEIGHT
    parts: list[str] = []

    def text(x: float, y: float, words: str, size: int, extra: str = "") -> None:
        parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" {FONT} font-size="{size}" {extra}>'
            f"{escape(words)}</text>"
        )

    def height(ratio: float) -> float:
        return HEIGHT * ratio / top

    x = float(LEFT + GAP / 2)
    for workers, batch_size in groups:
        present = [c for c in contenders if (workers, batch_size, c) in ratios]
        width = BAR * len(present)
        for place, contender in enumerate(present):
            ratio = ratios[workers, batch_size, contender]
            left, high = x + BAR * place, height(ratio)
            colour = COLOURS[contenders.index(contender) % len(COLOURS)]
            parts.append(
                f'<rect x="{left:.1f}" y="{base - high:.1f}" width="{BAR - 3}"'
                f' height="{high:.1f}" fill="{colour}"/>'
            )
            label = ratio_text(ratio)
            at = f'transform="rotate(-90 {left + 12:.1f} {base - high - 4:.1f})" fill="#333"'
            text(left + 12, base - high - 4, label, 10, at)
        middle = 'text-anchor="middle" fill="#222"'
        text(x + width / 2, base + 18, f"B={batch_size}", 12, middle)
        text(x + width / 2, base + 34, f"{workers or 'no'} workers", 11, middle)
        x += width + GAP
    right = max(x - GAP / 2, LEFT + LEGEND_WIDTH * LEGEND_COLUMNS)
    for tick in range(int(top * 5) + 1):
        y = base - height(tick / 5)
        stroke = 'stroke="#222" stroke-dasharray="5 3"' if tick == 5 else 'stroke="#ddd"'
        parts.insert(0, f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" {stroke}/>')
        text(LEFT - 8, y + 4, f"{tick / 5:.1f}", 11, 'text-anchor="end" fill="#222"')
    text(LEFT, 24, title, 16, 'font-weight="600" fill="#111"')
    text(LEFT, 44, "samples per second as a share of the floor (dashed)", 12, 'fill="#444"')
    for number, contender in enumerate(contenders):
        row, column = divmod(number, LEGEND_COLUMNS)
        left, y = LEFT + LEGEND_WIDTH * column, 66 + 18 * row
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{left}" y="{y - 9}" width="11" height="11" fill="{colour}"/>')
        text(left + 17, y, names.get(contender, contender), 11, 'fill="#222"')
    size = f'width="{right + 20:.0f}" height="{base + 50}"'
    view = f'viewBox="0 0 {right + 20:.0f} {base + 50}"'
    body = "\n".join(parts)
    background = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}>\n{background}\n{body}\n</svg>\n'
