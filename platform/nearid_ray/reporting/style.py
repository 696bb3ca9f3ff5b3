"""The page's style sheet."""

STYLE = """
:root { --ink: #1d242c; --soft: #56616d; --rule: #dfe3e8; --wash: #f6f8fa; --win: #1e7a4c; --lose: #b3372f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 "Source Sans 3", "Segoe UI", Roboto,
  "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.1rem); line-height: 1.2; margin: 0 0 .4em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.4em 0 .5em; padding-top: .6em; border-top: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 1.5em 0 .4em; }
p { margin: .5em 0; max-width: 78ch; }
.lead { color: var(--soft); }
.statement { background: #fff8e6; border-left: 4px solid #d9a514; padding: .6em 1em; margin: 1em 0; max-width: none; }
.statement p { max-width: 100ch; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 200px), 1fr)); gap: 12px;
  margin: 1.4em 0; }
.number { border: 1px solid var(--rule); border-radius: 6px; padding: .7em .9em; }
.number b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.number span { color: var(--soft); font-size: .88rem; display: block; }
.scroll { overflow-x: auto; max-width: 100%; margin: .8em 0; border: 1px solid var(--rule); border-radius: 6px; }
.scroll:focus-visible { outline: 2px solid #1f5f99; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; width: 100%; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .34em .6em; text-align: right; white-space: nowrap; border-top: 1px solid var(--rule); }
thead th { border-top: 0; border-bottom: 1px solid #b9c1ca; vertical-align: bottom; background: var(--wash); }
th.first { text-align: left; position: sticky; left: 0; background: #fff; border-right: 1px solid var(--rule); }
thead th.first { background: var(--wash); }
tr.group th, tr.group td { background: #eef3f8; font-weight: 600; }
tr.group td small { font-weight: 400; }
tbody tr:first-child > * { border-top: 0; }
th.text, td.text { text-align: left; }
th.top { vertical-align: top; }
tr.starts > * { border-top-color: #b9c1ca; }
td small, th small { display: block; color: var(--soft); font-weight: 400; font-size: .78rem; }
td.edge, th.edge { border-left: 1px solid var(--rule); }
td.edge:nth-child(2), th.edge:nth-child(2), tr:last-child > th.edge:first-child { border-left: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 22px; }
figure { margin: 1em 0; min-width: 0; }
figure svg { display: block; width: 100%; max-width: 560px; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5em; max-width: 78ch; }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.1em; font-size: .88rem; margin: .2em 0 .6em; padding: 0;
  list-style: none; }
.legend i { display: inline-block; width: .85em; height: .85em; margin-right: .4em; border-radius: 2px;
  vertical-align: -.08em; }
.legend i.hollow { border: 2px solid; }
.legend i.dashed { border-top: 2px dashed; width: 1.3em; height: 0; vertical-align: .25em; border-radius: 0; }
.gaps { font-size: .9rem; font-weight: 400; padding-left: 1.2em; margin: .4em 0; }
.gaps.lose { font-weight: 400; }
td small b { color: var(--ink); }
.tuple { border: 1px solid var(--rule); border-radius: 6px; padding: .8em 1em; margin: 1em 0; }
.tuple h3 { margin: 0 0 .5em; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 150px), 1fr)); gap: 12px 10px; }
.picture { margin: 0; font-size: .8rem; }
.picture img { display: block; width: 100%; height: auto; border-radius: 4px; border: 3px solid var(--rule);
  background: var(--wash); }
.picture.anchor img { border-color: #1d242c; }
.picture.positive img { border-color: #1f5f99; }
.picture figcaption { font-size: .8rem; margin-top: .3em; color: var(--ink); line-height: 1.35; }
.picture dl { margin: .15em 0 0; font-size: .74rem; display: grid;
  grid-template-columns: minmax(0, 1fr) auto; gap: 0 .5em; }
.picture dt { color: var(--soft); }
.picture dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.win { color: var(--win); }
.lose { color: var(--lose); font-weight: 600; }
.facts { display: grid; grid-template-columns: minmax(7em, max-content) minmax(0, 1fr); gap: .25em 1.2em;
  margin: .6em 0; font-size: .92rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; }
code, pre { font: .86rem/1.5 ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--wash); border: 1px solid var(--rule); border-radius: 6px; padding: .7em .9em; overflow-x: auto;
  overflow-wrap: normal; margin: .6em 0; }
details { margin: .6em 0; }
summary { cursor: pointer; font-weight: 600; }
footer { color: var(--soft); font-size: .88rem; padding-top: 2em; padding-bottom: 3em; }
@media (max-width: 520px) {
  main, header, footer { padding-left: 14px; padding-right: 14px; }
  .facts { grid-template-columns: minmax(0, 1fr); }
  .facts dd { margin-bottom: .5em; }
  .tuple { padding: .7em; }
  table { font-size: .82rem; }
  th, td { padding: .3em .45em; }
}
@media print {
  .scroll { overflow: visible; }
  figure, .tuple { break-inside: avoid; }
}
"""
