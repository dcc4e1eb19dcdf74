"""The report's page, for Jinja."""

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
{% if strays %} {{ strays }} file{{ 's' if strays > 1 }} of other kinds.{% endif %}</p>
<div class="warning">For research, not for clinical use. Every segmentation here was made by a program.</div>
{% if ended_early %}<div class="warning">The last run ended early. {{ ended_early }} Cases that are pending have no
result yet: the same command goes on with them.</div>{% endif %}
<div class="tiles">
{% for name, count in tiles %}<div class="tile"><b class="{{ name }}">{{ count }}</b><span>{{ name }}</span></div>
{% endfor %}{% if seconds %}<div class="tile"><b>{{ seconds }}</b><span>seconds a case (median)</span></div>{% endif %}
</div>

<h2>To check first</h2>
{% if first %}
<p class="about">{{ order }}</p>
<div class="cards">
{% for card in first %}<div class="card">
{% if card.picture %}<a class="picture" href="{{ card.large or card.picture }}"><img src="{{ card.picture }}"
alt="Axial and coronal plane"></a>{% endif %}
<div class="text"><h3>{{ card.rank }}. <a href="{{ card.link }}">{{ card.name }}</a></h3>
<small class="path" title="{{ card.source }}">{{ card.source }}</small>
<ul>{% for reason in card.reasons %}<li>{{ reason }}</li>{% endfor %}
{% if card.more %}<li>and {{ card.more }} more</li>{% endif %}</ul></div></div>
{% endfor %}</div>
{% if first_left %}
<p class="about">{{ first_left }} further cases give reason to look at them: the table of all cases has their ranks.</p>
{% endif %}
{% else %}<p class="about">Nothing stands out.</p>{% endif %}

{% for title, groups in (("Failures", failures), ("Skipped", skipped)) %}
<h2>{{ title }}</h2>
{% if groups %}<div class="panel"><table><thead><tr><th class="number">Cases</th><th>Why</th><th>Which</th></tr></thead>
<tbody>
{% for group in groups %}<tr><td class="number" data-label="Cases">{{ group.count }}</td>
<td class="why">{{ group.reason }}
{% if group.alike %}<small>The first one; the others differ in names or numbers.</small>{% endif %}</td>
<td class="which">{% for name, source in group.first %}{{ name }}
<small class="path" title="{{ source }}">{{ source }}</small>
{% endfor %}{% if group.more %}<small>and {{ group.more }} more, see all cases</small>{% endif %}</td></tr>
{% endfor %}</tbody></table></div>
{% else %}<p class="about">None.</p>{% endif %}
{% endfor %}

<h2>Organ volumes</h2>
{% if chart %}
<p class="about">{{ chart_says }}</p>
<div class="panel">{{ chart|safe }}</div>
{% else %}<p class="about">No case has results yet.</p>{% endif %}

<h2>All cases</h2>
<p class="about">All volumes are in <a href="{{ volumes }}">{{ volumes }}</a>. A click on a heading sorts.</p>
<div class="panel"><table class="cases"><thead><tr><th class="nosort"></th>
{% for heading, kind in (("Case", ""), ("State", ""), ("Slices", "number"), ("Seconds", "number"),
("To check", "number"), ("Cut off", ""), ("Notes", "")) %}
<th class="{{ kind }}" aria-sort="none"><button type="button">{{ heading }}</button></th>
{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr><td class="image">{% if row.picture %}<a href="{{ row.large or row.picture }}"><img
src="{{ row.picture }}" alt="Larger picture of {{ row.name }}"></a>{% endif %}</td>
<td class="case" data-label="Case">{% if row.link %}<a href="{{ row.link }}">{{ row.name }}</a>{% else %}{{ row.name }}
{% endif %}<small class="path" title="{{ row.source }}">{{ row.source }}</small>
{% if row.folder %}<small>cases/{{ row.folder }}</small>{% endif %}</td>
<td class="{{ row.status }}" data-label="State">{{ row.status }}</td>
<td class="number" data-label="Slices">{{ row.slices }}</td>
<td class="number" data-label="Seconds">{{ row.seconds }}</td>
<td class="number" data-label="To check">{{ row.rank }}</td>
<td class="cut" data-label="Cut off">{{ row.cut_off }}</td>
<td class="notes" data-label="Notes">{{ row.notes }}</td></tr>
{% endfor %}</tbody></table></div>
<footer>Volumes, labels and the log of each case lie in the folder cases, one folder for each; all states and reasons
are in cohort.sqlite.</footer>
</main>
<script>{{ script|safe }}</script>
</body>
</html>
"""

# Sorts the table by the column whose heading is clicked; empty cells come last either way.
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
