"""The style sheet and the charts of the preview page."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #69707f; --line: #e3e5ea; --card: #fff; --ground: #f5f6f8;
  --bar: #3f6fd8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a0b0; --line: #323845; --card: #1e232d;
  --ground: #151921; --bar: #7da2f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
header, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 22px;
  margin-bottom: 18px; }
h1 { font-size: 26px; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 12px; }
small { color: var(--soft); font-weight: normal; font-size: 13px; margin-left: 4px; }
dl { display: flex; flex-wrap: wrap; gap: 12px 36px; margin: 0; }
dl div { display: flex; flex-direction: column; }
dd { margin: 0; font-size: 20px; font-variant-numeric: tabular-nums; }
dt { color: var(--soft); font-size: 13px; }
code, .identity { font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.identity { color: var(--soft); margin: 14px 0 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 24px; }
.charts p { margin: 0 0 4px; }
svg { width: 100%; height: auto; display: block; }
svg rect { fill: var(--bar); }
svg text { fill: var(--soft); font-size: 11px; text-anchor: middle; }
svg line { stroke: var(--line); }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--group), 1fr)); gap: 18px 22px; }
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: 5px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
figure div { display: grid; grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); gap: 5px; }
img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; background: var(--line); }
video, .video { width: 100%; grid-column: span 2; aspect-ratio: auto; border-radius: 4px; background: var(--line); }
.unseen { color: var(--soft); font-size: 11px; aspect-ratio: 1; border: 1px dashed var(--line); border-radius: 4px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 8px 14px 8px 0; border-top: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
.count { font-variant-numeric: tabular-nums; text-align: right; padding-right: 26px; }
ul { margin: 0; padding: 0; list-style: none; color: var(--soft); }
li code { color: var(--ink); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 12px; }
.pair { display: flex; gap: 12px; align-items: center; }
.pair img { width: 76px; flex: none; }
.pair p { margin: 0; }
"""

_BINS, _WIDTH, _HEIGHT, _MARGIN = 40, 520, 130, 20


def histogram(title: str, note: str, values: npt.NDArray[np.generic], ticks: Mapping[float, str]) -> str:
    """Return a histogram of positive values, on a logarithmic axis with `ticks` (value -> text)."""
    logs = np.log2(values.astype(np.float64))
    low, high = np.floor(logs.min()), max(np.ceil(logs.max()), np.floor(logs.min()) + 1)
    counts, edges = np.histogram(logs, bins=_BINS, range=(low, high))

    def x(log: float) -> float:
        return float(_MARGIN + (_WIDTH - 2 * _MARGIN) * (log - low) / (high - low))

    parts = []
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            height = max(1.0, _HEIGHT * count / counts.max())  # a rare value must stay visible
            parts.append(
                f"<rect x={x(left) + 0.5:.1f} y={_HEIGHT - height:.1f} width={x(right) - x(left) - 1:.1f} "
                f"height={height:.1f}><title>{2**left:.3g} to {2**right:.3g}: {count:,}</title></rect>"
            )
    parts.append(f"<line x1={_MARGIN} x2={_WIDTH - _MARGIN} y1={_HEIGHT} y2={_HEIGHT} />")
    for value, text in ticks.items():
        if low <= np.log2(value) <= high:
            parts.append(f"<text x={x(float(np.log2(value))):.1f} y={_HEIGHT + 15}>{text}</text>")
    return (
        f"<div><p>{title} <small>{note}</small></p>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT + 20}' role=img>{''.join(parts)}</svg></div>"
    )
