// The page of compared recipes: what every search loses, beside the default.
"use strict";
(function () {
  const { data, known, plain, amount, draw, widthOf, scaleOf, axisOf, SOFT, whenSeen } = MPQ;

  function drawLosses(within, place) {
    const id = "losses-" + place, width = widthOf(id);
    const rows = within.rows.filter((r) => r.loss > 0).map((r) => ({ ...r, kind: r.name === "default" ? "default" : "recipe", low: known(r.error) ? Math.max(r.loss - r.error, r.loss / 20) : null, high: known(r.error) ? r.loss + r.error : null, tip: { search: r.name, loss: plain(r.loss) + (known(r.error) ? " ± " + plain(r.error, 2) : "") + " " + data.unit, "of the default's": within.default > 0 ? plain(r.loss / within.default) + " ×" : "–", "whole search": amount(r.seconds, "seconds") } }));
    if (!rows.length) return;
    const values = rows.flatMap((r) => [r.loss, r.low, r.high]), scale = scaleOf(values);
    const x = { field: "loss", type: "quantitative", scale: scale, axis: axisOf("loss", data.unit, values, scale) };
    const color = { field: "kind", type: "nominal", scale: { domain: ["default", "recipe"], range: ["var(--answer)", "var(--frontier)"] }, legend: null };
    draw(id, {
      width: width - Math.min(130, 0.35 * width) - 20, height: { step: 34 }, autosize: { type: "pad" },
      encoding: { y: { field: "name", type: "nominal", sort: rows.map((r) => r.name), axis: { title: null, labelLimit: Math.min(120, 0.33 * width) } } },
      layer: [
        ...(within.default > 0 ? [{ data: { values: [{ loss: within.default }] }, mark: { type: "rule", color: SOFT, strokeDash: [5, 4] }, encoding: { x: x, y: null } }] : []),
        { data: { values: rows.filter((r) => known(r.low)) }, mark: { type: "rule", strokeWidth: 2 }, encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, color: color } },
        { data: { values: rows }, mark: { type: "point", filled: true, size: 110, opacity: 1 }, encoding: { x: x, color: color, tooltip: { field: "tip" } } },
      ],
    });
  }

  const drawAll = () => data.within.forEach(drawLosses);

  whenSeen(drawAll, drawAll);
})();
