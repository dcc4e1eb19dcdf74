"""How the report looks."""

STYLE = """
:root { --ink: #1d2733; --faint: #66727f; --line: #dfe4ea; --back: #f5f7f9; --card: #fff; --accent: #1f6f8b;
  --ok: #2c7a4b; --failed: #b3362b; --skipped: #8a6d1a; --usual: #e3ecf1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --faint: #98a4b0; --line: #2f3943; --back: #14191f;
  --card: #1b2229; --accent: #6cc0dc; --ok: #6fcf97; --failed: #ff8a7a; --skipped: #e0c060; --usual: #263541; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans",
  sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 + p.about { margin-bottom: 10px; } h2 { font-size: 18px; margin: 40px 0 10px; }
p.about { color: var(--faint); margin: 2px 0; overflow-wrap: anywhere; }
.warning { border-left: 4px solid var(--skipped); padding: 8px 12px; background: var(--card); margin: 14px 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 18px;
  min-width: 120px; }
.tile b { display: block; font-size: 26px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: 13px; }
.ok { color: var(--ok); } .failed { color: var(--failed); } .skipped, .pending { color: var(--skipped); }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
a { color: var(--accent); }
.card .picture { background: #000; display: flex; justify-content: center; height: 160px; }
.card img { height: 160px; max-width: 100%; object-fit: contain; display: block; }
.card div.text { padding: 10px 14px 12px; } .card h3 { font-size: 14px; margin: 0 0 4px; overflow-wrap: anywhere; }
.card ul { margin: 4px 0 0; padding-left: 18px; font-size: 13px; } .card small { color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; color: var(--faint); font-weight: 600; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th, td { padding: 7px 12px; vertical-align: top; } tbody tr + tr td { border-top: 1px solid var(--line); }
td { overflow-wrap: anywhere; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; overflow-wrap: normal; }
td.ok, td.failed, td.skipped, td.pending { white-space: nowrap; overflow-wrap: normal; }
td.why { min-width: 260px; width: 58%; } td.which { min-width: 180px; } td.why small { margin-top: 4px; }
td.case { min-width: 200px; width: 30%; }
td.notes { min-width: 240px; width: 42%; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort="ascending"] button::after { content: " \\25B2"; }
th[aria-sort="descending"] button::after { content: " \\25BC"; }
td.cut { min-width: 90px; color: var(--skipped); }
td img { height: 56px; display: block; border-radius: 4px; background: #000; }
td small { color: var(--faint); display: block; }
/* Paths may be long; the whole one shows under the cursor. */
small.path { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden;
  overflow-wrap: anywhere; }
.chart { width: 100%; min-width: 720px; display: block; padding: 8px; }
.chart text { fill: var(--ink); font-size: 13px; } .chart .organ { text-anchor: end; }
.chart .tick { text-anchor: middle; fill: var(--faint); font-size: 12px; }
.chart .value { text-anchor: end; font-size: 12px; font-variant-numeric: tabular-nums; }
.chart .missing { fill: var(--failed); font-size: 12px; }
.chart .grid { stroke: var(--line); } .chart .usual { fill: var(--usual); }
.chart .dot { fill-opacity: .85; stroke: var(--ink); stroke-opacity: .45; stroke-width: .7; }
.chart .outside { stroke: var(--failed); stroke-opacity: 1; stroke-width: 1.6; }
.chart .bar { fill-opacity: .9; } .chart .bar.outside { fill: var(--failed); stroke: none; }
.chart .median { stroke: var(--ink); stroke-width: 2; }
footer { color: var(--faint); font-size: 13px; margin-top: 40px; }
@media (max-width: 700px) {
  main { padding: 18px 12px 40px; } h1 { font-size: 21px; } .tile { min-width: 88px; padding: 8px 12px; }
  table, thead, tbody, tr, td { display: block; } th { display: none; }
  table.cases thead tr { display: flex; flex-wrap: wrap; gap: 8px 16px; padding: 10px 12px; }
  table.cases th { display: block; padding: 0; border: 0; text-align: left; } table.cases th.nosort { display: none; }
  tbody tr { padding: 10px 12px; } tbody tr + tr { border-top: 1px solid var(--line); }
  tbody tr + tr td { border-top: 0; } td, td.number { padding: 2px 0; text-align: left; }
  td.case, td.why, td.which, td.notes, td.cut { width: auto; min-width: 0; }
  td[data-label]:empty { display: none; } td[data-label]:not(.case)::before { content: attr(data-label) ": ";
    color: var(--faint); }
  td img { height: 90px; margin-bottom: 6px; } .chart { min-width: 640px; } }
@media print { :root { --ink: #000; --faint: #444; --line: #bbb; --back: #fff; --card: #fff; --accent: #1f6f8b;
    --ok: #2c7a4b; --failed: #b3362b; --skipped: #8a6d1a; --usual: #dde6ec; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { font-size: 11px; } main { max-width: none; padding: 0; } table, .card ul { font-size: 10px; }
  .panel { overflow: visible; } .chart { min-width: 0; } td.case, td.why, td.notes { min-width: 0; }
  .card, .panel > .chart, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""
