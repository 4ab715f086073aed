"""How a report looks: light and dark, wide and narrow, and on paper."""

# Eight colours that people who do not see red and green apart can tell, in an order that keeps neighbours distinct.
LIGHT = ("#8a8f98", "#b07b2c", "#56a0d3", "#0b6fb8", "#d1495b", "#2e9e6b", "#7e57c2", "#c9a800")
DARK = ("#9aa0aa", "#d29a45", "#7dbcec", "#3d9be0", "#ef7583", "#4fc08d", "#a98be0", "#e0c341")


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(f"--k{i}:{colour};" for i, colour in enumerate(colours))


_CLASSES = "".join(
    f".c{i}{{fill:var(--k{i});background:var(--k{i})}}.s{i}{{stroke:var(--k{i})}}" for i in range(len(LIGHT))
)
_PAPER = f"--fg:#1b1f24;--dim:#5c6470;--bg:#fff;--card:#f6f7f9;--line:#d9dde3;--mark:#b3261e;{_colours(LIGHT)}"
_NIGHT = f"--fg:#e6e8eb;--dim:#a0a7b2;--bg:#14171b;--card:#1d2127;--line:#353b44;--mark:#ff8a80;{_colours(DARK)}"
_FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,sans-serif'
_CHARTS = f"""
svg text{{fill:var(--fg);font-size:12px}} svg text.tick{{fill:var(--dim);font-size:11px}}
svg text.marktext{{fill:var(--mark)}} svg text.value{{font-weight:600}}
svg .grid{{stroke:var(--line);stroke-width:1}} svg .mark{{stroke:var(--mark);stroke-width:1.5;stroke-dasharray:5 3}}
svg polyline{{fill:none;stroke-width:2;stroke-linejoin:round}}
{_CLASSES}
"""

# A chart that is a file of its own: a page that shows it gives it no colours and no ground.
SVG_CSS = f"""
svg{{{_PAPER}font-family:{_FONT}}} .ground{{fill:var(--bg)}}{_CHARTS}
svg text.head{{font-size:15px;font-weight:600}} svg text.part{{font-size:13px}}
"""

CSS = f"""
:root{{color-scheme:light dark;{_PAPER}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_NIGHT}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:20px 16px 48px;max-width:820px;background:var(--bg);color:var(--fg);
 font:16px/1.5 {_FONT}}}
h1{{font-size:1.5rem;line-height:1.3;margin:.2em 0 .4em}}
h2{{font-size:1.1rem;margin:0 0 .2em}}
p{{margin:.3em 0 .8em}} .dim,figcaption,.legend{{color:var(--dim);font-size:.9rem}}
.bad{{color:var(--mark);font-weight:600}}
section{{margin:22px 0;padding:14px 16px;background:var(--card);border:1px solid var(--line);border-radius:10px}}
figure{{margin:.6em 0}} svg{{display:block;width:100%;height:auto}}
.legend span{{display:inline-block;margin:0 1em .2em 0}}
.legend i{{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em;vertical-align:-1px}}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:.9rem;width:100%;font-variant-numeric:tabular-nums}}
th,td{{padding:.3em .6em;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}}
th:first-child,td:first-child{{text-align:left}} th{{color:var(--dim);font-weight:600;
 white-space:normal;vertical-align:bottom;line-height:1.25}}
td.text{{text-align:left;width:60%;white-space:normal;overflow-wrap:anywhere}}
{_CHARTS.strip()}
@media (max-width:520px){{body{{padding:12px 8px 32px}} section{{padding:10px 8px;border-radius:8px}}
 h1{{font-size:1.25rem}} svg text,svg text.tick{{font-size:17px}} th,td{{padding:.3em .4em}}}}
@media print{{body{{max-width:none;padding:0;font-size:13px}} .scroll{{overflow:visible}} th,td{{padding:.2em .35em}}
 section{{break-inside:avoid;background:none}}
 *{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}}}
"""
