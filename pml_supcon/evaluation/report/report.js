"use strict";
// The report is complete without this script, which adds sorting, picking a class, and the picture under the pointer.

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, heads, column));
  });
}

function sort(table, heads, column) {
  const rising = heads[column].getAttribute("aria-sort") !== "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => {
    const { value } = row.cells[column].dataset;
    return { row, text: row.cells[column].textContent, value: value === undefined || value === "" ? null : Number(value) };
  });
  keyed.sort((a, b) => {
    if (column === 0) return (rising ? 1 : -1) * a.text.localeCompare(b.text, undefined, { numeric: true });
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // empty cells come last
    return (rising ? 1 : -1) * (a.value - b.value);
  });
  body.append(...keyed.map(({ row }) => row));
}

const holder = document.getElementById("map-data");
const maps = holder ? JSON.parse(holder.textContent).maps : [];

for (const element of document.querySelectorAll(".map")) {
  const data = maps[Number(element.dataset.map)];
  const shown = element.querySelector(".shown");
  const tile = shown.querySelector(".tile");
  let current = -1;
  shown.hidden = false;

  function show(plot, place) {
    current = place;
    const [x, y] = data.points[plot.dataset.method][place];
    const ring = plot.querySelector(".ring");
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    const column = place % data.columns, row = Math.floor(place / data.columns);
    tile.style.backgroundSize = `${100 * data.columns}% ${100 * data.rows}%`;
    tile.style.backgroundPosition = `${(100 * column) / Math.max(1, data.columns - 1)}% ${(100 * row) / Math.max(1, data.rows - 1)}%`;
    tile.classList.add(`atlas-${data.atlas}`);
    const name = data.classes[data.labels[place]];
    tile.setAttribute("aria-label", `test image ${data.indices[place]}, ${name}`);
    shown.querySelector(".what").textContent = name;
    shown.querySelector(".which").textContent = `test image ${data.indices[place]}`;
  }

  function nearest(plot, event) {
    const box = plot.querySelector("svg").getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 400, y = ((event.clientY - box.top) / box.height) * 400;
    const picked = element.querySelector('.legend button[aria-pressed="true"]');
    const only = picked ? Number(picked.dataset.class) : null;
    let best = -1, least = 40 * 40; // at most 40 units away
    data.points[plot.dataset.method].forEach(([px, py], place) => {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least && (only === null || data.labels[place] === only)) [best, least] = [place, distance];
    });
    return best;
  }

  for (const plot of element.querySelectorAll(".plot")) {
    const react = (event) => {
      const place = nearest(plot, event);
      if (place >= 0) show(plot, place);
    };
    plot.addEventListener("pointermove", react);
    plot.addEventListener("pointerdown", react);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step || !data.indices.length) return;
      event.preventDefault();
      show(plot, (current + step + data.indices.length) % data.indices.length);
    });
  }

  for (const item of element.querySelectorAll(".legend li")) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = item.title;
    button.dataset.class = item.dataset.class;
    button.setAttribute("aria-pressed", "false");
    button.append(...item.childNodes);
    item.append(button);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      element.querySelectorAll(".legend button").forEach((other) => other.setAttribute("aria-pressed", "false"));
      button.setAttribute("aria-pressed", String(on));
      element.querySelectorAll(".plane path").forEach((path) => {
        path.classList.toggle("dim", on && path.dataset.class !== button.dataset.class);
      });
    });
  }
}
