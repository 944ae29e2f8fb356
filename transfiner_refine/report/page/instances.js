"use strict";
/* The table of an image's instances, and the chart of all of them before against after. */

report.instances = (() => {
  const byId = (id) => document.getElementById(id);
  let image = null;

  /* Whether the band of boundary IoU covers the whole object, before and after. */
  const covered = (one) => one.boundary && one.boundary[0] === one.iou[0] && one.boundary[1] === one.iou[1] && one.iou[0] < 1;

  const cells = (one) => {
    const { points, signed, tone } = report.format;
    if (!report.content.totals.scored) return [report.element("td", {}, `${points(one.changed)} %`)];
    return ["iou", "boundary"].map((name) => {
      if (!one[name]) return report.element("td", {}, "–");
      const change = one[name][1] - one[name][0];
      const text = report.element("span", { class: tone(change) }, signed(change));
      const title = `${points(one[name][0])} → ${points(one[name][1])}`;
      if (name === "boundary" && covered(one)) return report.element("td", { title, class: "covered" }, "=");
      return report.element("td", { title }, `${points(one[name][1])} `, text);
    });
  };

  const draw = (next = image) => {
    image = next;
    const rows = report.viewer.visible().map((index) => {
      const one = image.instances[index];
      const swatch = report.element("span", { class: "swatch" });
      swatch.style.background = report.layers.colours[index % report.layers.colours.length];
      const name = one.category || one.label;
      const button = report.element(
        "button",
        { type: "button", "aria-pressed": String(report.viewer.selected() === index), title: one.label },
        swatch,
        report.element("span", {}, name),
        ...(one.category ? [report.element("span", { class: "label" }, one.label)] : []),
      );
      button.addEventListener("click", () => {
        report.viewer.select(report.viewer.selected() === index ? null : index);
      });
      const score = one.score === null ? [] : [report.element("td", {}, one.score.toFixed(2))];
      return report.element("tr", {}, report.element("td", {}, button), ...score, ...cells(one));
    });
    const scores = image && image.instances.some((one) => one.score !== null) ? ["score"] : [];
    const measures = report.content.totals.scored ? ["IoU", "boundary"] : ["changed"];
    byId("instances-head").replaceChildren(
      ...["instance", ...scores, ...measures].map((text) => report.element("th", { scope: "col" }, text)),
    );
    byId("instances-body").replaceChildren(...rows);
    byId("small-note").hidden = !report.viewer.visible().some((index) => covered(image.instances[index]));
    mark();
  };

  const mark = () => {
    byId("instances-body").querySelectorAll("button").forEach((button, row) => {
      const index = report.viewer.visible()[row];
      button.setAttribute("aria-pressed", String(report.viewer.selected() === index));
    });
    for (const dot of byId("plot").querySelectorAll(".now")) dot.classList.remove("now");
    if (image === null) return;
    for (const dot of byId("plot").querySelectorAll(`[data-file="${image.file}"]`)) dot.classList.add("now");
  };

  /* Means of at most ten groups of like size, by x. */
  const groups = (dots) => {
    const sorted = [...dots].sort((a, b) => a.x - b.x);
    const size = Math.max(5, Math.ceil(sorted.length / 10));
    const parts = [];
    for (let at = 0; at + size <= sorted.length; at += size) parts.push(sorted.slice(at, at + size));
    const mean = (part, key) => part.reduce((sum, dot) => sum + dot[key], 0) / part.length;
    return parts.map((part) => [mean(part, "x"), mean(part, "y")]);
  };

  /* What a chart shows: x and y of an instance, their ends, ticks and names, and what the line in it means. */
  const charts = (name, measure) => ({
    pair: {
      at: (one) => [100 * one[measure][0], 100 * one[measure][1]],
      ends: (dots) => {
        const low = 10 * Math.floor(Math.min(90, ...dots.flatMap(({ x, y }) => [x, y])) / 10);
        return [low, 100, low, 100];
      },
      names: ["before", "after"],
      line: "diagonal",
      caption: `${name}, a dot for each instance: above the line it got better.`,
    },
    size: {
      at: (one) => [Math.log2(one.area) / 2, 100 * (one[measure][1] - one[measure][0])],
      ends: (dots) => {
        const xs = dots.map(({ x }) => x);
        const reach = Math.max(5, ...dots.map(({ y }) => Math.abs(y)));
        return [Math.floor(Math.min(...xs)), Math.max(Math.ceil(Math.max(...xs)), Math.floor(Math.min(...xs)) + 1), -reach, reach];
      },
      tick: (value) => String(Math.round(2 ** value)),
      names: ["√area of the object, pixels", "gain, points"],
      line: "level",
      means: true,
      caption: `Gain in ${name} by size; the curve joins the means of like sizes.`,
    },
    score: {
      at: (one) => (one.score === null ? null : [100 * one.score, 100 * one[measure][1]]),
      ends: () => [0, 100, 0, 100],
      names: ["score of the detector, %", "after"],
      line: "diagonal",
      means: true,
      caption: `${name} after by score; where the curve of means lies below the line, scores promise too much.`,
    },
  });

  /* The chosen chart of all instances that the filters let through. */
  const plot = () => {
    if (!report.content.totals.scored) return;
    const { svg } = report.layers;
    const { tone, points } = report.format;
    const measure = report.store.settings.measure;
    const name = measure === "iou" ? "IoU" : "boundary IoU";
    const chart = charts(name, measure)[byId("chart-kind").value];
    const [left, top, size] = [30, 4, 166];
    const found = report.content.images.flatMap((one, number) =>
      report.store.shown(one).flatMap((index) => {
        const instance = one.instances[index];
        const at = instance[measure] ? chart.at(instance) : null;
        return at ? [{ one, number, instance, x: at[0], y: at[1] }] : [];
      }));
    const [x0, x1, y0, y1] = found.length ? chart.ends(found) : [0, 100, 0, 100];
    const x = (value) => left + (size * (value - x0)) / (x1 - x0);
    const y = (value) => top + (size * (y1 - value)) / (y1 - y0);
    const dots = found.map(({ one, number, instance, x: across, y: up }) => {
      const [before, after] = instance[measure];
      const dot = svg("circle", { cx: x(across), cy: y(up), r: 2.4, class: tone(after - before), "data-file": one.file });
      const change = `${points(before)} → ${points(after)}`;
      dot.append(svg("title", {}, `${one.name}, ${instance.category || instance.label}: ${change}`));
      dot.addEventListener("click", () => report.gallery.show(number, instance));
      return dot;
    });
    const text = chart.tick ?? ((value) => String(Math.round(value)));
    const ticks = [0, 0.5, 1].flatMap((share) => [
      svg("text", { x: left - 4, y: y(y0 + share * (y1 - y0)) + 3, "text-anchor": "end" }, String(Math.round(y0 + share * (y1 - y0)))),
      svg("text", { x: x(x0 + share * (x1 - x0)), y: top + size + 10, "text-anchor": "middle" }, text(x0 + share * (x1 - x0))),
    ]);
    const middle = top + size / 2;
    const [from, to] = chart.line === "level" ? [[x0, 0], [x1, 0]] : [[x0, y0], [x1, y1]];
    const curve = chart.means ? groups(found).map(([a, b]) => `${x(a)},${y(b)}`).join(" ") : "";
    byId("plot").replaceChildren(
      svg("rect", { class: "frame", x: left, y: top, width: size, height: size }),
      svg("line", { class: "equal", x1: x(from[0]), y1: y(from[1]), x2: x(to[0]), y2: y(to[1]) }),
      ...ticks,
      svg("text", { x: left + size / 2, y: top + size + 22, "text-anchor": "middle" }, chart.names[0]),
      svg("text", { x: 9, y: middle, "text-anchor": "middle", transform: `rotate(-90 9 ${middle})` }, chart.names[1]),
      ...dots,
      svg("polyline", { class: "means", points: curve }),
    );
    byId("plot").setAttribute("aria-label", `${chart.caption} ${dots.length} instances.`);
    byId("plot-caption").textContent = `${chart.caption} Those of this image have a rim.`;
    byId("chart").hidden = false;
    const hasScores = report.content.images.some((one) => one.instances.some(({ score }) => score !== null));
    byId("chart-kind").lastElementChild.hidden = !hasScores;
    mark();
  };

  return { draw, mark, plot };
})();
