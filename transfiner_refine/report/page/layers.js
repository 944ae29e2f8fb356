"use strict";
/* What is drawn on the image: outlines, fills, true outlines, wrong pixels, quadtree nodes. All vectors. */

report.layers = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const colours = ["#00aeff", "#ffb000", "#b27aff", "#00d2c4", "#ffe14d", "#7f9bff", "#d9a066", "#c9d1dc"]; // as overlay.py
  const levelColours = ["#ffe14d", "#ff9233", "#ff3d77", "#b04dff", "#3d8bff"]; // coarse to fine
  const waiting = new Map(); // file → functions that want its outlines
  const ready = new Map(); // file → instances; the last few images only
  const KEPT = 24;

  const svg = (name, attributes = {}, ...children) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  /* The data scripts call this with the outlines of one image. */
  report.outlines = ({ file, instances }) => {
    ready.set(file, instances);
    if (ready.size > KEPT) ready.delete(ready.keys().next().value);
    for (const done of waiting.get(file) ?? []) done(instances);
    waiting.delete(file);
  };

  /* Outlines of an image, loaded once by a script element: pages opened from disk may not fetch. */
  const load = (file) =>
    new Promise((done, fail) => {
      if (ready.has(file)) return done(ready.get(file));
      if (waiting.has(file)) return waiting.get(file).push(done);
      const inside = document.getElementById(`data/${file}`); // of a page of one file
      if (inside) return done(JSON.parse(inside.textContent).instances);
      waiting.set(file, [done]);
      const script = report.element("script", { src: `data/${file}.js` });
      script.addEventListener("load", () => script.remove());
      script.addEventListener("error", () => {
        waiting.delete(file);
        script.remove();
        fail(new Error(`data/${file}.js is missing; the report folder must stay together`));
      });
      document.head.append(script);
    });

  /* One side of the divider: the masks before, or after. */
  const side = (name, drawn, visible) => {
    const group = svg("g");
    for (const index of visible) {
      const one = drawn[index];
      const d = one[name];
      const other = one.truth ?? one[name === "before" ? "after" : "before"];
      const colour = colours[index % colours.length];
      group.append(
        svg("g", { "data-instance": index },
          svg("path", { class: "mask", d, fill: colour }),
          svg("path", { class: "wrong", d: d + other }), // by the even-odd rule: what is in one of the two
          svg("path", { class: "casing", d }),
          svg("path", { class: "line", d, stroke: colour }),
        ),
      );
    }
    return group;
  };

  const trueOutlines = (drawn, visible) => {
    const group = svg("g", {});
    for (const index of visible) {
      const d = drawn[index].truth;
      if (d) {
        group.append(
          svg("g", { "data-instance": index }, svg("path", { class: "true-casing", d }), svg("path", { class: "true", d })),
        );
      }
    }
    return group;
  };

  /* Cells of one level as one path in units of cells. */
  const cellsPath = ({ grid, cells }) => {
    let at = 0;
    let path = "";
    for (const step of cells) {
      at += step;
      path += `M${at % grid} ${Math.floor(at / grid)}h1v1h-1z`;
    }
    return path;
  };

  const quadtree = (one, index) => {
    const group = svg("g", { "data-instance": index, class: "nodes" });
    if (!one.quadtree) return group;
    const [x0, y0, x1, y1] = one.quadtree.roi;
    one.quadtree.levels.forEach((level, number) => {
      const colour = levelColours[number % levelColours.length];
      group.append(
        svg("path", {
          d: cellsPath(level), fill: colour, stroke: colour, "data-level": number,
          transform: `translate(${x0} ${y0}) scale(${(x1 - x0) / level.grid} ${(y1 - y0) / level.grid})`,
        }),
      );
    });
    return group;
  };

  return { svg, load, side, trueOutlines, quadtree, colours, levelColours };
})();
