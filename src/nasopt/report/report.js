"use strict";
(function () {
  const root = document.documentElement;
  const holder = document.getElementById("figures");
  const figures = holder ? JSON.parse(holder.textContent) : [];
  const plot = (f) => document.getElementById("plot-" + f.name);

  function neutral() {
    const style = getComputedStyle(root), get = (name) => style.getPropertyValue(name).trim();
    const out = { "font.color": get("--ink"), "hoverlabel.bgcolor": get("--card"), "hoverlabel.bordercolor": get("--line"),
      "hoverlabel.font.color": get("--ink"), "modebar.color": get("--grey"), "modebar.activecolor": get("--ink"),
      "modebar.bgcolor": "rgba(0,0,0,0)" };
    for (const axis of ["xaxis", "yaxis"]) {
      out[axis + ".gridcolor"] = get("--grid");
      out[axis + ".linecolor"] = get("--line");
    }
    return out;
  }
  const repaint = () => figures.forEach((f) => Plotly.relayout(plot(f), neutral()));

  figures.forEach((f) => {
    Plotly.newPlot(plot(f), f.data, f.layout, { responsive: true, displaylogo: false,
      showSendToCloud: false, plotlyServerURL: "", topojsonURL: "none", // nothing leaves this page
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  });
  repaint();
  document.querySelectorAll("select[data-figure]").forEach((select) => {
    const f = figures.find((one) => one.name === select.dataset.figure);
    const change = () => {
      const option = f.menus[Number(select.dataset.menu)].options[Number(select.value)];
      Plotly.update(plot(f), option.traces, option.layout);
    };
    select.addEventListener("change", change);
    if (Number(select.value) !== f.menus[Number(select.dataset.menu)].chosen) change(); // a reload keeps the reader's choice
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((d) => { d.open = true; });
    root.classList.add("printing");
    repaint();
  });
  addEventListener("afterprint", () => {
    folded.forEach((d) => { d.open = false; });
    root.classList.remove("printing");
    repaint();
  });

  const order = (cell) => {
    const raw = cell.dataset.order;
    return raw === undefined ? cell.textContent.trim().toLowerCase() : raw === "" ? Infinity : Number(raw);
  };
  document.querySelectorAll("table.sortable th button").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th"), body = button.closest("table").tBodies[0];
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1, k = head.cellIndex;
      head.parentElement.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => {
        const x = order(a.cells[k]), y = order(b.cells[k]);
        if (x === Infinity || y === Infinity) return (x === Infinity) - (y === Infinity); // not measured: last, both ways
        return down * (x < y ? -1 : x > y ? 1 : 0);
      });
      body.append(...rows);
    });
  });
})();
