// The page of compared estimators: what each is worth, and its predictions against what was measured.
"use strict";
(function () {
  const { data, known, plain, draw, widthOf, drawAgreement, STAR, whenSeen } = MPQ;
  const COLORS = [1, 2, 3, 4, 5, 6].map((k) => "var(--r" + k + ")"), SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down"];
  const of = (values, k) => values[k % values.length];

  function drawWorth() {
    const rows = data.estimators.filter((e) => known(e.spearman)).map((e) => ({ name: e.name, rank: e.spearman, low: e.interval ? e.interval[0] : null, high: e.interval ? e.interval[1] : null, tip: { estimator: e.name, Spearman: plain(e.spearman), "95 %": e.interval ? plain(e.interval[0]) + " to " + plain(e.interval[1]) : "not known", "forward passes": plain(e.passes) } }));
    if (!rows.length) return;
    const width = widthOf("worth"), x = { field: "rank", type: "quantitative", scale: { zero: false, nice: true }, axis: { title: "Spearman", labelOverlap: true, tickCount: 5 } };
    draw("worth", {
      width: Math.min(width - Math.min(250, 0.4 * width) - 20, 560), height: { step: 34 }, autosize: { type: "pad" }, data: { values: rows },
      encoding: { y: { field: "name", type: "nominal", sort: null, axis: { title: null, labelLimit: Math.min(240, 0.38 * width) } } },
      layer: [
        { transform: [{ filter: "isValid(datum.low)" }], mark: { type: "rule", strokeWidth: 2, color: "var(--frontier)" }, encoding: { x: { ...x, field: "low" }, x2: { field: "high" } } },
        { mark: { type: "point", filled: true, size: 110, opacity: 1, color: "var(--frontier)" }, encoding: { x: x, tooltip: { field: "tip" } } },
      ],
    });
  }

  function drawScatter(estimator, place) {
    const named = (k, kind) => data.limits.length > 1 ? data.limits[k] + (kind ? ": " + kind : "") : kind || "near " + data.limits[k];
    const rows = estimator.predicted.map((predicted, k) => ({ predicted: predicted, measured: data.measured[k], shown: named(data.near[k]), tip: { assignment: k + 1, near: data.limits[data.near[k]], predicted: plain(predicted), measured: plain(data.measured[k]) } }));
    estimator.solved.forEach((found, k) => {
      if (!found) return;
      const [predicted, measured, error] = found, told = plain(measured) + (known(error) ? " ± " + plain(error, 2) : "");
      rows.push({ predicted: predicted, measured: measured, low: known(error) ? Math.max(measured - error, measured / 20) : null, high: measured + (error || 0), shown: named(k, "optimum"), tip: { optimum: "within " + data.limits[k], predicted: plain(predicted), measured: told } });
    });
    const seen = rows.filter((r) => r.predicted > 0 && r.measured > 0);
    const kinds = data.limits.flatMap((_, k) => [{ name: named(k), color: of(COLORS, k), shape: of(SHAPES, k), size: 45 }, { name: named(k, "optimum"), color: data.limits.length > 1 ? of(COLORS, k) : "var(--answer)", shape: STAR, size: 170 }]);
    drawAgreement("scatter-" + place, seen, { across: estimator.unit, upwards: data.unit, kinds: kinds, columns: widthOf("scatter-" + place) < 480 ? 1 : 2, beyond: data.maxLoss });
  }

  function drawAll() {
    drawWorth();
    data.estimators.forEach((estimator, place) => { if (estimator.predicted.length) drawScatter(estimator, place); });
  }

  whenSeen(drawAll, drawAll);
})();
