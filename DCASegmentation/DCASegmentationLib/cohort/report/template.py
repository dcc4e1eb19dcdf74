"""The report's page, for Jinja."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
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
{% if card.picture %}<div class="picture"><img src="{{ card.picture }}" alt="Axial and coronal plane"></div>{% endif %}
<div class="text"><h3>{{ card.rank }}. {{ card.name }}</h3>
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
{% for group in groups %}<tr><td class="number">{{ group.count }}</td>
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
<div class="panel"><table><thead><tr><th></th><th>Case</th><th>State</th><th class="number">Slices</th>
<th class="number">Seconds</th><th class="number">To check</th><th>Notes</th></tr></thead><tbody>
{% for row in rows %}<tr><td>{% if row.picture %}<img src="{{ row.picture }}" alt="">{% endif %}</td>
<td class="case">{{ row.name }}<small class="path" title="{{ row.source }}">{{ row.source }}</small>
{% if row.folder %}<small>cases/{{ row.folder }}</small>{% endif %}</td>
<td class="{{ row.status }}">{{ row.status }}</td>
<td class="number">{{ row.slices }}</td><td class="number">{{ row.seconds }}</td><td class="number">{{ row.rank }}</td>
<td class="notes">{{ row.notes }}</td></tr>
{% endfor %}</tbody></table></div>
<footer>Volumes, labels and the log of each case lie in the folder cases, one folder for each; all states and reasons
are in cohort.sqlite.</footer>
</main>
</body>
</html>
"""
