// The report's page at work: live charts in the place of their pictures, tables that sort, commands that copy.
"use strict";

for (const table of document.querySelectorAll("table")) makeSortable(table);
for (const shell of document.querySelectorAll(".shell")) makeCopyable(shell);
window.drawn = drawAll();
window.drawn.then(() => { document.documentElement.dataset.drawn = "true"; });

async function drawAll() {
  const first = document.querySelector(".figures");
  if (first) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "In the figures: point at a mark for its numbers; click an entry of a legend to single it out, "
      + "another to add it, and again to take it away.";
    first.before(hint);
  }
  for (const place of document.querySelectorAll(".chart")) {
    try {
      await draw(place);
    } catch (error) {
      console.error(`chart ${place.dataset.chart}: ${error}`); // its picture stays
    }
  }
}

async function draw(place) {
  const name = place.dataset.chart;
  const specification = JSON.parse(document.getElementById(`chart-${name}`).textContent);
  const live = document.createElement("div");
  live.className = "live";
  const { view } = await vegaEmbed(live, specification, {
    ast: true, // expressions are interpreted: no code is made from strings, and the page's policy forbids it
    renderer: "svg",
    actions: false,
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true, theme: "report" },
  });
  const svg = live.querySelector("svg");
  svg.setAttribute("aria-label", place.dataset.title);
  place.replaceChildren(live);
  if (specification.params) makeLegendKeyed(svg);
  const links = place.parentElement.querySelector(".files");
  links.append(download("SVG", () => view.toSVG().then((text) => URL.createObjectURL(
    new Blob([text], { type: "image/svg+xml" }))), `${name}.svg`));
  links.append(download("PNG", () => view.toImageURL("png", 3), `${name}.png`));
}

function makeLegendKeyed(svg) { // Vega's legends hear the pointer alone
  const labels = [...svg.querySelectorAll(".role-legend-label text")];
  [...svg.querySelectorAll(".role-legend-symbol path")].forEach((symbol, place) => {
    symbol.setAttribute("tabindex", "0");
    symbol.setAttribute("role", "button");
    symbol.setAttribute("aria-label", `single out ${labels[place].textContent}`);
    symbol.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      symbol.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    });
  });
}

function download(text, address, name) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", async () => {
    const link = document.createElement("a");
    link.href = await address();
    link.download = name;
    link.click();
  });
  return button;
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  if (!body || body.rows.length < 2) return;
  [...body.rows].forEach((row, place) => { row.dataset.place = place; });
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("num");
      const first = numeric ? "descending" : "ascending"; // of numbers, the largest are looked for
      const second = numeric ? "ascending" : "descending";
      const now = head.getAttribute("aria-sort");
      const next = now === first ? second : now === second ? null : first; // the third click restores the order
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      body.append(...[...body.rows].sort(order(column, numeric, next)));
    });
  });
}

function order(column, numeric, direction) {
  const place = (row) => Number(row.dataset.place);
  if (!direction) return (a, b) => place(a) - place(b);
  const sign = direction === "ascending" ? 1 : -1;
  const key = (row) => {
    const text = row.cells[column].textContent.trim();
    return numeric ? number(text) : text === "–" ? null : text;
  };
  return (a, b) => {
    const [one, two] = [key(a), key(b)];
    if (one === null || two === null) return (one === null) - (two === null) || place(a) - place(b); // nothing comes last
    const difference = numeric ? (one === two ? 0 : one < two ? -1 : 1) : one.localeCompare(two, "en", { numeric: true });
    return sign * difference || place(a) - place(b);
  };
}

function number(text) { // of "38.37 [38.2, 38.5]" the 38.37; an overflow is above every number
  if (text === "overflow") return Infinity;
  const found = /^-?[\d,]+(?:\.\d+)?(?:e-?\d+)?/.exec(text);
  if (!found) return null;
  const unit = text.endsWith("GiB") ? 1024 : 1;
  return Number(found[0].replaceAll(",", "")) * unit;
}

function makeCopyable(shell) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const code = shell.querySelector("code");
    getSelection().selectAllChildren(code); // stays as a way to copy by hand where the browser refuses
    button.textContent = await navigator.clipboard.writeText(code.textContent.trimEnd()).then(
      () => "Copied", () => "Selected: press Ctrl+C");
    setTimeout(() => { button.textContent = "Copy"; }, 2500);
  });
  shell.append(button);
}
