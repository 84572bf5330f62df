"use strict";

// The part of the picture that all panels show, and the hands that move it.

const MOST_ZOOM = 24;
// pixels on the screen that the pointer moves before a press is a drag
const DRAG = 5;

/** All of an image of this size, until it is zoomed; `changed` is called after each change. */
function newView({ width, height }, changed) {
  const view = { left: 0, top: 0, zoom: 1 };
  const keep = () => {
    view.left = clamp(view.left, 0, width - width / view.zoom);
    view.top = clamp(view.top, 0, height - height / view.zoom);
    changed();
  };
  return Object.assign(view, {
    /** Zoom by a factor; the point, in pixels of the image, stays where it is. */
    by(factor, { x, y }) {
      const zoom = clamp(view.zoom * factor, 1, MOST_ZOOM);
      view.left = x - ((x - view.left) * view.zoom) / zoom;
      view.top = y - ((y - view.top) * view.zoom) / zoom;
      view.zoom = zoom;
      keep();
    },
    move(across, down) {
      view.left += across;
      view.top += down;
      keep();
    },
    reset() {
      view.zoom = 1;
      keep();
    },
    /** Move as little as it takes to show a point. */
    reveal({ x, y }) {
      const [left, top] = [clamp(view.left, x + 1 - width / view.zoom, x), clamp(view.top, y + 1 - height / view.zoom, y)];
      if (left !== view.left || top !== view.top) view.move(left - view.left, top - view.top);
    },
    /** Where a pointer is, in pixels of the image, with fractions. */
    under({ clientX, clientY }, canvas) {
      const box = canvas.getBoundingClientRect();
      return {
        x: view.left + (((clientX - box.left) / box.width) * width) / view.zoom,
        y: view.top + (((clientY - box.top) / box.height) * height) / view.zoom,
      };
    },
    /** Pixels of the image for each pixel of a canvas on the screen. */
    scale: (canvas) => width / view.zoom / canvas.getBoundingClientRect().width,
  });
}

/** Let the wheel and two fingers zoom, and a drag move, what a canvas shows. Returns whether the last press was one. */
function zoomable(canvas, view) {
  const pressed = new Map();
  let dragged = false;
  let from = null;

  canvas.addEventListener(
    "wheel",
    (event) => {
      // the page scrolls on where there is nothing to zoom out of
      if (view.zoom === 1 && event.deltaY >= 0) return;
      event.preventDefault();
      view.by(2 ** (-clamp(event.deltaY, -100, 100) / 200), view.under(event, canvas));
    },
    { passive: false },
  );
  canvas.addEventListener("pointerdown", (event) => {
    if (!pressed.size) dragged = false;
    pressed.set(event.pointerId, event);
    from = event;
    // two fingers are no point that is looked from
    if (pressed.size === 2) dragged = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pressed.get(event.pointerId);
    if (!before) return;
    pressed.set(event.pointerId, event);
    if (pressed.size === 2) {
      const [other] = [...pressed.values()].filter(({ pointerId }) => pointerId !== event.pointerId);
      const spread = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
      const middle = (one) => view.under({ clientX: (one.clientX + other.clientX) / 2, clientY: (one.clientY + other.clientY) / 2 }, canvas);
      const [old, next] = [middle(before), middle(event)];
      view.move(old.x - next.x, old.y - next.y);
      view.by(spread(event) / spread(before), middle(event));
    } else if (event.pointerType !== "touch" && view.zoom > 1) {
      dragged ||= Math.hypot(event.clientX - from.clientX, event.clientY - from.clientY) > DRAG;
      const scale = view.scale(canvas);
      if (dragged) view.move((before.clientX - event.clientX) * scale, (before.clientY - event.clientY) * scale);
    }
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    canvas.addEventListener(end, (event) => pressed.delete(event.pointerId));
  }
  return () => dragged;
}
