"use strict";
// Without this script everything is shown. It adds: a menu of steps and splits, the values under a
// pointer or at the arrow keys, and zooming by dragging or by + and -. Nothing is ever requested.
const NS = "http://www.w3.org/2000/svg";
const LEFT = 58, TOP = 10, ACROSS = 350, DOWN = 230;
const element = (name, attributes, parent) => {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
};

for (const menu of document.querySelectorAll(".menu")) {
  const choices = [...menu.parentElement.querySelectorAll(".choice")];
  const distinct = (key) => [...new Set(choices.map((choice) => choice.dataset[key]))];
  const selects = {};
  for (const key of ["step", "split"]) {
    const label = document.createElement("label");
    const select = document.createElement("select");
    for (const value of [...distinct(key), "all"]) select.add(new Option(value, value));
    label.append(key + " ", select);
    menu.append(label);
    selects[key] = select;
  }
  const last = distinct("step").length - 1;
  selects.step.selectedIndex = last;
  selects.split.selectedIndex = distinct("split").length - 1;
  const show = () => {
    for (const choice of choices) {
      const shown = ["step", "split"].every(
        (key) => selects[key].value === "all" || selects[key].value === choice.dataset[key]);
      choice.classList.toggle("away", !shown);
    }
  };
  menu.addEventListener("change", show);
  menu.addEventListener("submit", (event) => event.preventDefault());
  menu.hidden = false;
  show();
}

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("role", "status");
document.body.append(tip);

// the cells of a line of CSV; those that hold a comma are quoted
const cells = (line) => [...`,${line}`.matchAll(/,("(?:[^"]|"")*"|[^,]*)/g)]
  .map(([, cell]) => cell.replace(/^"|"$/g, "").replaceAll('""', '"'));

for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg[data-x]");
  const text = figure.querySelector(".csv").textContent;
  const get = document.createElement("a");
  get.textContent = "download CSV";
  get.download = figure.querySelector("figcaption").textContent.replaceAll(/\W+/g, "-") + ".csv";
  get.href = "data:text/csv;charset=utf-8," + encodeURIComponent(text);
  figure.querySelector("details p").append(" · ", get);
  const rows = text.trimEnd().split("\n").map(cells);
  if (svg) plot(svg, rows);
  else pairs(figure.querySelector(".heatmap"), rows);
}

// of a heatmap: the pair under the pointer, and the next one at each arrow key
function pairs(svg, [names, ...rows]) {
  const n = rows.length;
  let at = null;
  function tell(i, j, clientX, clientY) {
    at = [i, j];
    const error = rows[i][j + 1 + n];
    show(`${rows[i][0]}, ${names[j + 1]}: ${rows[i][j + 1]}${error ? ` ± ${error}` : ""}`, clientX, clientY);
  }
  const hide = () => { tip.hidden = true; at = null; };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const cell = (client, start) => Math.floor((((client - start) * 382) / box.width - 78) / (300 / n));
    const [i, j] = [cell(event.clientY, box.top), cell(event.clientX, box.left)];
    if (i >= 0 && j >= 0 && i < n && j < n) tell(i, j, event.clientX, event.clientY);
    else hide();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    const [i, j] = at ? at.map((old, k) => Math.max(0, Math.min(n - 1, old + step[k]))) : [0, 0];
    const box = svg.getBoundingClientRect(), place = (k) => (78 + ((k + 0.5) * 300) / n) * box.width / 382;
    tell(i, j, box.left + place(j), box.top + place(i));
    event.preventDefault();
  });
}

function show(text, clientX, clientY) {
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = Math.max(0, Math.min(clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(0, Math.min(clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
}

function plot(svg, [names, ...rows]) {
  const log = svg.dataset.log === "1";
  const forth = (y) => (log ? Math.log10(y) : y), back = (y) => (log ? 10 ** y : y);
  const whole = { x: svg.dataset.x.split(",").map(Number), y: svg.dataset.y.split(",").map((y) => forth(+y)) };
  let view = structuredClone(whole);
  const inner = svg.querySelector(".plot"), axes = svg.querySelector(".axes"), drawn = axes.innerHTML;
  let at = -1;

  const pixel = (event) => {
    const box = svg.getBoundingClientRect();
    return [(event.clientX - box.left) * 420 / box.width - LEFT, (event.clientY - box.top) * 280 / box.height - TOP];
  };
  const xOf = (px) => view.x[0] + (px / ACROSS) * (view.x[1] - view.x[0]);
  const yOf = (py) => view.y[1] - (py / DOWN) * (view.y[1] - view.y[0]);
  const place = (x) => LEFT + ACROSS * (x - view.x[0]) / (view.x[1] - view.x[0]);

  function zoom(x, y) {
    view = { x, y };
    const scale = (value, [low, high], length) => length * (value - low) / (high - low);
    const left = scale(x[0], whole.x, ACROSS), right = scale(x[1], whole.x, ACROSS);
    const bottom = DOWN - scale(y[0], whole.y, DOWN), top = DOWN - scale(y[1], whole.y, DOWN);
    inner.setAttribute("viewBox", `${left} ${top} ${right - left} ${bottom - top}`);
    axes.replaceChildren();
    for (const tick of ticks(x[0], x[1])) {
      const px = place(tick);
      element("path", { class: "grid", d: `M${px} ${TOP}v${DOWN}` }, axes);
      element("text", { class: "x", x: px, y: TOP + DOWN + 16 }, axes).textContent = short(tick);
    }
    const marks = log ? ticks(y[0], y[1]).map((t) => +back(t).toPrecision(2)) : ticks(y[0], y[1]);
    for (const tick of marks) {
      const py = TOP + DOWN * (y[1] - forth(tick)) / (y[1] - y[0]);
      if (py < TOP || py > TOP + DOWN) continue;
      element("path", { class: "grid", d: `M${LEFT} ${py}h${ACROSS}` }, axes);
      element("text", { class: "y", x: LEFT - 6, y: py + 4 }, axes).textContent = short(tick);
    }
    hide();
  }
  function reset() {
    zoom(whole.x, whole.y);
    axes.innerHTML = drawn;
  }
  function by(factor) {
    const middle = at < 0 ? (view.x[0] + view.x[1]) / 2 : +rows[at][0];
    const x = view.x.map((end) => middle + (end - middle) / factor);
    if (x[0] <= whole.x[0] && x[1] >= whole.x[1]) reset();
    else zoom([Math.max(x[0], whole.x[0]), Math.min(x[1], whole.x[1])], view.y);
  }

  function tell(index, clientX, clientY) {
    hide();
    at = index;
    const row = rows[index];
    element("path", { class: "cursor", d: `M${place(+row[0])} ${TOP}v${DOWN}` }, svg);
    const said = names.map((name, i) => (row[i] ? `${name}: ${row[i]}` : "")).filter(Boolean);
    show(said.join("\n"), clientX, clientY);
  }
  function hide() {
    svg.querySelector(".cursor")?.remove();
    tip.hidden = true;
    at = -1;
  }
  const seen = () => rows.map((_, i) => i).filter((i) => +rows[i][0] >= view.x[0] && +rows[i][0] <= view.x[1]);

  let from = null, area = null;
  svg.addEventListener("pointerdown", (event) => {
    from = pixel(event);
    if (from[0] < 0 || from[0] > ACROSS) from = null;
  });
  svg.addEventListener("pointermove", (event) => {
    const [px, py] = pixel(event);
    if (from && event.buttons && event.pointerType === "mouse") {
      area?.remove();
      area = element("rect", { class: "area", x: LEFT + Math.min(px, from[0]), y: TOP,
        width: Math.abs(px - from[0]), height: DOWN }, svg);
      return;
    }
    const x = xOf(px), near = seen();
    if (!near.length) return;
    const distance = (i) => Math.abs(+rows[i][0] - x);
    tell(near.reduce((best, i) => (distance(i) < distance(best) ? i : best)), event.clientX, event.clientY);
  });
  svg.addEventListener("pointerup", (event) => {
    const to = pixel(event);
    area?.remove();
    area = null;
    if (from && event.pointerType === "mouse" && Math.abs(to[0] - from[0]) > 8) {
      const ends = [from[0], to[0]].map((px) => xOf(Math.max(0, Math.min(ACROSS, px))));
      zoom([Math.min(...ends), Math.max(...ends)], view.y);
    }
    from = null;
  });
  svg.addEventListener("pointerleave", () => { hide(); area?.remove(); area = from = null; });
  svg.addEventListener("dblclick", reset);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const near = seen(), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      const now = near.indexOf(at);
      const next = near[now < 0 ? (step > 0 ? 0 : near.length - 1) : Math.max(0, Math.min(near.length - 1, now + step))];
      const box = svg.getBoundingClientRect();
      if (next !== undefined) tell(next, box.left + place(+rows[next][0]) * box.width / 420, box.top + box.height / 3);
    } else if (event.key === "+" || event.key === "=") by(2);
    else if (event.key === "-") by(0.5);
    else if (event.key === "0" || event.key === "Escape") reset();
    else return;
    event.preventDefault();
  });
}

function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i <= high / step; i++) found.push(i * step);
  return found;
}
function short(value) {
  return String(+value.toPrecision(4));
}
