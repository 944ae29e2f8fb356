"use strict";
/* What the page knows: the index, the settings, and which images they leave in which order. Draws nothing. */

const report = {
  content: null, // the index, as build.py writes it
  outlines: () => {}, // replaced by layers.js; the data scripts call it
  changed: () => {}, // replaced by app.js; called when there is something else to see
  /* In a page of one file, pictures stand in the page under their names. */
  url: (name) => document.getElementById(name)?.textContent ?? name,
};

report.store = (() => {
  const settings = { sort: "listed", measure: "iou", category: "", size: "", search: "", seed: 1 };

  const sorts = (hasTruth) =>
    hasTruth
      ? [
          ["listed", "as listed"],
          ["best", "best: largest gain"],
          ["worst", "worst: largest loss"],
          ["lowest", "lowest after"],
          ["changed", "most changed"],
          ["random", "random"],
        ]
      : [
          ["listed", "as listed"],
          ["changed", "most changed"],
          ["least", "least changed"],
          ["random", "random"],
        ];

  /* The instances of an image that the filters let through, by index. */
  const shown = (image) => {
    const wanted = settings.search.trim().toLowerCase();
    const named = image.name.toLowerCase().includes(wanted);
    return image.instances.flatMap((one, index) => {
      if (settings.category && one.category !== settings.category) return [];
      if (settings.size && one.size !== settings.size) return [];
      return named || `${one.category} ${one.label}`.toLowerCase().includes(wanted) ? [index] : [];
    });
  };

  /* What the summary says of all that is let through. */
  const sums = () => {
    const { images, totals } = report.content;
    if (!settings.category && !settings.size && !settings.search.trim()) return totals; // of images not shown, too
    const entries = images.map((image) => shown(image).map((index) => image.instances[index]));
    const scored = entries.flat().filter((one) => one.iou);
    const mean = (value) => scored.reduce((sum, one) => sum + value(one), 0) / scored.length;
    const change = (one) => one.iou[1] - one.iou[0];
    return {
      images: entries.filter((some) => some.length).length,
      instances: entries.flat().length,
      scored: scored.length,
      iou: [0, 1].map((when) => mean((one) => one.iou[when])),
      boundary: [0, 1].map((when) => mean((one) => one.boundary[when])),
      better: mean((one) => (change(one) > totals.threshold ? 1 : 0)),
      worse: mean((one) => (change(one) < -totals.threshold ? 1 : 0)),
    };
  };

  /* IoU (or boundary IoU) after minus before; null without truth. */
  const gain = (instance) => {
    const pair = instance[settings.measure];
    return pair ? pair[1] - pair[0] : null;
  };

  /* A number from 0 to 1 that belongs to the image and the seed: the same order until it is shuffled again. */
  const chance = (number) => {
    let x = Math.imul(number + 1, 2654435761) ^ Math.imul(settings.seed, 1597334677);
    x = Math.imul(x ^ (x >>> 15), 2246822519);
    x = Math.imul(x ^ (x >>> 13), 3266489917);
    return ((x ^ (x >>> 16)) >>> 0) / 4294967296;
  };

  /* The instance an image stands for in a sort, and the key it is sorted by (ascending). */
  const leader = (instances) => {
    const by = (key) =>
      instances.reduce(
        (best, instance) => {
          const value = key(instance);
          return value !== null && (best.key === null || value < best.key) ? { key: value, instance } : best;
        },
        { key: null, instance: null },
      );
    switch (settings.sort) {
      case "best": return by((one) => (gain(one) === null ? null : -gain(one)));
      case "worst": return by(gain);
      case "lowest": return by((one) => (one[settings.measure] ? one[settings.measure][1] : null));
      case "changed": return by((one) => -one.changed);
      case "least": return by((one) => one.changed);
      default: return { key: null, instance: null };
    }
  };

  /* What one image shows in the list. */
  const entry = (image, number) => {
    const visible = shown(image).map((index) => image.instances[index]);
    if (!visible.length) return null;
    const lead = leader(visible);
    const gains = visible.map(gain).filter((value) => value !== null);
    const mean = gains.length ? gains.reduce((sum, value) => sum + value, 0) / gains.length : null;
    const changed = visible.reduce((sum, one) => sum + one.changed, 0) / visible.length;
    return {
      image, number, visible,
      lead: lead.instance,
      key: settings.sort === "random" ? chance(number) : lead.key,
      gain: lead.instance ? gain(lead.instance) : mean,
      changed: lead.instance ? lead.instance.changed : changed,
    };
  };

  /* The images that have an instance the filters let through, in order; those without a key come last. */
  const list = () => {
    const entries = report.content.images.map(entry).filter((one) => one !== null);
    if (settings.sort === "listed") return entries;
    const key = (one) => (one.key === null ? Infinity : one.key);
    return entries.sort((a, b) => key(a) - key(b) || a.number - b.number);
  };

  return { settings, sorts, shown, sums, gain, list };
})();

report.format = {
  points: (share) => (100 * share).toFixed(1),
  signed: (share) => {
    const text = (100 * Math.abs(share)).toFixed(1);
    return text === "0.0" ? "±0.0" : `${share < 0 ? "−" : "+"}${text}`;
  },
  tone: (share) => (share > 0.0005 ? "better" : share < -0.0005 ? "worse" : ""),
  count: (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`,
};

/* element("p", {class: "x"}, "text", child, …) */
report.element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
