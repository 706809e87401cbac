"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const make = (tag, props = {}, ...inner) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...inner);
  return node;
};
const unseen = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const show = (text) =>
  text.replace(unseen, (x) => "\\u" + x.charCodeAt(0).toString(16).padStart(4, "0"));

// Curves

const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const colour = (series) => `--c${series.colour % 8}`;
const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3]];
const FEW_POINTS = 60;
const format = (value) =>
  value == null ? "–"
  : value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential(2)
  : value.toLocaleString("en", { maximumSignificantDigits: 5 });

function lineOf(series, label, shown) {
  const last = (values) => values.findLast((x) => x != null);
  return {
    label,
    stroke: shown ? () => style(colour(series)) : "transparent",
    width: series.faint ? 1 : 2,
    alpha: series.faint ? 0.45 : 1,
    dash: DASHES[series.dash % DASHES.length],
    points: { show: shown && series.x.length < FEW_POINTS, size: 6, fill: () => style("--ground") },
    value: (plot, value, line, at) => at == null ? format(last(plot.data[line])) : format(value),
  };
}

function drawMarks(plot) {
  const { ctx, bbox } = plot, unit = devicePixelRatio;
  ctx.save();
  for (const [kind, steps] of Object.entries(data.marks)) {
    for (const step of steps) {
      const x = plot.valToPos(step, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      const height = kind === "evaluated" ? 6 * unit : bbox.height;
      ctx.strokeStyle = style({ evaluated: "--faint", resumed: "--c3", skipped: "--bad" }[kind]);
      ctx.lineWidth = unit;
      ctx.setLineDash(kind === "resumed" ? [4 * unit, 4 * unit] : []);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top + bbox.height);
      ctx.lineTo(x, bbox.top + bbox.height - height);
      ctx.stroke();
    }
  }
  ctx.restore();
}

function drawChart(chart) {
  const lines = [], tables = [], bands = [], owners = [];
  const add = (series, label, values, shown) => {
    lines.push(lineOf(series, label, shown));
    tables.push([series.x, values]);
    owners.push(series);
  };
  for (const series of chart.series) {
    add(series, series.label, series.y, true);
    if (series.low) {
      add(series, "95 % to", series.high, false);
      add(series, "95 % from", series.low, false);
      const fill = () => style(colour(series)) + "30";
      bands.push({ series: [lines.length - 1, lines.length], fill });
    }
  }
  const values = chart.series.flatMap((x) => x.y).filter((x) => x != null);
  const isLog = chart.scale === "log" && values.every((x) => x > 0);
  const range = chart.scale === "share" ? [0, 1]
    : isLog ? (plot, low, high) => [low / 1.3, high * 1.3]
    : (plot, low, high) => [Math.min(0, low), (high || 1) * 1.05];
  const axis = { stroke: () => style("--ink"), grid: { stroke: () => style("--line"), width: 1 },
                 ticks: { stroke: () => style("--line"), width: 1 } };
  const host = make("div");
  const unit = chart.unit ? ` (${chart.unit})` : "";
  const caption = make("figcaption", {}, chart.title, make("span", {}, unit));
  document.getElementById("charts").append(make("figure", {}, caption, host));
  const plot = new uPlot({
    width: host.clientWidth || 320,
    height: 220,
    padding: [8, 10, 0, 0],
    scales: { x: { time: false }, y: { distr: isLog ? 3 : 1, range } },
    axes: [{ ...axis, size: 34 }, { ...axis, size: 64, values: (u, ticks) => ticks.map((x) => x == null ? "" : format(x)) }],
    series: [{ label: "step", value: (u, x) => x == null ? "last" : x.toLocaleString("en") }, ...lines],
    bands,
    cursor: { sync: { key: "steps" } },
    legend: { markers: { stroke: (u, i) => i && lines[i - 1].stroke !== "transparent" ? `var(${colour(owners[i - 1])})` : "transparent", fill: () => "transparent", dash: (u, i) => i && lines[i - 1].dash.length ? "dashed" : "solid" } },
    hooks: { draw: [drawMarks] },
  }, uPlot.join(tables), host);
  plot.root.querySelector("canvas").setAttribute("role", "img");
  plot.root.querySelector("canvas").setAttribute("aria-label", `${chart.title} by step`);
  new ResizeObserver(() => {
    if (host.clientWidth !== plot.width) plot.setSize({ width: host.clientWidth, height: 220 });
  }).observe(host);
  return plot;
}

const plots = data.charts.map(drawChart);
const redraw = () => plots.forEach((plot) => plot.redraw(false, true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
const onPaper = (isOn) => { root.classList.toggle("print", isOn); redraw(); };
matchMedia("print").addEventListener("change", (event) => onPaper(event.matches));
addEventListener("beforeprint", () => onPaper(true));
addEventListener("afterprint", () => onPaper(false));
const SIGNS = { evaluated: "short ticks at the foot: evaluated", resumed: "dashed lines: resumed", skipped: "red lines: skipped" };
const signs = Object.keys(SIGNS).filter((kind) => data.marks[kind]?.length).map((kind) => SIGNS[kind]);
document.getElementById("marks").textContent =
  ["Point at a curve for its numbers, drag to zoom, double-click to zoom out", ...signs].join("; ") + ".";

// Answers

const { columns, rows, texts } = data.answers;
const PAGE = 25, MOST_CELLS = 1e6;
const FILTERS = {
  all: ["all", () => true],
  lost: ["lost", (row) => row.kind === "lost"],
  won: ["won", (row) => row.kind === "won"],
  wrong: ["still wrong", (row) => row.kind === "wrong"],
  right: ["right throughout", (row) => row.kind === "right"],
  unfinished: ["unfinished at last", (row) => row.given.findLast((x) => x)?.[1] === 0],
};

/* The words of a text, and whether each is in the longest common subsequence with another. */
function compareWords(before, after) {
  const one = before.split(/(\s+)/), two = after.split(/(\s+)/);
  if (one.length * two.length > MOST_CELLS) return two.map((word) => [word, true]);
  const width = two.length + 1;
  const lengths = new Uint32Array((one.length + 1) * width);
  for (let i = one.length - 1; i >= 0; i--)
    for (let j = two.length - 1; j >= 0; j--)
      lengths[i * width + j] = one[i] === two[j] ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
  const words = [];
  for (let i = 0, j = 0; j < two.length;) {
    if (i < one.length && one[i] === two[j]) { words.push([two[j], true]); i++; j++; }
    else if (i < one.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
    else words.push([two[j++], false]);
  }
  return words;
}

function textOf(text, before) {
  const node = make("p", { className: "text", dir: "auto" });
  if (before == null) return node.append(show(text)), node;
  let plain = "", marked = "";
  const flush = () => {
    if (marked) node.append(make("mark", {}, show(marked)));
    if (plain) node.append(show(plain));
    plain = marked = "";
  };
  for (const [word, isCommon] of compareWords(before, text)) {
    if (isCommon || !word.trim()) { if (marked) flush(); plain += word; }
    else { if (plain) flush(); marked += word; }
  }
  flush();
  return node;
}

/* An answer in whose tokens the model had more doubt, the stronger their colour is. */
function weighedText(tokens) {
  const node = make("p", { className: "text", dir: "auto" });
  for (let i = 0; i < tokens.length; i += 2) {
    const [piece, likely] = [tokens[i], tokens[i + 1]];
    const span = make("span", { title: `p = ${likely}` }, show(piece));
    const doubt = Math.round(40 * (1 - likely));
    if (doubt) span.style.background = `color-mix(in srgb, var(--c1) ${doubt}%, transparent)`;
    node.append(span);
  }
  return node;
}

function cardsOf(row, isWeighed) {
  const cards = [];
  row.given.forEach((given, i) => {
    if (!given) return;
    const last = cards.at(-1);
    const same = (part, n) => last.given.slice(0, n).join() === part.slice(0, n).join();
    if (last && same(given, isWeighed ? 5 : 4)) last.labels.push(columns[i]);
    else cards.push({ labels: [columns[i]], given });
  });
  let before = null;
  return cards.map(({ labels, given: [verdict, finished, output, cut, tokens] }) => {
    const tone = verdict === "right" ? "good" : "bad";
    const heading = make("h4", {}, `${labels.join(", ")}: `, make("span", { className: tone }, show(verdict)));
    if (!finished) heading.append(", unfinished");
    const card = make("div", {}, heading);
    if (output < 0) card.append(make("p", { className: "note" }, "The text was not kept."));
    else card.append(tokens && isWeighed ? weighedText(tokens) : textOf(texts[output], before));
    if (cut) card.append(make("p", { className: "note" }, `Cut here; the whole has ${cut.toLocaleString("en")} characters.`));
    before = output < 0 ? before : texts[output];
    return card;
  });
}

function articleOf(row, isWeighed) {
  const kind = make("span", { className: row.kind }, FILTERS[row.kind][0]);
  const reference = make("div", {}, make("h4", {}, "reference"), textOf(texts[row.reference]));
  return make("article", {},
    make("h3", {}, `row ${row.row}: `, kind),
    textOf(texts[row.question]),
    make("div", { className: "cards" }, reference, ...cardsOf(row, isWeighed)));
}

function showAnswers() {
  const list = document.getElementById("rows"), more = document.getElementById("more");
  const field = document.getElementById("search"), count = document.getElementById("count");
  const weighed = document.getElementById("weighed");
  document.getElementById("surely").hidden = !rows.some((row) => row.given.some((x) => x?.[4]));
  const plain = (text) => text.replace(/\s+/g, " ").toLowerCase();
  const folded = texts.map(plain);
  const textsOf = (row) => [row.question, row.reference, ...row.given.map((x) => x ? x[2] : -1)];
  let chosen = "all", found = [], shown = 0;
  const extend = () => {
    const next = found.slice(shown, shown + PAGE);
    list.append(...next.map((row) => articleOf(row, weighed.checked)));
    shown += next.length;
    more.hidden = shown >= found.length;
  };
  const update = () => {
    const wanted = plain(field.value.trim());
    found = rows.filter((row) => FILTERS[chosen][1](row) &&
      (!wanted || textsOf(row).some((number) => number >= 0 && folded[number].includes(wanted))));
    count.textContent = `${found.length} of ${rows.length} rows`;
    list.replaceChildren();
    shown = 0;
    extend();
  };
  for (const [name, [label, test]] of Object.entries(FILTERS)) {
    const input = make("input", { type: "radio", name: "filter", value: name, checked: name === chosen });
    input.addEventListener("change", () => { chosen = name; update(); });
    document.getElementById("filters").append(
      make("label", {}, input, ` ${label} (${rows.filter(test).length})`));
  }
  field.addEventListener("input", update);
  weighed.addEventListener("change", update);
  more.addEventListener("click", extend);
  update();
}

if (rows.length) showAnswers();
