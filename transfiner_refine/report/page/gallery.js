"use strict";
/* The list of images: thumbnails that load when they come into sight, sorting, filters. */

report.gallery = (() => {
  const byId = (id) => document.getElementById(id);
  const { settings } = report.store;
  let entries = [];
  let current = null; // number of the image shown
  let choose = () => {};

  const badge = (one) => {
    const { signed, points, tone } = report.format;
    if (one.gain === null) return report.element("span", { class: "gain" }, `${points(one.changed)} % changed`);
    const name = settings.measure === "iou" ? "IoU" : "boundary";
    return report.element("span", { class: `gain ${tone(one.gain)}` }, `${signed(one.gain)} ${name}`);
  };

  const item = (one) => {
    const { image } = one;
    const picture = report.element("img", {
      src: report.url(`thumbnails/${image.file}.jpg`), alt: "", loading: "lazy", decoding: "async", width: 88, height: 64,
    });
    const who = one.lead && one.lead.category ? `${one.lead.category} of ${one.visible.length}` : report.format.count(one.visible.length, "instance");
    const text = report.element(
      "span", {},
      report.element("span", { class: "name" }, image.name),
      badge(one),
      report.element("span", { class: "more" }, who),
    );
    const button = report.element("button", { type: "button", "data-number": one.number, tabindex: -1 }, picture, text);
    return report.element("li", {}, button);
  };

  const draw = () => {
    entries = report.store.list();
    byId("images").replaceChildren(...entries.map(item));
    const all = report.content.images.length;
    byId("count").textContent =
      entries.length === all ? report.format.count(all, "image") : `${entries.length} of ${all} images`;
    if (!entries.some((one) => one.number === current)) step(0);
    else mark(false);
  };

  const mark = (scroll) => {
    const old = byId("images").querySelector("[aria-current]");
    old?.removeAttribute("aria-current");
    old?.setAttribute("tabindex", "-1");
    const button = byId("images").querySelector(`[data-number="${current}"]`);
    button?.setAttribute("aria-current", "true");
    button?.setAttribute("tabindex", "0"); // one stop for the Tab key, arrows inside
    if (scroll) button?.scrollIntoView({ block: "nearest" });
  };

  /* Shows an image by its number in the index. */
  const show = (number, instance = null) => {
    current = number;
    mark(true);
    const one = entries.find((entry) => entry.number === number);
    choose(report.content.images[number], instance ?? (one && one.lead));
  };

  /* Goes some images on in the list; 0 goes to its start. */
  const step = (by) => {
    if (!entries.length) return choose(null, null);
    const at = entries.findIndex((one) => one.number === current);
    const next = by === 0 || at < 0 ? 0 : Math.min(entries.length - 1, Math.max(0, at + by));
    const focused = document.activeElement?.closest("#images");
    show(entries[next].number);
    if (focused) byId("images").querySelector("[aria-current]")?.focus();
  };

  const start = (onChoose, first, instance) => {
    choose = onChoose;
    const hasTruth = Boolean(report.content.totals.scored);
    byId("sort").append(
      ...report.store.sorts(hasTruth).map(([value, text]) => report.element("option", { value }, text)),
    );
    byId("measure").closest("label").hidden = !hasTruth;
    const named = report.content.categories.filter(([name]) => name);
    byId("category").append(
      ...named.map(([name, count]) => report.element("option", { value: name }, `${name} (${count})`)),
    );
    byId("category").closest("label").hidden = named.length === 0;
    for (const name of ["sort", "measure", "category", "size", "search"]) {
      byId(name).value = settings[name];
      if (byId(name).value !== settings[name]) settings[name] = byId(name).value = byId(name).options?.[0].value ?? "";
      byId(name).addEventListener(name === "search" ? "input" : "change", (event) => {
        settings[name] = event.target.value;
        if (name === "sort") settings.seed += 1; // "random" is another order each time it is chosen
        draw();
        if (name !== "measure") step(0);
        report.changed();
      });
    }
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("images").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      show(Number(button.dataset.number));
      const stage = byId("stage").getBoundingClientRect(); // on a phone the list lies below the picture
      if (stage.top < 0 || stage.bottom > innerHeight) byId("stage").scrollIntoView({ block: "nearest" });
    });
    current = first;
    draw();
    if (entries.some((one) => one.number === first)) show(first, report.content.images[first].instances[instance] ?? null);
  };

  return { start, step, show, current: () => current, position: () => [entries.findIndex((one) => one.number === current) + 1, entries.length] };
})();
