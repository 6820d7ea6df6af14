// The page of one result: it draws what the tables say, and carries a chosen point through them.
"use strict";
(function () {
  const { data, byId, all, known, words, plain, amount, share, draw, widthOf, scaleOf, axisOf, shown, frontOf, stepOf, errorBars, errorsOf, separate, drawAgreement, foldRows, INK, SOFT, PAPER, STAR, whenSeen } = MPQ;
  const COLORS = { frontier: "var(--frontier)", answer: "var(--answer)", uniform: "var(--uniform)" };
  const SIZES = { frontier: 75, answer: 130, uniform: 85 };
  const KINDS = ["frontier", "answer", "uniform"];
  const WITHIN = "uniform, within budgets and rules", BEYOND = "uniform, beyond a budget or rule", UNKNOWN = "uniform, not known";
  // Of every layer, what it is at the points: the page has it by columns.
  const packed = data.layers;
  const layers = packed.names.map((name, k) => ({ name: name, choices: packed.choices[k].map((kind, c) => ({ ...packed.precisions[kind], loss: packed.losses[k][c], costs: packed.costs[k][c] })) }));
  const axes = () => MPQ.axesOf(data.points, data.resources, data);

  // ---- What do I get?

  function drawNetworks() {
    const rows = [];
    for (const network of data.networks) {
      if (network.kind === "original") continue;
      const tip = { network: network.label, "loss, measured": plain(network.measured) + (known(network.error) ? " ± " + plain(network.error, 2) : "") + " " + data.metricUnit, "loss, predicted": known(network.predicted) ? plain(network.predicted) + " " + data.lossUnit : "–", "budgets, rules": !network.keeps ? "breaks a rule" : network.within === null ? "not known" : network.within ? "within" : "beyond" };
      const kind = network.kind === "answer" ? "answer" : !network.keeps || network.within === false ? BEYOND : network.within ? WITHIN : UNKNOWN;
      const common = { network: network.label, kind: kind, tip: tip };
      if (network.measured > 0) rows.push(Object.assign({ value: network.measured, what: "measured", low: Math.max(network.measured - (network.error || 0), network.measured / 20), high: network.measured + (network.error || 0) }, common));
      if (network.predicted > 0) rows.push(Object.assign({ value: network.predicted, what: "predicted" }, common));
    }
    if (!rows.length) return;
    const values = rows.flatMap((r) => [r.value, r.low, r.high]), scale = scaleOf(values);
    const units = data.metricUnit === data.lossUnit ? data.lossUnit : "measured: " + data.metricUnit + ", predicted: " + data.lossUnit;
    const x = { field: "value", type: "quantitative", scale: scale, axis: axisOf("loss", units, values, scale) };
    const y = { field: "network", type: "nominal", sort: null, axis: { title: null, labelLimit: 140 } };
    const kinds = ["answer", WITHIN, BEYOND, ...(rows.some((r) => r.kind === UNKNOWN) ? [UNKNOWN] : [])];
    const color = { field: "kind", type: "nominal", scale: { domain: kinds, range: [COLORS.answer, COLORS.frontier, COLORS.uniform, SOFT] }, legend: { columns: 1 } };
    draw("networks", {
      width: widthOf("networks") - 110, height: { step: 34 }, autosize: { type: "pad" }, data: { values: rows },
      encoding: { y: y },
      layer: [
        { transform: [{ filter: "datum.what == 'measured'" }], mark: { type: "rule", strokeWidth: 2 }, encoding: { x: Object.assign({}, x, { field: "low" }), x2: { field: "high" }, color: color } },
        { transform: [{ filter: "datum.what == 'measured'" }], mark: { type: "point", filled: true, size: 110, opacity: 1 }, encoding: { x: x, color: color, tooltip: { field: "tip" } } },
        { transform: [{ filter: "datum.what == 'predicted'" }], mark: { type: "point", filled: false, size: 70, strokeWidth: 2, opacity: 1 }, encoding: { x: x, color: color, tooltip: { field: "tip" } } },
      ],
    });
  }

  // ---- What else could I have?

  let chosen = data.answer;
  const state = { x: "cost:" + data.axis, y: "loss" };

  // Steps of a label around its point, from its middle: right, left, above, below, and line by line farther away.
  function around(toMiddle) {
    return (box) => {
      const half = (box.right - box.left) / 2, [x, y] = toMiddle(half), sides = [9 + half, -9 - half, 0], found = [[0, 0]];
      for (let k = 0; k < 9; k += 1) for (const up of [-7 - 14 * k, 8 + 14 * k]) for (const side of sides) found.push([side - x, up + (side ? 0 : Math.sign(up) * 7) - y]);
      return found;
    };
  }

  // Labels of points are by them; that of the budget slides along its line.
  const LABELS = {
    beside: around((half) => [9 + half, -7]),
    above: around(() => [0, -13]),
    knee: around((half) => [-10 - half, 10]),
    budget: (box) => Array.from({ length: 24 }, (_, k) => [[0, 12 * k], [box.right - box.left + 10, 12 * k]]).flat(),
  };

  // The point farthest below the line between both ends, in the scales of the picture.
  function kneeOf(front, logX, logY) {
    if (front.length < 3) return null;
    const px = (r) => (logX ? Math.log(r.x) : r.x), py = (r) => (logY ? Math.log(r.y) : r.y);
    const first = front[0], last = front[front.length - 1];
    const spanX = px(last) - px(first), spanY = py(last) - py(first);
    if (!spanX || !spanY) return null;
    let best = null, farthest = 0.02;
    for (const row of front) {
      const far = (px(row) - px(first)) / spanX - (py(row) - py(first)) / spanY;
      if (-far > farthest) { farthest = -far; best = row; }
    }
    return best;
  }

  function drawFrontier() {
    const known_axes = axes(), ax = known_axes[state.x], ay = known_axes[state.y];
    const rows = data.points.map((point, id) => ({ id: id, x: ax.of(point), y: ay.of(point), errors: errorsOf(point, ax, ay), kind: point.kind, label: point.label.replace("uniform ", ""), size: SIZES[point.kind], within: point.within, tip: tipOf(point) })).filter((r) => known(r.x) && known(r.y));
    const sx = scaleOf(rows.map((r) => r.x)), sy = scaleOf(rows.map((r) => r.y));
    const front = frontOf(rows.filter((r) => r.kind === "frontier"), ax, ay);
    const knee = kneeOf(front, sx.type === "log", sy.type === "log");
    const end = Math.max(...rows.map((r) => r.x)), start = Math.min(...rows.map((r) => r.x));
    const area = front.length ? front.map((r) => ({ x: r.x, y: r.y })).concat([{ x: ax.larger ? start : end, y: front[front.length - 1].y }]) : [];
    const x = { field: "x", type: "quantitative", scale: sx, axis: axisOf(ax.title, ax.unit, rows.map((r) => r.x), sx) };
    const y = { field: "y", type: "quantitative", scale: sy, axis: axisOf(ay.title, ay.unit, rows.map((r) => r.y), sy) };
    const color = { field: "kind", type: "nominal", scale: { domain: KINDS, range: KINDS.map((k) => COLORS[k]) } };
    const shape = { field: "kind", type: "nominal", scale: { domain: KINDS, range: ["circle", STAR, "square"] } };
    const layers = [];
    if (area.length > 1) layers.push({ data: { values: area }, mark: { type: "area", interpolate: stepOf(ax), color: "var(--area)", opacity: 1, line: false }, encoding: { x: x, y: Object.assign({}, y, { stack: null }), y2: { value: ay.larger ? "height" : 0 } } });
    if (front.length > 1) layers.push({ data: { values: front }, mark: { type: "line", interpolate: stepOf(ax), color: COLORS.frontier, strokeWidth: 1.5 }, encoding: { x: x, y: y } });
    const budget = data.budgets.find((b) => b.resource === ax.resource);
    if (budget) {
      layers.push({ data: { values: [{ x: budget.limit }] }, mark: { type: "rule", color: INK, strokeDash: [5, 4] }, encoding: { x: x } });
      layers.push({ name: "budget", data: { values: [{ x: budget.limit, text: "budget" }] }, mark: { type: "text", align: "right", dx: -5, baseline: "top", color: INK }, encoding: { x: x, y: { value: 2 }, text: { field: "text" } } });
    }
    layers.push(...errorBars(rows, x, y, color));
    layers.push({ name: "points", data: { values: rows }, mark: { type: "point", filled: true, opacity: 1, stroke: PAPER, strokeWidth: 1 }, encoding: { x: x, y: y, color: color, shape: shape, size: { field: "size", type: "quantitative", scale: null } } });
    // Labels stand to the right, where the frontier is lower; at the picture's edge above.
    const along = sx.type === "log" ? Math.log : (value) => value, begin = along(start);
    const isAtEdge = (r) => along(r.x) - begin > 0.85 * (along(end) - begin);
    for (const [name, align, side, dx, dy] of [["beside", "left", (r) => !isAtEdge(r), 9, -7], ["above", "center", isAtEdge, 0, -13]]) {
      const labelled = rows.filter((r) => r.kind === "uniform" && side(r));
      if (labelled.length) layers.push({ name: name, data: { values: labelled }, mark: { type: "text", align: align, dx: dx, dy: dy, color: SOFT }, encoding: { x: x, y: y, text: { field: "label" } } });
    }
    if (knee) layers.push({ name: "knee", data: { values: [Object.assign({ text: "knee" }, knee)] }, mark: { type: "text", align: "right", dx: -10, dy: 10, fontWeight: 600, color: COLORS.frontier }, encoding: { x: x, y: y, text: { field: "text" } } });
    layers.push({ data: { values: rows.filter((r) => r.id === chosen) }, mark: { type: "point", shape: "circle", filled: false, size: 420, strokeWidth: 2.5, color: INK, opacity: 1 }, encoding: { x: x, y: y } });
    // Larger than what is seen, for fingers.
    layers.push({ data: { values: rows }, mark: { type: "point", filled: true, size: 420, opacity: 0.001, cursor: "pointer" }, encoding: { x: x, y: y, tooltip: { field: "tip" } } });
    // The table has every axis: those of the picture are marked there.
    all("#points [data-axis]").forEach((cell) => cell.classList.toggle("drawn", [state.x, state.y].includes(cell.dataset.axis)));
    document.querySelector("#frontier-figure strong").textContent = ay.title.charAt(0).toUpperCase() + ay.title.slice(1) + " against " + ax.title + ".";
    draw("frontier", { width: widthOf("frontier") - 20, height: 360, autosize: { type: "fit", contains: "padding" }, layer: layers }, (view) => {
      view.addEventListener("click", (_, item) => { if (item && item.datum && known(item.datum.id)) choose(item.datum.id); });
      separate(byId("frontier"), LABELS);
    });
  }

  function tipOf(point) {
    const tip = { point: point.label, [data.pointsName]: plain(point.loss, 4) + " " + data.pointsUnit };
    tip["loss, measured"] = known(point.measured) ? plain(point.measured) + (known(point.error) ? " ± " + plain(point.error, 2) : "") + " " + data.metricUnit : "not measured";
    if (known(point.accuracy)) tip.accuracy = share(point.accuracy, 1);
    if (known(point.score)) tip.score = plain(point.score, 4);
    for (const r of data.resources) if (r.shown) tip[words(r.name)] = amount(point.costs[r.name], r.unit);
    const counts = {};
    point.choices.forEach((choice, layer) => { const p = layers[layer].choices[choice].p; counts[p] = (counts[p] || 0) + 1; });
    const most = Object.entries(counts).sort((a, b) => b[1] - a[1]);
    tip.layers = most.slice(0, 6).map(([p, n]) => n + " × " + p).join(", ") + (most.length > 6 ? ", …" : "");
    return tip;
  }

  function fillAxes() {
    const found = axes();
    for (const [id, key] of [["axis-x", "x"], ["axis-y", "y"]]) {
      const select = byId(id);
      for (const [name, axis] of Object.entries(found)) {
        const option = document.createElement("option");
        option.value = name;
        option.textContent = axis.title;
        select.append(option);
      }
      if (!found[state[key]]) state[key] = Object.keys(found)[0];
      select.value = state[key];
      select.addEventListener("change", () => { state[key] = select.value; drawFrontier(); });
    }
  }

  // ---- a point is chosen

  function choose(id, quietly) {
    chosen = id;
    const point = data.points[id];
    all("[data-point]").forEach((row) => { if (Number(row.dataset.point) === id) row.setAttribute("aria-current", "true"); else row.removeAttribute("aria-current"); });
    byId("chosen-label").textContent = point.label;
    all("[data-chosen]").forEach((place) => { place.textContent = point.label; });
    fillFacts(point);
    fillActions(point);
    fillLayers(point);
    fillPairs(point);
    drawFrontier();
    drawBits();
    if (!quietly) byId("announced").textContent = point.label + " is chosen: bits, layers and pairs below are its own.";
  }

  function fillFacts(point) {
    const list = byId("chosen-facts");
    list.replaceChildren();
    for (const axis of Object.values(axes())) {
      const row = document.createElement("div"), term = document.createElement("dt"), value = document.createElement("dd");
      term.textContent = axis.title;
      value.textContent = shown(axis, axis.of(point), axis.error ? axis.error(point) : null);
      row.append(term, value);
      list.append(row);
    }
  }

  function fillActions(point) {
    byId("copy-command").disabled = !point.command;
    byId("command-shown").hidden = !point.command;
    byId("command-shown").firstElementChild.textContent = point.command;
    byId("command-note").textContent = point.whyNoCommand ? "No command: " + point.whyNoCommand + "." : "";
    byId("download").disabled = Boolean(point.whyNoFile);
    byId("file-note").textContent = point.whyNoFile ? "No assignment.json here: " + point.whyNoFile + "." : point.fileNote;
  }

  // As mpq.Assignment writes it: what all share, an entry for every layer, the metadata.
  function fileOf(point) {
    const file = data.file, isAnswer = point.kind === "answer";
    const entries = file.layers.map((stub, place) => {
      const spelled = layers[place].choices[point.choices[place]].p, format = file.formats[spelled];
      const shared = stub.kind === "embedding" ? null : file.ranges[place][format.range];
      const range = (isAnswer && file.answer.ranges[place]) || shared || { range: null };
      const { transposed, computed, ...rest } = stub;
      return { name: file.names ? file.names[place] : packed.names[place], ...rest, precision: spelled, weight: format.weight, activation: { ...format.activation, ...range }, ...(transposed ? { transposed } : {}), ...(computed ? { computed } : {}) };
    });
    const { ranges: _, ...own } = isAnswer ? file.answer : { ranges: null };
    return { ...file.shared, ...own, layers: entries, metadata: point.metadata };
  }

  function download() {
    const text = JSON.stringify(fileOf(data.points[chosen]), null, 1) + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "assignment.json";
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function copy() {
    const command = data.points[chosen].command, say = (text) => { byId("announced").textContent = text; };
    const byHand = () => {
      const range = document.createRange();
      range.selectNodeContents(byId("command-shown"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      say(document.execCommand("copy") ? "The command is copied." : "The command is marked: copy it by hand.");
    };
    // From a file browsers may refuse the clipboard.
    if (!navigator.clipboard) byHand();
    else navigator.clipboard.writeText(command).then(() => say("The command is copied."), byHand);
  }

  // ---- Why these bits?

  function sumOf(values) {
    return values.reduce((sum, x) => sum + (x || 0), 0);
  }

  function fillCell(cell, text, part, whole) {
    cell.textContent = text;
    cell.style.setProperty("--w", Math.max(0, Math.min(100, whole > 0 ? Math.round((100 * (part || 0)) / whole) : 0)) + "%");
  }

  const rowsOf = (table) => { const found = []; all("[data-layer]", byId(table)).forEach((row) => { found[Number(row.dataset.layer)] = row; }); return found; };
  const layerRows = byId("layers") ? rowsOf("layers") : [], heatRows = byId("heat") ? rowsOf("heat") : [];
  const resources = data.resources.filter((r) => r.shown);

  function fillLayers(point) {
    const taken = point.choices.map((choice, layer) => layers[layer].choices[choice]);
    const loss = sumOf(taken.map((c) => c.loss)), most = Math.max(0, ...taken.map((c) => c.loss));
    // Of the whole network, with what it costs besides its layers.
    const wholes = resources.map((r) => point.costs[r.name]), peaks = resources.map((_, k) => Math.max(0, ...taken.map((c) => c.costs[k] || 0)));
    layerRows.forEach((row, layer) => {
      const choice = taken[layer], [, , , precision, weights, inputs, ownLoss, ...costs] = row.cells;
      precision.textContent = choice.p + (choice.parts ? " " : "");
      if (choice.parts) { const note = document.createElement("span"); note.className = "soft"; note.textContent = choice.parts; precision.append(note); }
      weights.textContent = plain(choice.w);
      inputs.textContent = plain(choice.a);
      fillCell(ownLoss, share(choice.loss, loss), choice.loss, most);
      resources.forEach((_, k) => fillCell(costs[k], share(choice.costs[k], wholes[k]), choice.costs[k], peaks[k]));
    });
    all("#layers tbody").forEach((group) => {
      const own = all("[data-layer]", group).map((row) => taken[Number(row.dataset.layer)]), cell = (name) => group.querySelector('[data-sum="' + name + '"]');
      const span = (all) => { const bits = all.filter(known), low = Math.min(...bits), high = Math.max(...bits); return !bits.length ? "–" : low === high ? plain(low) : plain(low) + " to " + plain(high); };
      cell("w").textContent = span(own.map((c) => c.w));
      cell("a").textContent = span(own.map((c) => c.a));
      cell("loss").textContent = share(sumOf(own.map((c) => c.loss)), loss);
      resources.forEach((_, k) => { cell(k).textContent = share(sumOf(own.map((c) => c.costs[k])), wholes[k]); });
    });
    const names = all("#heat thead th").slice(1).map((th) => th.textContent);
    heatRows.forEach((row, layer) => all("td", row).forEach((td, column) => td.classList.toggle("taken", names[column] === taken[layer].p)));
  }

  function fillPairs(point) {
    const body = document.querySelector("#pairs tbody");
    if (!body) return;
    body.replaceChildren(...point.pairs.map(([first, second, loss]) => {
      const row = document.createElement("tr");
      for (const [text, name] of [[first, "layer"], [second, "layer"], [(loss > 0 ? "+" : "") + plain(loss), "n"]]) {
        const cell = document.createElement("td");
        cell.className = name;
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    }));
  }

  function drawBits() {
    const place = byId("bits");
    if (!place) return;
    const point = data.points[chosen], count = layers.length;
    const rows = layers.map((layer, k) => { const c = layer.choices[point.choices[k]]; return { k: k, name: layer.name, w: c.w, a: c.a, tip: { layer: layer.name, precision: c.p, "share of loss": plain(c.loss) + " " + data.lossUnit, parts: c.parts || undefined } }; });
    const few = count <= 40, step = Math.max(few ? 18 : 3, (widthOf("bits") - 60) / count);
    const starts = all("#layers tbody").map((group) => Number(group.querySelector("[data-layer]").dataset.layer));
    const names = few ? rows.map((r) => r.name) : all("#layers tbody .toggle").map((b) => b.textContent);
    const ticks = few ? rows.map((r) => r.k) : starts;
    const labels = {};
    ticks.forEach((k, n) => { labels[k] = names[n]; });
    const label = ticks.map((k) => labels[k]);
    const x = { field: "k", type: "ordinal", scale: { paddingInner: 0.15 }, axis: { title: few ? null : "layers in the network's order", values: ticks, labelExpr: JSON.stringify(label) + "[indexof(" + JSON.stringify(ticks) + ", datum.value)]", labelAngle: -40, labelLimit: 150, labelOverlap: few ? false : "greedy", labelSeparation: 6, ticks: few } };
    const y = (field) => ({ field: field, type: "quantitative", axis: { title: "bits", tickMinStep: 1, tickCount: 5 }, scale: { zero: true } });
    const scale = { domain: ["weights", "inputs"], range: [COLORS.frontier, COLORS.answer] };
    draw("bits", {
      width: step * count, height: 170, autosize: { type: "pad" }, data: { values: rows },
      layer: [
        { transform: [{ calculate: "'weights'", as: "what" }], mark: { type: "bar", opacity: 1 }, encoding: { x: x, y: y("w"), color: { field: "what", type: "nominal", scale: scale }, tooltip: { field: "tip" } } },
        { transform: [{ calculate: "'inputs'", as: "what" }], mark: { type: "tick", orient: "horizontal", thickness: 3, opacity: 1, bandSize: Math.max(2, step * 0.85) }, encoding: { x: x, y: y("a"), color: { field: "what", type: "nominal", scale: scale }, tooltip: { field: "tip" } } },
      ],
    });
  }

  // ---- Can I trust it?

  function drawChecks() {
    const rows = data.checks.filter((c) => c.predicted > 0 && c.measured > 0).map((c) => Object.assign({ tip: { what: c.what, predicted: plain(c.predicted), measured: plain(c.measured) + (known(c.error) ? " ± " + plain(c.error, 2) : "") }, low: known(c.error) ? Math.max(c.measured - c.error, c.measured / 20) : null, high: c.measured + (c.error || 0), shown: c.kind === "cell" ? "one layer alone" : "whole network" }, c));
    drawAgreement("checks", rows, { across: data.lossUnit, upwards: data.metricUnit || data.lossUnit, kinds: [{ name: "whole network", color: COLORS.frontier, shape: "circle" }, { name: "one layer alone", color: COLORS.answer, shape: "diamond" }] });
  }

  // ---- together

  function begin() {
    if (data.points && data.points.length) {
      fillAxes();
      all("[data-pick]").forEach((button) => button.addEventListener("click", () => choose(Number(button.dataset.pick))));
      byId("copy-command").addEventListener("click", copy);
      byId("download").addEventListener("click", download);
      byId("to-answer").addEventListener("click", () => choose(data.answer));
      const canvas = byId("frontier");
      canvas.addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
        if (!by) return;
        event.preventDefault();
        const of = axes()[state.x].of, order = data.points.map((p, id) => id).filter((id) => known(of(data.points[id]))).sort((a, b) => of(data.points[a]) - of(data.points[b]) || a - b);
        choose(order[Math.max(0, Math.min(order.length - 1, order.indexOf(chosen) + by))]);
      });
      foldRows(["layers", "heat"]);
      choose(data.answer, true);
    }
    if (data.networks && data.networks.length) drawNetworks();
    if (data.checks) drawChecks();
  }

  function redraw() {
    if (data.networks && data.networks.length) drawNetworks();
    if (data.points && data.points.length) { drawFrontier(); drawBits(); }
    if (data.checks) drawChecks();
  }

  whenSeen(begin, redraw);
})();
