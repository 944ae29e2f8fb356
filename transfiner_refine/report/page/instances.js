"use strict";
/* The table of an image's instances, and the chart of all of them before against after. */

report.instances = (() => {
  const byId = (id) => document.getElementById(id);
  let image = null;

  const cells = (one) => {
    const { points, signed, tone } = report.format;
    if (!report.content.totals.scored) return [report.element("td", {}, `${points(one.changed)} %`)];
    return ["iou", "boundary"].map((name) => {
      if (!one[name]) return report.element("td", {}, "–");
      const change = one[name][1] - one[name][0];
      const text = report.element("span", { class: tone(change) }, signed(change));
      return report.element("td", { title: `${points(one[name][0])} → ${points(one[name][1])}` }, `${points(one[name][1])} `, text);
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

  /* Each instance as a dot: above the diagonal it got better. */
  const plot = () => {
    if (!report.content.totals.scored) return;
    const { svg } = report.layers;
    const measure = report.store.settings.measure;
    const [left, top, size] = [30, 4, 166];
    const pairs = report.content.images.flatMap((one, number) =>
      one.instances
        .filter((instance) => instance[measure] && report.store.matches(instance))
        .map((instance) => ({ one, number, instance, pair: instance[measure] })));
    const low = Math.floor(10 * Math.min(0.9, ...pairs.flatMap(({ pair }) => pair))) / 10; // where both axes start
    const x = (share) => left + (size * (share - low)) / (1 - low);
    const y = (share) => top + (size * (1 - share)) / (1 - low);
    const dots = pairs.map(({ one, number, instance, pair: [before, after] }) => {
      const dot = svg("circle", { cx: x(before), cy: y(after), r: 2.4, "data-file": one.file });
      const change = `${report.format.points(before)} → ${report.format.points(after)}`;
      dot.append(svg("title", {}, `${one.name}, ${instance.category || instance.label}: ${change}`));
      dot.addEventListener("click", () => report.gallery.show(number, instance));
      return dot;
    });
    const ticks = [low, (low + 1) / 2, 1].flatMap((at) => [
      svg("text", { x: left - 4, y: y(at) + 3, "text-anchor": "end" }, String(Math.round(100 * at))),
      svg("text", { x: x(at), y: top + size + 10, "text-anchor": "middle" }, String(Math.round(100 * at))),
    ]);
    const middle = top + size / 2;
    byId("plot").replaceChildren(
      svg("rect", { class: "frame", x: left, y: top, width: size, height: size }),
      svg("line", { class: "equal", x1: x(low), y1: y(low), x2: x(1), y2: y(1) }),
      ...ticks,
      svg("text", { x: left + size / 2, y: top + size + 22, "text-anchor": "middle" }, "before"),
      svg("text", { x: 9, y: middle, "text-anchor": "middle", transform: `rotate(-90 9 ${middle})` }, "after"),
      ...dots,
    );
    const name = measure === "iou" ? "IoU" : "boundary IoU";
    byId("plot").setAttribute("aria-label", `${name} of ${dots.length} instances before and after`);
    byId("plot-caption").textContent = `${name}, a dot for each instance: above the line it got better.`;
    byId("chart").hidden = false;
    mark();
  };

  return { draw, mark, plot };
})();
