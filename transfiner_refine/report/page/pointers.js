"use strict";
/* Mouse, pen and fingers on the picture: drag to move, wheel or pinch to zoom, press to select, pull the divider. */

report.pointers = (picture, divider, act) => {
  const PRESS = 4; // screen pixels a press may move and still be no drag
  const down = new Map(); // pointer id → where it is
  let moved = 0;

  const middle = () => {
    const points = [...down.values()];
    const x = points.reduce((sum, point) => sum + point.x, 0) / points.length;
    const y = points.reduce((sum, point) => sum + point.y, 0) / points.length;
    const spread = points.length > 1 ? Math.hypot(points[0].x - points[1].x, points[0].y - points[1].y) : 0;
    return { x, y, spread };
  };

  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    picture.setPointerCapture(event.pointerId);
    if (!down.size) moved = 0;
    down.set(event.pointerId, { x: event.clientX, y: event.clientY, on: event.target });
  });
  picture.addEventListener("pointermove", (event) => {
    const point = down.get(event.pointerId);
    if (!point) return;
    const before = middle();
    Object.assign(point, { x: event.clientX, y: event.clientY });
    const after = middle();
    moved += Math.abs(after.x - before.x) + Math.abs(after.y - before.y) + Math.abs(after.spread - before.spread);
    if (moved <= PRESS) return;
    picture.classList.add("dragging");
    act.pan(after.x - before.x, after.y - before.y);
    if (before.spread > 0 && after.spread > 0) act.zoom(after.spread / before.spread, after.x, after.y);
  });
  const up = (event) => {
    const point = down.get(event.pointerId);
    down.delete(event.pointerId);
    picture.classList.remove("dragging");
    if (point && event.type === "pointerup" && moved <= PRESS) act.press(point.on);
  };
  picture.addEventListener("pointerup", up);
  picture.addEventListener("pointercancel", up);
  const wheel = (event) => {
    event.preventDefault();
    act.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), event.clientX, event.clientY);
  };
  picture.addEventListener("wheel", wheel, { passive: false });
  divider.addEventListener("wheel", wheel, { passive: false });

  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    document.getElementById("slider").focus({ preventScroll: true });
    event.preventDefault();
  });
  divider.addEventListener("pointermove", (event) => {
    if (divider.hasPointerCapture(event.pointerId)) act.divide(event.clientX);
  });
};
