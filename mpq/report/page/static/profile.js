// The page of a measured network: predicted against measured, and what takes how long.
"use strict";
(function () {
  const { data, known, amount, draw, widthOf, scaleOf, axisOf, drawAgreement, foldRows, whenSeen } = MPQ;
  const COLORS = [1, 2, 3, 4, 5, 6].map((k) => "var(--r" + k + ")"), SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down"];
  const of = (values, k) => values[k % values.length], time = (x) => amount(x, "seconds");
  const tip = (what, predicted, measured) => ({ what: what, predicted: time(predicted), measured: time(measured) });

  function drawNetworks() {
    const rows = [], kinds = { sum: "sum of layers alone", unseen: "corrected, network not seen", final: "corrected, network seen" };
    for (const network of data.networks) {
      const add = (key) => { if (known(network[key])) rows.push({ predicted: network[key], measured: network.measured, low: network.low, high: network.high, shown: kinds[key], tip: { ...tip(network.label, network[key], network.measured), by: kinds[key] } }); };
      add("sum");
      // The honest number of a network is that of a correction without it.
      add(known(network.unseen) ? "unseen" : "final");
    }
    const looks = [["sum", "var(--uniform)", "square"], ["unseen", "var(--answer)", "diamond"], ["final", "var(--frontier)", "circle"]];
    drawAgreement("networks", rows, { across: "seconds", upwards: "seconds", columns: 1, kinds: looks.filter(([key]) => rows.some((r) => r.shown === kinds[key])).map(([key, color, shape]) => ({ name: kinds[key], color: color, shape: shape, size: shape === "diamond" ? 110 : 70 })) });
  }

  function drawCells() {
    const rows = [], kinds = ["a layer", "a conversion"];
    for (const layer of data.layers) layer.seconds.forEach((seconds, k) => { if (seconds > 0 && layer.alone[k] > 0) rows.push({ predicted: seconds, measured: layer.alone[k], shown: kinds[0], tip: tip(layer.name + " at " + data.precisions[k], seconds, layer.alone[k]) }); });
    for (const [what, predicted, measured] of data.conversions) if (predicted > 0 && measured > 0) rows.push({ predicted: predicted, measured: measured, shown: kinds[1], tip: tip(what, predicted, measured) });
    drawAgreement("cells", rows, { across: "seconds", upwards: "seconds", kinds: [{ name: kinds[0], color: "var(--frontier)", shape: "circle", size: 45 }, { name: kinds[1], color: "var(--answer)", shape: "diamond", size: 75 }] });
  }

  function drawLayers() {
    const rows = data.layers.flatMap((layer, k) => layer.seconds.map((seconds, b) => ({ k: k, seconds: seconds, precision: data.precisions[b], tip: { layer: layer.name, precision: data.precisions[b], "in a network": time(seconds), alone: known(layer.alone[b]) ? time(layer.alone[b]) : "not recorded" } }))).filter((r) => r.seconds > 0);
    if (!rows.length) return;
    const values = rows.map((r) => r.seconds), scale = scaleOf(values), count = data.layers.length, few = count <= 40;
    const range = data.precisions.map((_, b) => of(COLORS, b)), shapes = data.precisions.map((_, b) => of(SHAPES, b)), step = Math.max(few ? 18 : 3, (widthOf("times") - 70) / count);
    const x = { field: "k", type: "ordinal", scale: { domain: data.layers.map((_, k) => k) }, axis: { title: few ? null : "layers in the network's order", labelExpr: JSON.stringify(data.layers.map((l) => l.name)) + "[datum.value]", labels: few, labelAngle: -40, labelLimit: 150, ticks: few } };
    const y = { field: "seconds", type: "quantitative", scale: scale, axis: axisOf("seconds of a run", "seconds", values, scale) };
    const legend = { columns: widthOf("times") < 480 ? 2 : 6 };
    draw("times", {
      width: step * count, height: 230, autosize: { type: "pad" }, data: { values: rows },
      mark: { type: "point", filled: true, opacity: 1, size: few ? 60 : 25 },
      encoding: { x: x, y: y, color: { field: "precision", type: "nominal", scale: { domain: data.precisions, range: range }, legend: legend }, shape: { field: "precision", type: "nominal", scale: { domain: data.precisions, range: shapes }, legend: legend }, tooltip: { field: "tip" } },
    });
  }

  function drawAll() {
    drawNetworks();
    drawLayers();
    drawCells();
  }

  whenSeen(() => { foldRows(["layers"]); drawAll(); }, drawAll);
})();
