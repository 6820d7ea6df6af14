// What the scripts of all pages share: numbers as they are written, and pictures drawn with Vega.
"use strict";
const MPQ = (function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (query, root) => Array.from((root || document).querySelectorAll(query));
  const known = (x) => x !== null && x !== undefined;
  document.documentElement.classList.add("scripted");

  // ---- numbers, as mpq/report/amount.py and numbers.py write them

  function general(value, digits) {
    if (value === 0) return "0";
    const power = Number(value.toExponential(digits - 1).split("e")[1]);
    if (power < -4 || power >= digits) {
      const [head, tail] = value.toExponential(digits - 1).split("e");
      const short = head.includes(".") ? head.replace(/\.?0+$/, "") : head;
      const size = String(Math.abs(Number(tail))).padStart(2, "0");
      return short + "e" + (tail[0] === "-" ? "-" : "+") + size;
    }
    return String(Number(value.toPrecision(digits)));
  }

  function plain(value, digits) {
    return value === null || value === undefined ? "–" : general(value, digits || 3);
  }

  function amount(value, unit) {
    if (value === null || value === undefined) return "cannot run";
    if (unit === "bytes") {
      const power = Math.abs(value) >= 1048576 ? 2 : Math.abs(value) >= 1024 ? 1 : 0;
      return general(value / 1024 ** power, 4) + " " + ["B", "KiB", "MiB"][power];
    }
    if (unit === "seconds" || unit === "joules") {
      let power = [0, -1, -2, -3].find((p) => Math.abs(value) >= 1000 ** p);
      if (power === undefined) power = value ? -4 : 0;
      const prefix = { 0: "", "-1": "m", "-2": "µ", "-3": "n", "-4": "p" }[power];
      return (value / 1000 ** power).toPrecision(4) + " " + prefix + (unit === "seconds" ? "s" : "J");
    }
    return unit === "bits" ? value.toFixed(3) + " bits" : general(value, 4) + " " + unit;
  }

  function share(value, whole) {
    if (!known(value) || !known(whole)) return "–";
    return (whole ? (100 * value) / whole : 0).toFixed(1) + " %";
  }

  const words = (name) => name.replaceAll("_", " ");

  // ---- pictures

  // Colours are names of the style, so that dark, light and print need no other picture.
  const INK = "var(--ink)", SOFT = "var(--soft)", LINE = "var(--line)", PAPER = "var(--paper)";
  const STAR = "M0,-1.3L0.38,-0.42L1.24,-0.4L0.55,0.16L0.76,1.05L0,0.55L-0.76,1.05L-0.55,0.16L-1.24,-0.4L-0.38,-0.42Z";
  const LABELS = { frontier: "Loss against cost: the left and right arrow keys choose a point" };
  const CONFIG = {
    aria: false, background: null, font: "system-ui, sans-serif",
    view: { stroke: "transparent" },
    axis: { labelColor: INK, titleColor: INK, gridColor: LINE, domainColor: SOFT, tickColor: SOFT, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, gridOpacity: 0.6, labelLimit: 190 },
    legend: { labelColor: INK, titleColor: INK, labelFontSize: 12, orient: "top", title: null, symbolStrokeColor: INK, labelLimit: 220 },
    text: { color: INK, fontSize: 12 },
  };

  function draw(id, spec, then) {
    const place = byId(id);
    if (!place || typeof vegaEmbed === "undefined") return;
    const whole = Object.assign({ $schema: "https://vega.github.io/schema/vega-lite/v6.json", config: CONFIG }, spec);
    const options = { renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true, formatTooltip: told } };
    vegaEmbed(place, whole, options).then((result) => {
      // Its numbers are in the table beside it, which a screen reader is better off with.
      all("svg", place).forEach((svg) => svg.setAttribute("aria-hidden", "true"));
      place.removeAttribute("aria-roledescription");
      place.setAttribute("role", "group");
      place.setAttribute("aria-label", LABELS[id] || place.parentElement.querySelector("strong").textContent);
      // What may be wider than the screen is scrolled with the keys, too.
      place.tabIndex = 0;
      if (then) then(result.view);
    });
  }

  function escaped(text) {
    return String(text).replace(/[&<>"']/g, (c) => "&#" + c.charCodeAt(0) + ";");
  }

  function told(value) {
    if (typeof value !== "object" || value === null) return escaped(value);
    const rows = Object.entries(value).map(([key, x]) => "<tr><td class=\"key\">" + escaped(key) + "</td><td>" + escaped(x) + "</td></tr>");
    return "<table><tbody>" + rows.join("") + "</tbody></table>";
  }

  const widthOf = (id) => Math.max(240, Math.floor(byId(id).getBoundingClientRect().width) - 8);

  function scaleOf(values) {
    const found = values.filter(known);
    if (found.length && found.every((x) => x > 0) && Math.max(...found) / Math.min(...found) > 8) return { type: "log", nice: false, padding: 12 };
    return { zero: false, nice: true, padding: 12 };
  }

  // Round numbers in the unit that is written, few enough to be read: 40 KiB, 1e-4.
  function ticksOf(values, unit, scale) {
    const found = values.filter(known), low = Math.min(...found), high = Math.max(...found);
    if (!found.length || low === high) return undefined;
    const base = unit !== "bytes" || high < 1024 ? 1 : high < 1048576 ? 1024 : 1048576, ticks = [];
    if (scale.type === "log") {
      const decades = Math.log10(high / low), marks = decades > 2.5 ? [1] : decades > 1 ? [1, 3] : [1, 2, 5];
      const every = Math.ceil(decades / 7), start = Math.floor(Math.log10(low / base)) - 1;
      for (let power = start; power <= Math.log10(high / base) + 1; power += 1) if (power % every === 0 || every === 1) for (const mark of marks) ticks.push(mark * 10 ** power * base);
      return ticks;
    }
    const rough = (high - low) / base / 4, size = 10 ** Math.floor(Math.log10(rough));
    const step = base * size * [1, 2, 2.5, 5, 10].find((x) => x * size >= rough);
    for (let k = Math.floor(low / step) - 1; k <= Math.ceil(high / step) + 1; k += 1) ticks.push(k * step);
    return ticks;
  }

  function axisOf(title, unit, values, scale) {
    const axis = { title: title, labelOverlap: true, values: ticksOf(values, unit, scale) };
    if (unit === "bytes") axis.labelExpr = "datum.value >= 1048576 ? format(datum.value / 1048576, '.4~g') + ' MiB' : datum.value >= 1024 ? format(datum.value / 1024, '.4~g') + ' KiB' : datum.value + ' B'";
    else if (unit === "seconds" || unit === "joules") axis.labelExpr = "format(datum.value, '.3~s') + '" + (unit === "seconds" ? "s" : "J") + "'";
    else if (unit === "share") axis.labelExpr = "format(datum.value, '.1~%')";
    else {
      axis.title += unit ? " [" + unit + "]" : "";
      axis.labelExpr = "datum.value && (abs(datum.value) < 0.001 || abs(datum.value) >= 100000) ? format(datum.value, '.2~e') : format(datum.value, '.4~g')";
    }
    return axis;
  }

  // What a picture of points can be drawn over: the loss, what was measured, every resource.
  function axesOf(points, resources, names) {
    // Points of several runs may each have a unit of their own.
    const found = { loss: { title: names.pointsName || "loss", unit: names.pointsUnit, unitOf: (p) => p.lossUnit, nameOf: (p) => p.lossName, of: (p) => p.loss } };
    if (points.some((p) => known(p.measured))) found.measured = { title: "loss, measured", unit: names.metricUnit, unitOf: (p) => p.metricUnit, of: (p) => p.measured, error: (p) => p.error, isMeasured: true };
    if (points.some((p) => known(p.accuracy))) found.accuracy = { title: "accuracy", unit: "share", of: (p) => p.accuracy, error: (p) => p.accuracyError, isMeasured: true, larger: true };
    if (points.some((p) => known(p.score))) found.score = { title: names.scoreName ? "score: " + names.scoreName : "score", unit: "", of: (p) => p.score, isMeasured: true, larger: names.higherScoreIsBetter };
    for (const resource of resources) {
      if (points.some((p) => known(p.costs[resource.name]))) found["cost:" + resource.name] = { title: words(resource.name), unit: resource.unit, of: (p) => p.costs[resource.name], resource: resource.name };
    }
    return found;
  }

  function shown(axis, value, error) {
    if (!known(value)) return axis.isMeasured ? "not measured" : "–";
    if (axis.unit === "share") return share(value, 1) + (known(error) ? " ± " + share(error, 1) : "");
    if (axis.resource) return amount(value, axis.unit);
    return plain(value, 4) + (known(error) ? " ± " + plain(error, 2) : "") + (axis.unit ? " " + axis.unit : "");
  }

  const meets = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const moved = (box, dx, dy) => ({ dx: dx, dy: dy, left: box.left + dx, right: box.right + dx, top: box.top + dy, bottom: box.bottom + dy });

  // Moves texts of a picture until none lies over another or behind the edge, nor over a point where there is room.
  // Of each kind, in order of what may stay, `ways` has the steps from where a text is, the best first.
  function separate(place, kinds) {
    const frame = place.querySelector("svg").getBoundingClientRect(), taken = [];
    const isInside = (box) => box.left >= frame.left && box.right <= frame.right && box.top >= frame.top && box.bottom <= frame.bottom;
    const points = all("g.points_marks path", place).map((point) => point.getBoundingClientRect());
    for (const [name, ways] of Object.entries(kinds)) {
      for (const text of all("g." + name + "_marks text", place)) {
        const own = text.getBoundingClientRect();
        const free = ways(own).map(([dx, dy]) => moved(own, dx, dy)).filter((box) => isInside(box) && !taken.some((other) => meets(box, other)));
        const best = free.slice(0, 8).find((box) => !points.some((point) => meets(box, point))) || free[0];
        // The tooltip and the table have its name.
        if (!best) { text.style.display = "none"; continue; }
        text.setAttribute("transform", "translate(" + best.dx + "," + best.dy + ") " + text.getAttribute("transform"));
        taken.push(best);
      }
    }
  }

  // The points that no other of the same rows betters in both, the best across first. A score of an older
  // run does not say which way is better: then nothing is dominated.
  function frontOf(rows, ax, ay) {
    if (ax.larger === null || ay.larger === null) return [];
    const across = (r) => (ax.larger ? -r.x : r.x), up = (r) => (ay.larger ? -r.y : r.y), front = [];
    for (const row of rows.slice().sort((a, b) => across(a) - across(b) || up(a) - up(b))) if (!front.length || up(row) < up(front[front.length - 1])) front.push(row);
    return front;
  }

  // Between two points of a front what is had is the one that is no worse across.
  const stepOf = (ax) => (ax.larger ? "step-before" : "step-after");

  // One standard error to both sides of what was measured, across and upwards; above 0 on a logarithmic axis.
  function errorBars(rows, x, y, color) {
    const low = (value, error, scale) => (scale.type === "log" ? Math.max(value - error, value / 20) : value - error), way = { x: x, y: y };
    return ["x", "y"].flatMap((name) => {
      const values = rows.filter((r) => known(r.errors[name])).map((r) => ({ ...r, low: low(r[name], r.errors[name], way[name].scale), high: r[name] + r.errors[name] }));
      return values.length ? [{ data: { values: values }, mark: { type: "rule", strokeWidth: 1.5 }, encoding: { ...way, [name]: { ...way[name], field: "low" }, [name + "2"]: { field: "high" }, color: color } }] : [];
    });
  }

  const errorsOf = (point, ax, ay) => ({ x: ax.error ? ax.error(point) : null, y: ay.error ? ay.error(point) : null });

  // Predicted (across) against measured (upwards): marks by kind, bars from low to high where they are
  // known, and the line of equal numbers where both have one unit.
  function drawAgreement(id, rows, asked) {
    if (!rows.length || !byId(id)) return;
    const isOne = asked.across === asked.upwards, both = rows.flatMap((r) => [r.predicted, r.measured]);
    // Bars are whole; on a logarithmic axis their lower ends may leave the picture.
    const scaled = (values, isMeasured) => {
      const scale = scaleOf(values), ends = rows.filter((r) => isMeasured && known(r.low)).flatMap((r) => (scale.type === "log" ? [r.high] : [r.low, r.high]));
      const low = Math.min(...values, ...ends), high = Math.max(...values, ...ends);
      if (scale.type === "log") return { type: "log", nice: false, domain: [low / 1.6, high * 1.6] };
      const room = 0.06 * (high - low || high);
      return { zero: false, nice: false, domain: [low - room, high + room] };
    };
    const sx = scaled(isOne ? both : rows.map((r) => r.predicted), isOne), sy = isOne ? sx : scaled(rows.map((r) => r.measured), true);
    const x = { field: "predicted", type: "quantitative", scale: sx, axis: axisOf("predicted", asked.across, sx.domain, sx) };
    const y = { field: "measured", type: "quantitative", scale: sy, axis: axisOf("measured", asked.upwards, sy.domain, sy) };
    const names = asked.kinds.map((k) => k.name), legend = { legend: names.length > 1 ? { columns: asked.columns || 3 } : null };
    const sizes = Object.fromEntries(asked.kinds.map((k) => [k.name, k.size || 80]));
    const color = { field: "shown", type: "nominal", scale: { domain: names, range: asked.kinds.map((k) => k.color) }, ...legend };
    const shape = { field: "shown", type: "nominal", scale: { domain: names, range: asked.kinds.map((k) => k.shape) }, ...legend };
    const size = { field: "size", type: "quantitative", scale: null };
    const ends = sx.domain.map((end) => ({ predicted: end, measured: end }));
    const bars = rows.filter((r) => known(r.low));
    const layer = isOne ? [{ data: { values: ends }, mark: { type: "line", color: SOFT, strokeDash: [5, 4] }, encoding: { x: x, y: y } }] : [];
    if (known(asked.beyond) && asked.beyond > sy.domain[0] && asked.beyond < sy.domain[1]) layer.push({ data: { values: [{ measured: asked.beyond }] }, mark: { type: "rule", color: SOFT, strokeDash: [1, 3] }, encoding: { y: y } });
    if (bars.length) layer.push({ data: { values: bars }, mark: { type: "rule", strokeWidth: 1.5, clip: true }, encoding: { x: x, y: { ...y, field: "low" }, y2: { field: "high" }, color: color } });
    layer.push({ data: { values: rows.map((r) => ({ ...r, size: sizes[r.shown] })) }, mark: { type: "point", filled: true, opacity: 1, stroke: PAPER, strokeWidth: 1 }, encoding: { x: x, y: y, color: color, shape: shape, size: size, tooltip: { field: "tip" } } });
    draw(id, { width: Math.min(widthOf(id) - 20, 560), height: 340, autosize: { type: "fit", contains: "padding" }, layer: layer });
  }

  // Tables whose rows [data-layer] stand under names of modules: opened, closed and searched together.
  function foldRows(tables) {
    const groups = all("#" + tables[0] + " tbody").map((body) => body.dataset.group), count = all("#" + tables[0] + " [data-layer]").length;
    const bodiesOf = (group) => tables.map((table) => document.querySelector("#" + table + ' tbody[data-group="' + group + '"]')).filter(Boolean);
    const asked = () => byId("search").value.trim().toLowerCase(), isHit = (row, text) => row.firstElementChild.textContent.toLowerCase().includes(text);
    // Of a module that is opened, rows that are searched for: all, where nothing is.
    const toggle = (group, open, text = asked()) => bodiesOf(group).forEach((body) => {
      body.querySelector(".toggle").setAttribute("aria-expanded", String(open));
      all("[data-layer]", body).forEach((row) => { row.hidden = !open || !isHit(row, text); });
    });
    const filter = () => {
      const text = asked(), found = all("#" + tables[0] + " [data-layer]").filter((row) => isHit(row, text)).length;
      for (const group of groups) {
        toggle(group, Boolean(text) || count <= 60, text);
        bodiesOf(group).forEach((body) => { body.hidden = Boolean(text) && !all("[data-layer]", body).some((row) => !row.hidden); });
      }
      byId("found").textContent = text ? found + " of " + count + " layers" : "";
    };
    byId("search").addEventListener("input", filter);
    byId("open-all").addEventListener("click", () => groups.forEach((group) => toggle(group, true)));
    byId("close-all").addEventListener("click", () => groups.forEach((group) => toggle(group, false)));
    all(".toggle").forEach((button) => button.addEventListener("click", () => toggle(button.closest("tbody").dataset.group, button.getAttribute("aria-expanded") !== "true")));
    if (count > 60) groups.forEach((group) => toggle(group, false));
  }

  // Pictures are as wide as there is room: another width is another picture.
  function atNewWidth(redraw) {
    const widthNow = () => document.documentElement.clientWidth;
    let width = widthNow(), waiting;
    window.addEventListener("resize", () => {
      clearTimeout(waiting);
      // Not while a window is being pulled; and on a telephone bars that come and go change the height alone.
      waiting = setTimeout(() => { if (widthNow() !== width) { width = widthNow(); redraw(); } }, 100);
    });
  }

  // After the tables are seen: what is drawn can wait for that, and not the other way round.
  const whenSeen = (begin, redraw) => requestAnimationFrame(() => setTimeout(() => { begin(); atNewWidth(redraw); }));

  return { data, byId, all, known, words, plain, amount, share, draw, widthOf, scaleOf, axisOf, axesOf, shown, frontOf, stepOf, errorBars, errorsOf, separate, drawAgreement, foldRows, INK, SOFT, PAPER, STAR, whenSeen };
})();
