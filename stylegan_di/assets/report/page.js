"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

function short(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));
}

function fill(table, titles, rows) {
  if (titles) {
    const line = table.createTHead().insertRow();
    for (const title of titles) line.append(make("th", title));
  }
  const body = table.createTBody();
  for (const cells of rows) {
    const line = body.insertRow();
    cells.forEach((cell, index) => {
      const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
      line.append(make(index ? "td" : "th", text, kind));
    });
  }
}

function showHead() {
  document.title = data.name;
  find("#name").textContent = data.name;
  find("#state").textContent = data.state;
  find("#verdict").textContent = data.verdict;
  find("#verdict").className = data.tone;
  for (const [name, text] of Object.entries(data.facts)) {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", text));
    find("#facts").append(pair);
  }
  find("#left-out").textContent = data.left_out.join(" ");
  find("#left-out").hidden = !data.left_out.length;
}

function showPictures() {
  const [start, ...later] = data.pictures;
  find("#pictures").hidden = !start;
  if (!start) return;
  const stage = find(".stage"), split = find("#split"), moment = find("#moment");
  const before = find("#before"), after = find("#after");
  before.onload = () => stage.classList.toggle("sharp", before.naturalWidth < 800);
  before.src = start.src;
  const slide = () => stage.style.setProperty("--at", split.value + "%");
  const choose = () => {
    const chosen = later[moment.value - 1] ?? start;
    after.src = chosen.src;
    const text = chosen.start ? "start" : `kimg ${chosen.kimg}`;
    after.alt = `Pictures at ${text}`;
    find("#when").textContent = find("#moment-text").textContent = text;
  };
  split.value = sessionStorage.getItem(data.name) ?? 50;
  moment.max = moment.value = later.length;
  find(".moment").hidden = later.length < 2;
  if (!later.length) split.value = 100;
  stage.classList.toggle("alone", !later.length);
  split.addEventListener("input", () => {
    sessionStorage.setItem(data.name, split.value);
    slide();
  });
  moment.addEventListener("input", choose);
  slide();
  choose();
}

function showFigures() {
  find("#figures").hidden = !data.figures.length;
  fill(find("#figures table"), ["metric", "before", "now", ""], data.figures.map((row) => {
    const judged = row.better === undefined ? ["", ""] : row.better ? ["better", "good"] : ["worse", "bad"];
    return [row.name, short(row.before), short(row.now), judged];
  }));
}

function showPrevious() {
  const previous = data.previous;
  find("#previous").hidden = !previous;
  if (!previous) return;
  const same = previous.changes.length ? "" : ". No option has changed.";
  find("#previous .note").textContent = `Compared with ${previous.name}${same}`;
  if (previous.changes.length)
    fill(find(".changes"), ["option", "then", "now"], previous.changes.map((row) => [row.name, row.then || "–", row.now || "–"]));
  if (previous.figures.length)
    fill(find(".results"), ["metric", "then", "now"], previous.figures.map((row) => [row.name, short(row.then), short(row.now)]));
}

function showOptions() {
  const row = (option) => [option.name, option.value || "–", [option.help, "help"]];
  const own = data.options.filter((option) => option.own), rest = data.options.filter((option) => !option.own);
  fill(find("#options > .scroll table"), null, own.map(row));
  find("summary").textContent = `${rest.length} options at their defaults`;
  fill(find("details table"), null, rest.map(row));
}

let plots = [];

// Below a chart stand the values under the pointer, else the newest.
function showLast(plot) {
  plot.setLegend({ idx: plot.data[0].length - 1 });
}

function showCurves() {
  const grid = find("#curves .grid"), style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  for (const { plot, watch } of plots) { watch.disconnect(); plot.destroy(); }
  grid.replaceChildren();
  plots = [];
  find("#curves").hidden = !data.charts.length;
  for (const chart of data.charts) {
    const box = make("div", undefined, "chart");
    box.append(make("h3", chart.title), make("p", chart.note));
    grid.append(box);
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "11px system-ui, sans-serif" };
    const width = () => box.clientWidth - 32;
    const few = chart.kimg.length < 40;
    const plot = new uPlot({
      width: width(), height: 190,
      cursor: { sync: { key: "kimg" }, points: { size: 6 } },
      scales: {
        x: { time: false },
        y: chart.log ? { distr: 3, range: (_, low, high) => uPlot.rangeLog(low, high, 10, false) } : {},
      },
      hooks: { setCursor: [(self) => { if (self.cursor.left < 0) showLast(self); }] },
      axes: [axis, { ...axis, size: 58, values: (_, marks) => marks.map((mark) => mark === null ? "" : short(mark)) }],
      series: [
        { label: "kimg", value: (_, value) => short(value) },
        ...chart.curves.map((curve, index) => ({
          label: curve.name, stroke: colour(`--c${index % 6}`), width: 1.75, spanGaps: true,
          points: { show: few, size: 5 }, value: (_, value) => short(value),
        })),
      ],
    }, [chart.kimg, ...chart.curves.map((curve) => curve.values)], box);
    showLast(plot);
    const watch = new ResizeObserver(() => plot.setSize({ width: width(), height: 190 }));
    watch.observe(box);
    plots.push({ plot, watch });
  }
}

// While the run goes on, the page looks for a newer one of itself, unless somebody has just touched it.
function keepUp() {
  if (data.state !== "running") return;
  let touched = false;
  for (const kind of ["pointermove", "keydown", "scroll"]) addEventListener(kind, () => { touched = true; }, { passive: true });
  const look = () => {
    if (!touched && !document.hidden) location.reload();
    touched = false;
    setTimeout(look, 60000);
  };
  setTimeout(look, 60000);
}

showHead();
showPictures();
showFigures();
showPrevious();
showCurves();
showOptions();
keepUp();
find("main").setAttribute("aria-busy", "false");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showCurves);
