"""A plot of starts as SVG: a panel a workload, a bar a system, on a logarithmic scale of seconds. Readable on light and on dark pages."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _COLUMNS, _MARGIN = 1120, 2, 16
_NAMES, _VALUES = 178, 92
_ROW, _HEAD, _FOOT = 17, 42, 24

_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 13px; font-weight: 600; }
.small { font-size: 10px; fill: #57606a; }
.page { fill: #ffffff; } .grid { stroke: #d8dee4; } .floor { stroke: #cf222e; stroke-dasharray: 4 3; stroke-width: 1.5; }
.native { fill: #8c959f; } .pull { fill: #bf8700; } .peer { fill: #a371f7; } .ours { fill: #0969da; } .warm { fill: #24292f; }
.floortext { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9198a1; } .page { fill: #0d1117; } .grid { stroke: #30363d; }
  .warm { fill: #e6edf3; } .floor { stroke: #ff7b72; } .floortext { fill: #ff7b72; } .ours { fill: #4493f8; }
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One system: seconds of a cold and of a warm start, None where there is none; ``note`` is told in place of a value."""

    label: str
    kind: str
    cold: float | None
    warm: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One workload; ``floor`` seconds is where the line stands."""

    title: str
    bars: Sequence[Bar]
    floor: float | None = None


def svg(title: str, panels: Sequence[Panel]) -> str:
    """Draw ``panels`` in two columns, all on one scale."""
    values = [value for panel in panels for bar in panel.bars for value in (bar.cold, bar.warm, panel.floor) if value]
    scale = Scale.over(values)
    width = (_WIDTH - _MARGIN * (_COLUMNS + 1)) / _COLUMNS
    body: list[str] = []
    top = 58.0
    for at in range(0, len(panels), _COLUMNS):
        row = panels[at : at + _COLUMNS]
        for column, panel in enumerate(row):
            body += _panel(panel, scale, _MARGIN + column * (width + _MARGIN), top, width)
        top += max(_height(panel) for panel in row) + _MARGIN
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:.0f}" width="{_WIDTH}" height="{top:.0f}" role="img">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{top:.0f}"/>',
        f'<text class="title" x="{_MARGIN}" y="24">{html.escape(title)}</text>',
        *_legend(_MARGIN, 42),
    ]
    return "\n".join([*head, *body, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic scale from ``low`` to ``high`` seconds, powers of ten."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Scale":
        """Make a scale that has room for all ``values``."""
        low = 10.0 ** math.floor(math.log10(min(values, default=0.1)) + 1e-9)
        high = 10.0 ** math.ceil(math.log10(max(values, default=10.0)) - 1e-9)
        return cls(low, max(high, low * 10))

    def share(self, value: float) -> float:
        """Give where a value stands, from 0 to 1."""
        return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Give the powers of ten on it."""
        count = round(math.log10(self.high / self.low))
        return [self.low * 10**power for power in range(count + 1)]


def _height(panel: Panel) -> float:
    return _HEAD + _ROW * len(panel.bars) + _FOOT


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where a panel's scale lies on the page: it begins at ``begin``, and is ``length`` long."""

    scale: Scale
    begin: float
    length: float

    def at(self, value: float) -> float:
        """Give where a value stands."""
        return self.begin + self.length * self.scale.share(value)


def _panel(panel: Panel, scale: Scale, left: float, top: float, width: float) -> list[str]:
    axis = _Axis(scale, left + _NAMES, width - _NAMES - _VALUES)
    first = top + _HEAD
    bottom = first + _ROW * len(panel.bars)
    drawn = [f'<text class="title" x="{left:.1f}" y="{top + 14:.1f}">{html.escape(panel.title)}</text>']
    for tick in scale.ticks():
        x = axis.at(tick)
        drawn.append(f'<line class="grid" x1="{x:.1f}" y1="{first - 4:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>')
        drawn.append(f'<text class="small" x="{x:.1f}" y="{bottom + 13:.1f}" text-anchor="middle">{tick:g} s</text>')
    for number, bar in enumerate(panel.bars):
        drawn += _bar(bar, axis, first + _ROW * number)
    if panel.floor:
        x = axis.at(panel.floor)
        said = f"floor {seconds(panel.floor)} s"
        drawn.append(f'<line class="floor" x1="{x:.1f}" y1="{first - 6:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>')
        drawn.append(f'<text class="small floortext" x="{x:.1f}" y="{first - 9:.1f}" text-anchor="middle">{said}</text>')
    return drawn


def _bar(bar: Bar, axis: _Axis, top: float) -> list[str]:
    drawn = [f'<text x="{axis.begin - 6:.1f}" y="{top + 11:.1f}" text-anchor="end">{html.escape(bar.label)}</text>']
    if bar.cold is not None:
        width = axis.at(bar.cold) - axis.begin
        drawn.append(f'<rect class="{bar.kind}" x="{axis.begin:.1f}" y="{top + 2:.1f}" width="{width:.1f}" height="11" rx="1.5"/>')
    if bar.warm is not None:
        drawn.append(f'<rect class="warm" x="{axis.at(bar.warm) - 1.25:.1f}" y="{top:.1f}" width="2.5" height="15"/>')
    said = bar.note or " / ".join("-" if value is None else seconds(value) for value in (bar.cold, bar.warm))
    drawn.append(f'<text class="small" x="{axis.begin + axis.length + 8:.1f}" y="{top + 11:.1f}">{html.escape(said)}</text>')
    return drawn


def _legend(left: float, y: float) -> list[str]:
    drawn = []
    kinds = (("ours", "ImageFS"), ("pull", "pull and unpack"), ("peer", "lazy peers"), ("native", "ext4, everything local"))
    for kind, text in kinds:
        drawn.append(f'<rect class="{kind}" x="{left:.0f}" y="{y - 9:.0f}" width="11" height="11" rx="1.5"/>')
        drawn.append(f'<text x="{left + 16:.0f}" y="{y:.0f}">{text}</text>')
        left += 34 + 6.2 * len(text)
    drawn.append(f'<rect class="warm" x="{left + 4:.0f}" y="{y - 11:.0f}" width="2.5" height="15"/>')
    drawn.append(f'<text x="{left + 16:.0f}" y="{y:.0f}">second start; values are cold / second; a logarithmic scale</text>')
    return drawn


def seconds(value: float) -> str:
    """Write seconds with three digits that count."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
