// The page of several results: their points in one picture, and a search among the layers.
"use strict";
(function () {
  const { data, byId, all, known, draw, widthOf, scaleOf, axisOf, axesOf, shown, frontOf, stepOf, errorBars, errorsOf, PAPER, STAR, whenSeen } = MPQ;
  const axes = axesOf(data.points, data.resources, data);
  const runs = [...new Set(data.points.map((p) => p.run))];
  const COLORS = [1, 2, 3, 4, 5, 6].map((k) => "var(--r" + k + ")"), DASHES = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3]];
  const SHAPES = [STAR, "square", "diamond", "triangle-up", "cross", "circle"];
  const cycled = (values) => runs.map((_, k) => values[k % values.length]);
  const state = { x: "cost:" + data.axis, y: axes.measured && data.points.every((p) => p.kind === "uniform" || known(p.measured)) ? "measured" : "loss" };

  // A value under the name and in the unit that it has in its run.
  const tipOf = (axis, p) => ({ [axis.nameOf ? axis.nameOf(p) : axis.title]: shown(axis.unitOf ? { ...axis, unit: axis.unitOf(p) } : axis, axis.of(p), axis.error ? axis.error(p) : null) });

  function drawRuns() {
    const ax = axes[state.x], ay = axes[state.y];
    const rows = data.points.filter((p) => p.kind !== "uniform").map((p) => ({ x: ax.of(p), y: ay.of(p), run: p.run, kind: p.kind, errors: errorsOf(p, ax, ay), tip: { run: p.run, point: p.label, ...tipOf(ax, p), ...tipOf(ay, p) } })).filter((r) => known(r.x) && known(r.y));
    if (!rows.length) return;
    const sx = scaleOf(rows.map((r) => r.x)), sy = scaleOf(rows.map((r) => r.y));
    const x = { field: "x", type: "quantitative", scale: sx, axis: axisOf(ax.title, ax.unit, rows.map((r) => r.x), sx) };
    const y = { field: "y", type: "quantitative", scale: sy, axis: axisOf(ay.title, ay.unit, rows.map((r) => r.y), sy) };
    const color = { field: "run", type: "nominal", scale: { domain: runs, range: cycled(COLORS) }, legend: { columns: widthOf("runs") < 520 ? 1 : 2 } };
    const lines = runs.flatMap((run) => frontOf(rows.filter((r) => r.run === run && r.kind === "frontier"), ax, ay));
    const layer = [
      { data: { values: lines }, mark: { type: "line", interpolate: stepOf(ax), strokeWidth: 1.8 }, encoding: { x: x, y: y, color: color, strokeDash: { field: "run", type: "nominal", scale: { domain: runs, range: cycled(DASHES) } } } },
      ...errorBars(rows, x, y, color),
      { data: { values: rows.filter((r) => r.kind === "frontier") }, mark: { type: "point", filled: true, size: 45, opacity: 1 }, encoding: { x: x, y: y, color: color, tooltip: { field: "tip" } } },
      { data: { values: rows.filter((r) => r.kind === "answer") }, mark: { type: "point", filled: true, size: 190, opacity: 1, stroke: PAPER, strokeWidth: 1 }, encoding: { x: x, y: y, color: color, shape: { field: "run", type: "nominal", scale: { domain: runs, range: cycled(SHAPES) } }, tooltip: { field: "tip" } } },
    ];
    draw("runs", { width: widthOf("runs") - 20, height: 400, autosize: { type: "fit", contains: "padding" }, layer: layer });
  }

  function fillAxes() {
    for (const [id, key] of [["axis-x", "x"], ["axis-y", "y"]]) {
      const select = byId(id);
      for (const [name, axis] of Object.entries(axes)) select.append(new Option(axis.title, name));
      if (!axes[state[key]]) state[key] = Object.keys(axes)[0];
      select.value = state[key];
      select.addEventListener("change", () => { state[key] = select.value; drawRuns(); });
    }
  }

  function filter() {
    const text = byId("search").value.trim().toLowerCase(), only = byId("differing").checked;
    let count = 0;
    const rows = all("#layers [data-layer]");
    rows.forEach((row) => {
      const hit = row.firstElementChild.textContent.toLowerCase().includes(text) && (!only || "differs" in row.dataset);
      row.hidden = !hit;
      count += hit ? 1 : 0;
    });
    byId("found").textContent = text || only ? count + " of " + rows.length + " layers" : "";
  }

  whenSeen(() => {
    byId("search").addEventListener("input", filter);
    byId("differing").addEventListener("change", filter);
    if (data.points.length) {
      fillAxes();
      drawRuns();
    }
  }, () => { if (data.points.length) drawRuns(); });
})();
