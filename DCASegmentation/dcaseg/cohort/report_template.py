"""The Jinja template of the report, its style sheet and its script."""

from __future__ import annotations

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
.swipe { display: none; }
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
td.case { min-width: 180px; width: 24%; }
td.notes { min-width: 220px; width: 40%; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort="ascending"] button::after { content: " \\25B2"; }
th[aria-sort="descending"] button::after { content: " \\25BC"; }
td.cut { min-width: 170px; width: 24%; color: var(--skipped); }
td img { height: 56px; display: block; border-radius: 4px; background: #000; }
td small { color: var(--faint); display: block; }
/* Long paths are cut; the tooltip shows the whole path. */
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
  td img { height: 90px; margin-bottom: 6px; } .chart { min-width: 640px; }
  .swipe { display: block; } }
@media print { :root { --ink: #000; --faint: #444; --line: #bbb; --back: #fff; --card: #fff; --accent: #1f6f8b;
    --ok: #2c7a4b; --failed: #b3362b; --skipped: #8a6d1a; --usual: #dde6ec; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { font-size: 11px; } main { max-width: none; padding: 0; } table, .card ul { font-size: 10px; }
  .panel { overflow: visible; } .chart { min-width: 0; } td.case, td.why, td.notes { min-width: 0; }
  .card, .panel > .chart, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style|safe }}</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="about">{{ source }}</p>
<p class="about">Model {{ model }}. Written {{ written }}.
{% if ignored_files %} {{ ignored_files }} other file{{ 's' if ignored_files > 1 }} ignored.{% endif %}</p>
<div class="warning">For research, not for clinical use. All segmentations in this report were made automatically.</div>
{% if ended_early %}<div class="warning">The last run ended early. {{ ended_early }} Pending cases have no result yet.
Run the same command again to resume.</div>{% endif %}
<div class="tiles">
{% for name, count in tiles %}<div class="tile"><b class="{{ name }}">{{ count }}</b><span>{{ name }}</span></div>
{% endfor %}
{% if seconds %}<div class="tile"><b>{{ seconds }}</b><span>seconds per case (median)</span></div>{% endif %}
</div>

<h2>Check first</h2>
{% if to_check %}
<p class="about">{{ order }}</p>
<div class="cards">
{% for card in to_check %}<div class="card">
{% if card.picture %}<a class="picture" href="{{ card.large or card.picture }}"><img src="{{ card.picture }}"
alt="Axial and coronal plane"></a>{% endif %}
<div class="text"><h3>{{ card.rank }}. <a href="{{ card.link }}">{{ card.name }}</a></h3>
<small class="path" title="{{ card.source }}">{{ card.source }}</small>
<ul>{% for reason in card.reasons %}<li>{{ reason }}</li>{% endfor %}
{% if card.more %}<li>and {{ card.more }} more</li>{% endif %}</ul></div></div>
{% endfor %}</div>
{% if more_to_check %}
<p class="about">{{ more_to_check }} more case{{ 's need' if more_to_check > 1 else ' needs' }} checking; the table of
all cases gives the rank.</p>
{% endif %}
{% else %}<p class="about">Nothing stands out.</p>{% endif %}

{% for title, groups in (("Failures", failures), ("Skipped", skipped)) %}
<h2>{{ title }}</h2>
{% if groups %}<div class="panel"><table><thead><tr><th class="number">Cases</th><th>Why</th><th>Which</th></tr></thead>
<tbody>
{% for group in groups %}<tr><td class="number" data-label="Cases">{{ group.count }}</td>
<td class="why">{{ group.reason }}
{% if group.alike %}<small>First case; the others differ in names or numbers.</small>{% endif %}</td>
<td class="which">{% for name, source in group.first %}{{ name }}
<small class="path" title="{{ source }}">{{ source }}</small>
{% endfor %}{% if group.more %}<small>and {{ group.more }} more, see the table of all cases</small>{% endif %}</td></tr>
{% endfor %}</tbody></table></div>
{% else %}<p class="about">None.</p>{% endif %}
{% endfor %}

<h2>Organ volumes</h2>
{% if chart %}
<p class="about">{{ chart_caption }}</p>
<p class="about swipe">Swipe left or right to see the whole chart.</p>
<div class="panel">{{ chart|safe }}</div>
{% else %}<p class="about">No case has results yet.</p>{% endif %}

<h2>All cases</h2>
<p class="about">All volumes are in <a href="{{ volumes }}">{{ volumes }}</a>. Click a heading to sort.</p>
<div class="panel"><table class="cases"><thead><tr><th class="nosort"></th>
{% for heading, kind in headings %}
<th class="{{ kind }}" aria-sort="none"><button type="button">{{ heading }}</button></th>
{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr><td class="image">{% if row.picture %}<a href="{{ row.large or row.picture }}"><img
src="{{ row.picture }}" alt="Larger picture of {{ row.name }}"></a>{% endif %}</td>
<td class="case" data-label="Case">{% if row.link %}<a href="{{ row.link }}">{{ row.name }}</a>{% else %}{{ row.name }}
{% endif %}<small class="path" title="{{ row.source }}">{{ row.source }}</small>
{% if row.folder %}<small>cases/{{ row.folder }}</small>{% endif %}</td>
<td class="{{ row.status }}" data-label="Status">{{ row.status }}</td>
{% if has_slices %}<td class="number" data-label="Slices">{{ row.slices }}</td>
{% endif %}
<td class="number" data-label="Seconds">{{ row.seconds }}</td>
<td class="number" data-label="Check rank">{{ row.rank }}</td>
<td class="cut" data-label="Cut off">{{ row.cut_off }}</td>
<td class="notes" data-label="Notes">{{ row.notes }}</td></tr>
{% endfor %}</tbody></table></div>
<footer>The cases folder contains the volumes, labels and log of each case. The file cohort.sqlite contains the status
of every case and its reason.</footer>
</main>
<script>{{ script|safe }}</script>
</body>
</html>
"""

# Sorts the table by the clicked column. Empty cells come last in both directions.
SORTING = """
for (const head of document.querySelectorAll("table.cases th button")) {
  head.addEventListener("click", () => {
    const cell = head.parentElement, column = cell.cellIndex, body = cell.closest("table").tBodies[0];
    const rising = cell.getAttribute("aria-sort") !== "ascending", isNumber = cell.classList.contains("number");
    for (const other of cell.parentElement.cells)
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    cell.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = row => row.cells[column].textContent.trim();
    const rows = [...body.rows].sort((one, two) => {
      const a = value(one), b = value(two);
      if (!a || !b) return !a - !b;
      const order = isNumber ? parseFloat(a) - parseFloat(b) : a.localeCompare(b, undefined, { numeric: true });
      return rising ? order : -order;
    });
    body.append(...rows);
  });
}
"""
