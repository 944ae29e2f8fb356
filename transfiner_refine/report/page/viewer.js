"use strict";
/* The picture: image, layers, the divider between before and after, zoom and pan. */

report.viewer = (() => {
  const byId = (id) => document.getElementById(id);
  const { svg } = report.layers;
  const shown = { outlines: true, fill: true, truth: false, wrong: false, nodes: false };
  const levels = new Set([0, 1, 2, 3, 4]); // levels of the quadtree that are drawn
  const view = { x: 0, y: 0, scale: 1, fit: 1 }; // image pixel at the stage's left top, screen pixels a pixel
  const LARGEST = 64; // screen pixels an image pixel
  const CONTEXT = [0.35, 64]; // least side that "Boundary" shows: a share of the object's, and pixels
  let image = null;
  let drawn = null; // outlines of the image, null while they load
  let selected = null; // index of an instance
  let onSelect = () => {};
  let parts = {};

  const stage = () => byId("stage").getBoundingClientRect();
  const visible = () => report.store.shown(image);

  /* Moves the window onto the image; everything on it follows by the viewBox. */
  const place = () => {
    const { width, height } = stage();
    if (!image || !width || !height) return;
    const box = `${view.x} ${view.y} ${width / view.scale} ${height / view.scale}`;
    for (const layer of byId("picture").children) layer.setAttribute("viewBox", box);
    parts.image?.classList.toggle("magnified", image.scale === 1 && view.scale > 3);
    byId("zoom").textContent = `${Math.round(100 * view.scale)} %`;
    overview(width, height);
    divide();
  };

  /* Where the enlarged part lies in the image. */
  const overview = (width, height) => {
    const map = byId("overview");
    map.toggleAttribute("hidden", view.scale < 2 * view.fit);
    map.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    const part = { x: view.x, y: view.y, width: width / view.scale, height: height / view.scale };
    for (const [name, value] of Object.entries(part)) map.lastElementChild.setAttribute(name, value);
  };

  /* Cuts both sides at the divider; they are drawn already. */
  const divide = () => {
    const share = Number(byId("slider").value) / 100;
    byId("divider").style.left = `${100 * share}%`;
    byId("slider").setAttribute("aria-valuetext", `${Math.round(100 * share)} % before`);
    if (!parts.before) return;
    parts.before.style.clipPath = `inset(0 ${100 * (1 - share)}% 0 0)`;
    parts.after.style.clipPath = `inset(0 0 0 ${100 * share}%)`;
  };

  const setDivider = (percent) => {
    byId("slider").value = Math.min(100, Math.max(0, percent));
    divide();
  };

  /* Shows a box [x0, y0, x1, y1] of the image, with a margin as a share of its side. */
  const frame = ([x0, y0, x1, y1], margin) => {
    const { width, height } = stage();
    const [w, h] = [(x1 - x0) * (1 + margin), (y1 - y0) * (1 + margin)];
    view.scale = Math.min(LARGEST, width / w, height / h);
    view.x = (x0 + x1) / 2 - width / view.scale / 2;
    view.y = (y0 + y1) / 2 - height / view.scale / 2;
    place();
  };

  const fit = () => {
    if (!image) return;
    frame([0, 0, image.width, image.height], 0.02);
    view.fit = view.scale;
    place();
  };

  /* Zooms by a factor about a point of the stage (its middle by default). */
  const zoom = (factor, at = null) => {
    const { width, height } = stage();
    const [px, py] = at ?? [width / 2, height / 2];
    const scale = Math.min(LARGEST, Math.max(view.fit / 2, view.scale * factor));
    view.x += px / view.scale - px / scale;
    view.y += py / view.scale - py / scale;
    view.scale = scale;
    place();
  };

  const target = () => {
    if (selected !== null) return image.instances[selected];
    const candidates = visible().map((index) => image.instances[index]);
    return candidates.reduce((best, one) => (best && best.changed >= one.changed ? best : one), null);
  };
  const toObject = () => image && target() && frame(target().box, 0.15);
  const toBoundary = () => {
    if (!image || !target()) return;
    const { focus: [x0, y0, x1, y1], box } = target();
    const least = Math.max(CONTEXT[0] * Math.max(box[2] - box[0], box[3] - box[1]), CONTEXT[1]);
    const more = Math.max(0, least - Math.max(x1 - x0, y1 - y0)) / 2;
    frame([x0 - more, y0 - more, x1 + more, y1 + more], 0);
  };

  const applyShown = () => {
    for (const [name, on] of Object.entries(shown)) {
      byId("picture").classList.toggle(name, on);
      byId(`layer-${name}`).setAttribute("aria-pressed", on);
    }
    byId("levels").hidden = !shown.nodes;
  };
  const toggle = (name) => {
    if (byId(`layer-${name}`).disabled) return;
    shown[name] = !shown[name];
    applyShown();
    report.changed();
  };
  const toggleLevel = (number) => {
    if (levels.has(number)) levels.delete(number);
    else levels.add(number);
    byId("levels").children[number]?.setAttribute("aria-pressed", levels.has(number));
    applyLevels();
  };
  const applyLevels = () => {
    for (const path of byId("picture").querySelectorAll("[data-level]")) {
      path.style.display = levels.has(Number(path.dataset.level)) ? "" : "none";
    }
  };

  const applySelection = () => {
    for (const group of byId("picture").querySelectorAll("[data-instance]")) {
      group.classList.toggle("faded", selected !== null && Number(group.dataset.instance) !== selected);
    }
  };

  const drawLayers = () => {
    for (const name of ["before", "after", "over"]) parts[name]?.replaceChildren();
    if (!drawn) return;
    const chosen = visible();
    parts.before.append(report.layers.side("before", drawn, chosen));
    parts.after.append(report.layers.side("after", drawn, chosen));
    parts.over.append(
      ...chosen.map((index) => report.layers.quadtree(drawn[index], index)),
      report.layers.trueOutlines(drawn, chosen),
    );
    applyLevels();
    applySelection();
  };

  const describe = () => {
    const [position, count] = report.gallery.position();
    const chosen = visible().map((index) => image.instances[index]);
    const scored = chosen.filter((one) => one.iou);
    const mean = (name, i) => report.format.points(scored.reduce((sum, one) => sum + one[name][i], 0) / scored.length);
    const scores = scored.length
      ? ` · IoU ${mean("iou", 0)} → ${mean("iou", 1)} · boundary IoU ${mean("boundary", 0)} → ${mean("boundary", 1)}`
      : "";
    const text = `${position} of ${count} · ${image.name} · ${image.width}×${image.height} · ` +
      `${report.format.count(chosen.length, "instance")}${scores}`;
    byId("caption").textContent = text;
    byId("picture").setAttribute("aria-label", `Masks before and after on the image. ${text}`);
  };

  /* Shows an image; its outlines come a moment later. */
  const show = async (next, instance) => {
    image = next;
    drawn = null;
    selected = image && instance ? image.instances.indexOf(instance) : null;
    byId("notice").hidden = true;
    byId("picture").replaceChildren();
    parts = {};
    if (!image) {
      byId("caption").textContent = "No image has such instances.";
      byId("picture").setAttribute("aria-label", "No image");
      return;
    }
    parts.image = svg("image", {
      href: report.url(`images/${image.file}.jpg`), width: image.width, height: image.height, preserveAspectRatio: "none",
    });
    for (const name of ["ground", "before", "after", "over"]) {
      parts[name] = svg("svg", { class: name, preserveAspectRatio: "none", "aria-hidden": "true" });
      byId("picture").append(parts[name]);
    }
    parts.ground.append(parts.image);
    for (const [name, value] of [["href", report.url(`thumbnails/${image.file}.jpg`)], ["width", image.width], ["height", image.height]]) {
      byId("overview").firstElementChild.setAttribute(name, value);
    }
    fit();
    describe();
    try {
      const loaded = await report.layers.load(next.file);
      if (image !== next) return; // another image was chosen meanwhile
      drawn = loaded;
      drawLayers();
      document.documentElement.dataset.shown = next.file;
    } catch (error) {
      byId("notice").textContent = error.message;
      byId("notice").hidden = false;
    }
  };

  const select = (index) => {
    selected = index;
    applySelection();
    onSelect(index);
    report.changed();
  };

  const start = (whenSelected, layers) => {
    onSelect = whenSelected;
    for (const name of layers === null ? [] : Object.keys(shown)) shown[name] = layers.includes(name);
    applyShown();
    for (const name of Object.keys(shown)) byId(`layer-${name}`).addEventListener("click", () => toggle(name));
    const { content } = report;
    byId("layer-truth").hidden = !content.totals.scored;
    byId("layer-truth").disabled = !content.totals.scored;
    if (!content.totals.scored) byId("layer-wrong").innerHTML = "Changed (<u>W</u>)";
    byId("layer-nodes").hidden = !content.quadtrees;
    byId("layer-nodes").disabled = !content.quadtrees;
    byId("levels").append(
      ...report.layers.levelColours.map((colour, number) => {
        const button = report.element(
          "button", { type: "button", "aria-pressed": "true", style: `--level: ${colour}` }, String(28 * 2 ** number),
        );
        button.addEventListener("click", () => toggleLevel(number));
        return button;
      }),
    );
    byId("zoom-in").addEventListener("click", () => zoom(1.5));
    byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
    byId("zoom-fit").addEventListener("click", fit);
    byId("zoom-object").addEventListener("click", toObject);
    byId("zoom-boundary").addEventListener("click", toBoundary);
    byId("slider").addEventListener("input", divide);
    new ResizeObserver(() => (view.scale === view.fit ? fit() : place())).observe(byId("stage"));
    report.pointers(byId("picture"), byId("divider"), {
      pan: (dx, dy) => {
        view.x -= dx / view.scale;
        view.y -= dy / view.scale;
        place();
      },
      zoom: (factor, x, y) => zoom(factor, [x - stage().left, y - stage().top]),
      divide: (x) => setDivider((100 * (x - stage().left)) / stage().width),
      press: (element) => {
        const group = element.closest?.("[data-instance]");
        select(group ? Number(group.dataset.instance) : null);
      },
    });
  };

  return {
    start, show, select, toggle, toggleLevel, zoom, fit, toObject, toBoundary, setDivider,
    divider: () => Number(byId("slider").value),
    selected: () => selected,
    layers: () => Object.keys(shown).filter((name) => shown[name]),
    visible: () => (image ? visible() : []),
  };
})();
