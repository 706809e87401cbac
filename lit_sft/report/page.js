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

const plots = data.plots;
let plotViews = [];
const format = (value) =>
  Number.isNaN(value) ? "–"
  : value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential(2)
  : value.toLocaleString("en", Math.abs(value) < 1000 ? { maximumSignificantDigits: 4 } : { maximumFractionDigits: 0 });

/* Give everything drawn the colours of the page; a model's first tag names them by property. */
function paint() {
  const style = getComputedStyle(root);
  for (const document of Bokeh.documents)
    for (const model of document.all_models) {
      const names = Object.entries(model.tags[0] ?? {});
      if (names.length)
        model.setv(Object.fromEntries(names.map(([property, name]) =>
          [property, style.getPropertyValue(`--${name}`).trim()])));
    }
}

/* Say in all legends what the lines have nearest to a step; without one, what they have last. */
function tellNumbers(drawn, step) {
  drawn.get_model_by_name("pointer").setv({ visible: step != null, location: step ?? 0 });
  for (const line of document.querySelectorAll(".legend li")) {
    const source = drawn.get_model_by_id(line.querySelector("input").value.split(" ")[0]).data_source;
    const [x, y] = ["x", "y"].map((name) => source.get_column(name));
    let at = x.findLastIndex((_, i) => !Number.isNaN(y[i]));
    if (step != null)
      for (at = 0; at + 1 < x.length && Math.abs(x[at + 1] - step) <= Math.abs(x[at] - step);) at++;
    const place = step == null ? "last" : `step ${x[at].toLocaleString("en")}:`;
    line.querySelector(".number").textContent = at < 0 ? "" : `${place} ${format(y[at])}`;
  }
}

async function drawCharts() {
  const hosts = Object.fromEntries(plots.roots.map((id, i) => [id, `chart-${i}`]));
  const item = { docid: "plots", roots: hosts, root_ids: plots.roots };
  const [views] = await Bokeh.embed.embed_items({ plots: plots.document }, [item]);
  plotViews = plots.roots.map((id) => views.get_by_id(id));
  paint();
  const [drawn] = Bokeh.documents;
  const steps = drawn.get_model_by_name("steps");
  plotViews.forEach(({ frame }, i) => {
    const host = document.getElementById(`chart-${i}`);
    const point = (event) => tellNumbers(drawn, Math.min(steps.end, Math.max(steps.start,
      frame.x_scale.invert(event.clientX - host.getBoundingClientRect().left))));
    host.addEventListener("pointermove", point);
    host.addEventListener("pointerdown", point);
    host.addEventListener("pointerleave", (event) =>
      event.pointerType === "mouse" && tellNumbers(drawn, null));
    host.addEventListener("dblclick", () => steps.reset());
  });
  for (const box of document.querySelectorAll(".legend input"))
    box.addEventListener("change", () =>
      box.value.split(" ").forEach((id) => { drawn.get_model_by_id(id).visible = box.checked; }));
  if (matchMedia("(pointer: coarse)").matches)  // a finger that moves scrolls the page
    for (const model of drawn.all_models)
      if (model.type === "BoxZoomTool") model.active = false;
  root.dataset.drawn = Math.round(performance.now());
}

/* Lay out and draw at once: for paper, a browser waits for no frame of an animation. */
function onPaper(isOn) {
  root.classList.toggle("print", isOn);
  paint();
  for (const view of plotViews) {
    view.compute_layout();
    view.request_repaint();
    view.paint();
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
matchMedia("print").addEventListener("change", (event) => onPaper(event.matches));
addEventListener("beforeprint", () => onPaper(true));
addEventListener("afterprint", () => onPaper(false));

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
    const tone = verdict === "right" || verdict === "f1 1.000" ? "good" : "bad";
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
  const weighable = rows.filter((row) => row.given.some((x) => x?.[4])).length;
  document.getElementById("surely").hidden = !weighable;
  document.getElementById("surely").append(` (of ${weighable} rows)`);
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
if (plots.roots.length) drawCharts();
