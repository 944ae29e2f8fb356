"use strict";
/* Puts the parts together: totals, theme, keys. data/index.js starts it. */

report.index = (content) => {
  const byId = (id) => document.getElementById(id);
  report.content = content;

  const totals = () => {
    const { points, signed, tone } = report.format;
    const sums = report.store.sums();
    const rows = [
      ["images", `${sums.images}`],
      ["instances", `${sums.instances}`],
    ];
    if (sums.scored) {
      for (const [name, key] of [["IoU", "iou"], ["boundary IoU", "boundary"]]) {
        const [before, after] = sums[key];
        const change = report.element("span", { class: tone(after - before) }, signed(after - before));
        rows.push([name, `${points(before)} → ${points(after)} `, change]);
      }
      rows.push(["better / worse", `${Math.round(100 * sums.better)} % / ${Math.round(100 * sums.worse)} %`]);
    }
    byId("totals").replaceChildren(
      ...rows.map(([name, ...value]) =>
        report.element("div", {}, report.element("dt", {}, name), report.element("dd", {}, ...value))),
    );
  };

  const heading = () => {
    const truth = content.truth ? `; truth: ${content.truth}` : "";
    byId("files").textContent = `${content.before} → ${content.after}${truth}. ${content.chosen}`;
    byId("made").textContent = content.made;
    if (content.title) byId("title").textContent = document.title = content.title;
  };

  /* What the page shows, in its address. */
  const state = new URLSearchParams(location.hash.slice(1).replace(/^image-(\d+)$/, "image=$1"));
  const keepState = () => {
    const { settings } = report.store;
    const now = new URLSearchParams();
    const image = report.gallery.current();
    if (image !== null) now.set("image", image + 1);
    if (report.viewer.selected() !== null) now.set("instance", report.viewer.selected() + 1);
    for (const name of ["sort", "measure", "category", "size", "search"]) {
      if (settings[name] && !["listed", "iou"].includes(settings[name])) now.set(name, settings[name]);
    }
    if (settings.sort === "random") now.set("seed", settings.seed);
    if (report.viewer.layers().join() !== "outlines,fill") now.set("layers", report.viewer.layers().join());
    history.replaceState(null, "", `#${now}`);
  };

  const theme = () => {
    const names = ["auto", "light", "dark"];
    const apply = (name) => {
      if (name === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = name;
      byId("theme").textContent = `Theme: ${name}`;
    };
    let name = "auto";
    try {
      name = names.find((one) => one === localStorage.getItem("transfiner-refine-theme")) ?? "auto";
    } catch {
      // storage may be switched off; then the theme lasts as long as the page
    }
    apply(name);
    byId("theme").addEventListener("click", () => {
      name = names[(names.indexOf(name) + 1) % names.length];
      apply(name);
      try {
        localStorage.setItem("transfiner-refine-theme", name);
      } catch {
        // as above
      }
    });
  };

  const stepInstance = (by) => {
    const visible = report.viewer.visible();
    if (!visible.length) return;
    const at = visible.indexOf(report.viewer.selected());
    const next = at < 0 ? (by > 0 ? 0 : visible.length - 1) : (at + by + visible.length) % visible.length;
    report.viewer.select(visible[next]);
  };

  const keys = {
    ArrowUp: () => report.gallery.step(-1),
    ArrowDown: () => report.gallery.step(1),
    k: () => report.gallery.step(-1),
    j: () => report.gallery.step(1),
    ArrowLeft: (event) => report.viewer.setDivider(report.viewer.divider() - (event.shiftKey ? 10 : 2)),
    ArrowRight: (event) => report.viewer.setDivider(report.viewer.divider() + (event.shiftKey ? 10 : 2)),
    " ": () => report.viewer.setDivider(report.viewer.divider() > 50 ? 0 : 100),
    "[": () => stepInstance(-1),
    "]": () => stepInstance(1),
    Escape: () => report.viewer.select(null),
    z: () => report.viewer.toBoundary(),
    x: () => report.viewer.toObject(),
    0: () => report.viewer.fit(),
    "+": () => report.viewer.zoom(1.25),
    "=": () => report.viewer.zoom(1.25),
    "-": () => report.viewer.zoom(0.8),
    o: () => report.viewer.toggle("outlines"),
    f: () => report.viewer.toggle("fill"),
    t: () => report.viewer.toggle("truth"),
    w: () => report.viewer.toggle("wrong"),
    n: () => report.viewer.toggle("nodes"),
    "?": () => byId("help").showModal(),
  };
  for (const number of [1, 2, 3, 4, 5]) keys[number] = () => report.viewer.toggleLevel(number - 1);

  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const focused = event.target;
    if (focused.closest("select, input:not(#slider), textarea")) return;
    if (event.key === " " && focused.closest("button")) return; // presses the button
    const act = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act(event);
  };

  heading();
  theme();
  for (const name of ["sort", "measure", "category", "size", "search", "seed"]) {
    if (state.has(name)) report.store.settings[name] = state.get(name);
  }
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", () => location.reload()); // another address of this page was typed
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("chart-kind").addEventListener("change", () => report.instances.plot());
  const layers = state.get("layers");
  report.viewer.start(() => report.instances.mark(), layers === null ? null : layers.split(","));
  report.gallery.start((image, instance) => {
    report.viewer.show(image, instance);
    report.instances.draw(image);
    keepState();
  }, Number(state.get("image") ?? 1) - 1, Number(state.get("instance") ?? 0) - 1);
  const refresh = () => {
    totals();
    report.instances.plot();
    report.instances.draw();
  };
  report.changed = () => {
    refresh();
    keepState();
  };
  refresh();
  document.documentElement.dataset.ready = "true";
};
