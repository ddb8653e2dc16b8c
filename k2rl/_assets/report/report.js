"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const COLOURS = ["#3b78d8", "#d9822b", "#2f9e6e", "#b04ab8", "#c94c4c", "#5d7f2a", "#2aa3b8", "#8a6d3b"];
const PAGE = 100;
const several = data.runs.length > 1;

/* What others wrote is text, also where it would turn lines around or move a terminal's cursor. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const LONE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
function visible(text) {
  const named = (c) => {
    const code = c.charCodeAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : "\u27e8U+" + code.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
  };
  return text.replace(HIDDEN, named).replace(LONE, named);
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) made.append(child instanceof Node ? child : visible(String(child)));
  }
  return made;
}

const show = (x, digits = 3) => (x === null || x === undefined ? "\u2013" : String(Number(x.toFixed(digits))));
const percent = (x) => (x === null || x === undefined ? "\u2013" : (100 * x).toFixed(1) + " %");
const time = (s) => (s < 90 ? s + " s" : s < 5400 ? Math.round(s / 60) + " min" : (s / 3600).toFixed(1) + " h");

/* --- charts ------------------------------------------------------------------------------------------- */

const drawn = [];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function datasets(chart) {
  const names = [...new Set(chart.series.map((s) => s.name))];
  const made = [];
  chart.series.forEach((series) => {
    const place = names.indexOf(series.name);
    const colour = COLOURS[(several && names.length === 1 ? series.run : place) % COLOURS.length];
    const label = several ? series.name + " (" + data.runs[series.run].name + ")" : series.name;
    const points = (ys) => series.x.map((x, n) => ({ x, y: ys[n] })).filter((p) => p.y !== null && p.y !== undefined);
    const common = { borderColor: colour, backgroundColor: colour, pointRadius: 0, spanGaps: true, tension: 0 };
    const few = series.x.length < 15 && !series.dashed;
    const dash = series.dashed ? [5, 4] : several && names.length > 1 ? [[], [7, 3], [2, 2]][series.run % 3] : [];
    made.push({ ...common, label: visible(label), data: points(series.y), borderWidth: chart.kind === "bars" ? 0 : 1.8,
      pointRadius: few ? 3 : 0, borderDash: dash, stack: several ? String(series.run) : "all" });
    if (series.low.length) {
      const bound = { ...common, borderWidth: 0, backgroundColor: colour + "2b", label: "" };
      made.push({ ...bound, data: points(series.low) }, { ...bound, data: points(series.high), fill: "-1" });
    }
  });
  return made;
}

function draw(canvas, chart) {
  const axis = { grid: { color: style("--line") }, ticks: { color: style("--faint"), maxTicksLimit: 8 } };
  const y = { ...axis, stacked: chart.kind === "bars" };
  if (chart.share) Object.assign(y, { suggestedMin: 0, suggestedMax: 1 });
  const title = { display: true, text: chart.x_title, color: style("--faint") };
  return new Chart(canvas, {
    type: chart.kind === "bars" ? "bar" : "line",
    data: { datasets: datasets(chart) },
    options: {
      animation: false,
      maintainAspectRatio: false,
      parsing: false,
      normalized: true,
      interaction: { mode: "nearest", axis: "x", intersect: false },
      scales: { x: { ...axis, type: "linear", title, stacked: chart.kind === "bars", offset: chart.kind === "bars" }, y },
      plugins: {
        legend: { labels: { color: style("--text"), boxWidth: 18, boxHeight: 2, filter: (item) => item.text !== "" } },
        tooltip: { filter: (item) => item.dataset.label !== "" },
      },
      datasets: { bar: { barPercentage: 1, categoryPercentage: 0.9 } },
    },
  });
}

function figure(chart) {
  const canvas = element("canvas", { role: "img", "aria-label": visible(chart.section + ": " + chart.title) });
  drawn.push({ canvas, chart, made: null });
  return element("figure", {}, element("figcaption", {}, chart.title, element("small", {}, chart.unit)),
    element("div", { class: "canvas" }, canvas));
}

function drawVisible() {
  for (const one of drawn) {
    if (!one.made && one.canvas.closest("section") && !one.canvas.closest("section").hidden) one.made = draw(one.canvas, one.chart);
  }
}

/* --- tables ------------------------------------------------------------------------------------------- */

function table(columns, rows, attributes = {}) {
  const numbers = columns.map((_, n) => rows.length > 0 && rows.every((row) => typeof row[n] === "number" || /^[+\u2013-]?[\d.]*( %)?$/.test(String(row[n]))));
  const cell = (tag) => (value, n) => element(tag, { class: numbers[n] ? "number" : null }, value);
  return element("table", attributes, element("thead", {}, element("tr", {}, columns.map(cell("th")))),
    element("tbody", {}, rows.map((row) => element("tr", {}, row.map(cell("td"))))));
}

function results() {
  const found = [];
  for (const run of data.runs) {
    const rows = Object.entries(run.results).map(([env, r]) => {
      const gain = 100 * (r.after["pass@1"] - r.before["pass@1"]);
      return [env, r.after.n, percent(r.before["pass@1"]), percent(r.after["pass@1"]), (gain > 0 ? "+" : "") + gain.toFixed(1),
        show(r.before.tokens, 1), show(r.after.tokens, 1)];
    });
    if (rows.length) {
      found.push(element("h2", {}, "Held-out tasks, before and after" + (several ? ": " + run.name : "")),
        table(["env", "tasks", "pass@1 before", "after", "gain", "tokens before", "after"], rows, { class: "narrow" }));
    }
    for (const [env, why] of Object.entries(run.left_out)) found.push(element("p", { class: "warn" }, env + " was left out: " + why));
  }
  return found;
}

function errors() {
  const rows = [];
  for (const chart of data.charts.filter((c) => c.section === "Errors")) {
    for (const series of chart.series) {
      const happened = series.x.filter((_, n) => series.y[n]);
      const row = [series.name, show(series.y.reduce((a, b) => a + (b || 0), 0), 1), happened[0], happened[happened.length - 1]];
      rows.push(several ? [data.runs[series.run].name, ...row] : row);
    }
  }
  const columns = ["kind", "count", "first iteration", "last"];
  return rows.length ? table(several ? ["run", ...columns] : columns, rows, { class: "narrow", id: "errors" }) : element("p", { id: "errors" }, "No errors.");
}

/* --- rollouts ------------------------------------------------------------------------------------------ */

const rollouts = data.groups.flatMap((group) => group.rollouts.map((rollout) => ({ group, rollout })));
const said = (rollout) => rollout.turns.filter((t) => t.source === "policy").map((t) => (t.pieces ? t.pieces.map((p) => p[0]).join("") : t.text)).join("\n");
const tone = (status) => (status === "correct" ? "good" : status === "wrong" || status === "malformed" ? "bad" : status === "ranked" ? "" : "warn");

function browser() {
  const filters = {};
  const options = (name, values) => {
    const chosen = element("select", { name, onchange: list }, element("option", { value: "" }, "all"), values.map((v) => element("option", { value: v }, v)));
    filters[name] = chosen;
    return element("label", {}, name, chosen);
  };
  const input = (name, type, more = {}) => {
    filters[name] = element("input", { name, type, oninput: list, ...more });
    return element("label", {}, name, filters[name]);
  };
  const distinct = (key) => [...new Set(rollouts.map(key))].sort((a, b) => (typeof a === "number" ? a - b : a < b ? -1 : 1));
  const body = element("tbody"), count = element("p", { class: "faint", id: "count" }), detail = element("div", { class: "detail", id: "detail" }, element("p", { class: "faint" }, "Choose a rollout."));
  const more = element("button", { type: "button", onclick: () => { shown += PAGE; fill(); } }, "more");
  let matching = [], shown = PAGE;

  function matches({ group, rollout }) {
    const is = (name, value) => !filters[name] || filters[name].value === "" || filters[name].value === String(value);
    const least = filters["reward at least"].value, most = filters["reward at most"].value, text = filters.text.value.toLowerCase();
    return is("run", data.runs[group.run].name) && is("env", group.env) && is("iteration", group.iteration) && is("verdict", rollout.status)
      && (least === "" || (rollout.reward !== null && rollout.reward >= Number(least)))
      && (most === "" || (rollout.reward !== null && rollout.reward <= Number(most)))
      && (text === "" || said(rollout).toLowerCase().includes(text) || group.prompt.some((m) => m.content.toLowerCase().includes(text)));
  }
  function list() {
    matching = rollouts.filter(matches);
    shown = PAGE;
    fill();
  }
  function fill() {
    body.replaceChildren(...matching.slice(0, shown).map((one) => row(one)));
    more.hidden = matching.length <= shown;
    count.textContent = matching.length + " of " + rollouts.length + " rollouts";
  }
  function row(one) {
    const { group, rollout } = one;
    const open = () => {
      body.querySelectorAll(".chosen").forEach((r) => r.classList.remove("chosen"));
      made.classList.add("chosen");
      opened(detail, group, rollout);
    };
    const made = element("tr", { tabindex: 0, onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); } },
      element("td", { class: "number" }, group.iteration), element("td", {}, group.env), element("td", { class: tone(rollout.status) }, rollout.status),
      element("td", { class: "number" }, show(rollout.reward, 2)), element("td", { class: "number" }, show(rollout.advantage, 2)),
      element("td", { class: "number" }, rollout.tokens), element("td", { class: "text" }, said(rollout).slice(0, 200)));
    return made;
  }
  const bar = element("div", { class: "filters" }, several ? options("run", data.runs.map((r) => r.name)) : null, options("env", distinct((r) => r.group.env)),
    options("iteration", distinct((r) => r.group.iteration)), options("verdict", distinct((r) => r.rollout.status)),
    input("reward at least", "number", { step: "any" }), input("reward at most", "number", { step: "any" }), input("text", "search", { placeholder: "in prompt or response" }));
  const head = element("thead", {}, element("tr", {}, ["iteration", "env", "verdict", "reward", "advantage", "tokens", "response"].map((c) => element("th", {}, c))));
  list();
  return [element("p", { class: "faint" }, "A sample of whole groups, over the run and its environments. `k2rl report RUN --rollouts` looks through all."), bar, count,
    element("div", { class: "browser" }, element("div", { class: "list" }, element("table", { id: "rollouts" }, head, body), more), detail)];
}

function opened(detail, group, rollout) {
  const parts = [];
  const facts = [["iteration", group.iteration], ["env", group.env], ["task", group.task.slice(0, 12)], ["k", rollout.k], ["verdict", rollout.status], ["score", show(rollout.score)],
    ["reward", show(rollout.reward)], ["advantage", show(rollout.advantage)], ["tokens", rollout.tokens + (rollout.budget ? " of " + rollout.budget : "")],
    ["temperature", show(rollout.temperature, 2)], ["weights", "version " + show(rollout.version, 0)], ["ended by", rollout.end]];
  parts.push(element("div", { class: "facts" }, facts.map(([name, value]) => element("span", {}, element("span", { class: "faint" }, name + " "), value))));
  if (rollout.detail) parts.push(element("h3", {}, "verdict"), element("pre", { class: tone(rollout.status), id: "verdict" }, rollout.detail));
  for (const message of group.prompt) parts.push(element("h3", {}, message.role === "user" ? "prompt" : message.role), element("pre", { class: "prompt" }, message.content));
  for (const turn of rollout.turns) {
    if (turn.source === "env") parts.push(element("h3", {}, "environment"), element("pre", { class: "env" }, turn.text));
    else parts.push(element("h3", {}, turn.pieces ? "response: the more coloured a token, the less likely it was" : "response"), response(turn));
  }
  if (group.answer) parts.push(element("h3", {}, "known answer"), element("pre", {}, group.answer));
  if (group.rollouts.length > 1) {
    parts.push(element("h3", {}, "its group"), element("div", { class: "siblings" }, group.rollouts.map((other) => element("button",
      { type: "button", "aria-pressed": String(other === rollout), onclick: () => opened(detail, group, other) }, other.k + ": " + (other.reward === null ? other.status : show(other.reward, 2))))));
  }
  if (group.critique) parts.push(...tournament(detail, group, rollout));
  detail.replaceChildren(...parts);
  detail.scrollTop = 0;
}

function response(turn) {
  if (!turn.pieces) return element("pre", { class: "response" }, turn.text);
  return element("pre", { class: "response" }, turn.pieces.map(([text, logprob]) => element("span",
    { style: "background: rgba(" + style("--unsure") + ", " + Math.min(0.75, -logprob / 5).toFixed(2) + ")", title: "log-prob " + show(logprob) }, text)));
}

function tournament(detail, group, rollout) {
  const { criteria, matches, scores } = group.critique;
  const byK = new Map(group.rollouts.map((r) => [r.k, r]));
  const go = (k) => element("button", { type: "button", "aria-pressed": String(k === rollout.k), onclick: () => opened(detail, group, byK.get(k)) }, k);
  const rows = [...matches].sort((a, b) => (b[0] === rollout.k || b[1] === rollout.k) - (a[0] === rollout.k || a[1] === rollout.k));
  const made = element("table", { id: "tournament" }, element("thead", {}, element("tr", {}, ["A", "B", "P(A), A first", "P(A), B first", "P(A)"].map((c) => element("th", {}, c)))),
    element("tbody", {}, rows.map(([a, b, first, second]) => element("tr", {}, element("td", {}, go(a)), element("td", {}, go(b)),
      [first, second, first === null || second === null ? null : (first + second) / 2].map((p) => element("td", { class: "number" }, p === null ? "no verdict" : show(p, 2)))))));
  const ranked = Object.entries(scores).sort((x, y) => (y[1] ?? -1) - (x[1] ?? -1)).map(([k, score]) => k + ": " + show(score, 2)).join("   ");
  return [element("h3", {}, "tournament by " + criteria.join(", ")), element("p", {}, "scores  " + ranked), made];
}

/* --- the page ------------------------------------------------------------------------------------------- */

function theme(name) {
  document.documentElement.dataset.theme = name;
  for (const one of drawn) {
    if (one.made) one.made.destroy();
    one.made = null;
  }
  drawVisible();
}

const sections = [];
function section(name, ...children) {
  const made = element("section", { hidden: true, role: "tabpanel", "aria-label": name }, ...children);
  sections.push([name, made]);
  main.append(made);
}

for (const run of data.runs) {
  const about = [run.iterations + " of " + run.planned + " iterations", time(run.seconds), "seed " + run.seed, run.model, run.objective, run.critic ? "with critic" : "without critic"];
  const state = run.state === "finished" ? null : element("strong", { class: "warn" }, run.state === "running" ? "still running  " : "stopped before its end  ");
  document.getElementById("runs").append(element("div", {}, element("span", { class: "name" }, run.name + "  "), state, element("span", { class: "faint" }, about.filter(Boolean).join(" \u00b7 ")),
    run.alarms.map((alarm) => element("p", { class: "alarm" }, alarm))));
}
for (const name of [...new Set(data.charts.map((chart) => chart.section))].filter((n) => n !== "Errors")) {
  section(name, name === "Learning" ? results() : null, element("div", { class: "charts" }, data.charts.filter((c) => c.section === name).map(figure)));
}
section("Errors", errors(), element("div", { class: "charts" }, data.charts.filter((c) => c.section === "Errors").map(figure)));
section("Rollouts", ...browser());
section("Recipe", ...data.runs.map((run) => [element("h2", {}, run.name), element("pre", {}, run.recipe)]).flat());

const tabs = sections.map(([name, made]) => element("button", { type: "button", role: "tab", onclick: () => choose(name) }, name));
function choose(name) {
  sections.forEach(([own, made], n) => {
    made.hidden = own !== name;
    tabs[n].setAttribute("aria-selected", String(own === name));
  });
  drawVisible();
}
document.getElementById("tabs").append(...tabs);
document.getElementById("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
choose(sections[0][0]);
})();
