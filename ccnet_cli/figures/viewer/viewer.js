"use strict";

// The page: what is shown, and what mouse, touch and keyboard do to it.
//
// For scripts and tests, window.ccnet offers
//   ready                      a promise that resolves once everything can be called
//   map(x, y, number)          the network's weights as Float32Array (h * w), which sum to 1: from the image's pixel
//                              (x, y) through passes 1 to `number`, or through that one alone where passes stand side
//                              by side; independent of the controls
//   cell(x, y)                 the feature cell [x, y] of a pixel
//   look(x, y)                 show a pixel at once; returns the milliseconds that it took

// a panel's pixels, whatever the picture's size: enough for a sharp map, few enough to redraw while the pointer moves
const PANEL_AREA = 260_000;
const LISTED_CLASSES = 8;

const byId = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// more of them in a row would make the panels too small
const COLUMNS = 3;

const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

function short(weight) {
  return weight === 0 ? "0" : weight < 0.001 ? weight.toExponential(1) : weight.toPrecision(2);
}

/** The point of a link #x=..&y=.. that lies in an image, or null. */
function pointOf(hash, { width, height }) {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const [x, y] = ["x", "y"].map((name) => (/^\d{1,9}$/.test(values.get(name) ?? "") ? Number(values.get(name)) : NaN));
  return x < width && y < height ? { x, y } : null;
}

async function load(page) {
  const arrays = unpack(page.arrays, await inflate(bytesOf(byId("payload").textContent)));
  const passes = Array.from({ length: page.recurrence }, (_, index) => {
    const own = (name) => arrays[`${name}${index + 1}`];
    if (page.form === "others") {
      const all = (...names) => Object.fromEntries(names.map((name) => [name, own(name)]));
      return page.steps[index] === null
        ? passOfClasses(page.grid, { ...all("codes", "scale", "channel"), classes: own("class") })
        : passOfGroups(page.grid, all("query", "key", "own", "group", "keygroup"), page.steps[index]);
    }
    return page.form === "weights"
      ? passOfWeights(page.grid, { codes: own("codes"), scale: own("scale"), gain: own("gain") }, page.levels)
      : passOfProjections(page.grid, { query: own("query"), key: own("key") }, page.steps[index]);
  });
  const tables = Object.fromEntries(page.colours.map((name, i) => [name, arrays.tables.subarray(768 * i, 768 * (i + 1))]));
  const picture = new Image();
  picture.src = page.picture;
  await picture.decode();
  return { passes, tables, picture, cells: arrays.cells, prediction: arrays.prediction, label: arrays.label };
}

function start(page, data) {
  const { image, grid, align } = page;
  const zoom = Math.sqrt(PANEL_AREA / (image.width * image.height));
  const size = {
    width: Math.min(Math.max(Math.round(image.width * zoom), 1), 4096),
    height: Math.min(Math.max(Math.round(image.height * zoom), 1), 4096),
  };
  const rows = neighbours(size.height, grid.height, align);
  const columns = neighbours(size.width, grid.width, align);
  const passes = Array.from({ length: page.recurrence }, (_, index) => index + 1);

  const state = {
    point: page.point,
    pins: [],
    chosen: null,
    read: null,
    clip: page.clip,
    opacity: 0.25,
    log: false,
    residual: false,
    colours: page.colours[0],
  };

  const cellAt = ({ x, y }) => ({
    x: cellOf(x, image.width, grid.width, align),
    y: cellOf(y, image.height, grid.height, align),
  });
  const pixelAt = (cell) => ({
    x: pixelOf(cell.x, image.width, grid.width, align),
    y: pixelOf(cell.y, image.height, grid.height, align),
  });
  const indexOf = (cell) => cell.y * grid.width + cell.x;
  const classAt = (ids, { x, y }) => {
    const [column, row] = [
      Math.floor(((x + 0.5) * page.classes_size.width) / image.width),
      Math.floor(((y + 0.5) * page.classes_size.height) / image.height),
    ];
    return ids[row * page.classes_size.width + column];
  };
  const nameOf = (id) => page.names[id] ?? "void";
  const onPanel = ({ x, y }) => [((x + 0.5) * size.width) / image.width, ((y + 0.5) * size.height) / image.height];

  const mapOf = (point, number, residual = 0) => {
    const { ofClass } = data.passes[number - 1];
    if (ofClass) return ofClass(classAt(data.prediction, point));
    const chain = data.passes.slice(page.composed ? 0 : number - 1, number);
    return compose(chain, grid, indexOf(cellAt(point)), residual);
  };

  // what a point's maps say; the residual is the one control that changes numbers
  const look = (point) => {
    const cell = cellAt(point);
    const residual = state.residual ? Math.abs(page.gamma) : 0;
    return passes.map((number) => {
      const map = mapOf(point, number, residual);
      const statistics = describe(map, grid, indexOf(cell), data.cells, page.names.length);
      const { channelOf } = data.passes[number - 1];
      // a channel has no cross
      const own = channelOf && { on: null, off: null, class: classAt(data.prediction, point) };
      return { map, ...statistics, ...own, limit: clipLimit(map, grid, indexOf(cell), state.clip) };
    });
  };
  // a map's figures in a line
  const summary = (one, index) =>
    one.class === undefined
      ? `on cross ${percent(one.on)}, off ${percent(one.off)}`
      : `channel ${data.passes[index].channelOf(one.class)}, adds most to ${nameOf(one.class)}; on it ${percent(one.byClass[one.class])}`;

  // ---- panels

  const newPanel = (title, note) => {
    const canvas = element("canvas", { width: size.width, height: size.height });
    canvas.setAttribute("role", "img");
    const caption = element("figcaption", {}, element("h2", { textContent: title }), " ", element("span", { textContent: note }));
    const figure = element("figure", { className: "panel" }, caption, canvas);
    byId("panels").insertBefore(figure, byId("reading"));
    return { title, figure, canvas, context: canvas.getContext("2d") };
  };
  const picture = { canvas: byId("picture"), context: byId("picture").getContext("2d", { willReadFrequently: true }) };
  Object.assign(picture.canvas, size);
  const grey = greyOf(picture.context, data.picture, size);

  const notes = (recurrence) => {
    if (!page.composed) return data.passes[recurrence - 1].ofClass ? "what one channel gathers, by class" : "";
    if (page.form === "others") return recurrence === 1 ? "one pass" : `${recurrence} passes`;
    return recurrence === 1 ? "one pass: its row and column" : `${recurrence} passes: everywhere`;
  };
  const mapPanels = passes.map((recurrence) => {
    const panel = newPanel(page.titles[recurrence - 1], notes(recurrence));
    panel.canvas.id = `map-${recurrence}`;
    const bar = element("canvas", { width: 256, height: 1 });
    bar.setAttribute("aria-hidden", "true");
    const [low, high, fractions] = ["low", "high", "fractions"].map((className) => element("span", { className }));
    panel.figure.append(element("div", { className: "scale" }, low, bar, high, fractions));
    return { ...panel, bar: bar.getContext("2d"), low, high, fractions, pixels: new ImageData(size.width, size.height) };
  });
  const classPanels = [
    ["Prediction", "prediction", data.prediction],
    ["Label", "label", data.label],
  ]
    .filter(([, , ids]) => ids)
    .map(([title, id, ids]) => {
      const panel = newPanel(title, "");
      panel.canvas.id = id;
      const pixels = new ImageData(size.width, size.height);
      paintClasses(pixels, grey, ids, page.classes_size, page.palette);
      return { ...panel, ids, pixels, note: panel.figure.querySelector("span") };
    });

  const drawPicture = (context, point, pins) => {
    context.drawImage(data.picture, 0, 0, size.width, size.height);
    const [x, y] = onPanel(point);
    const cell = cellAt(point);
    const [left, right] = extent(cell.x, image.width, grid.width, align).map((edge) => (edge * size.width) / image.width);
    const [top, bottom] = extent(cell.y, image.height, grid.height, align).map((edge) => (edge * size.height) / image.height);
    markCross(context, x, y, size);
    markPoint(context, x, y);
    markCell(context, [left, top, right, bottom]);
    pins.forEach((pin, i) => markPin(context, ...onPanel(pin), i + 1, i === state.chosen));
  };

  const drawMap = ({ context, pixels }, point, { map, limit, peak }) => {
    const shades = enlarge(map.map((weight) => shade(weight, limit, state.log)), grid.width, rows, columns);
    paintShades(pixels.data, grey, shades, data.tables[state.colours], state.opacity);
    context.putImageData(pixels, 0, 0);
    const [x, y] = onPanel(point);
    markTicks(context, x, y, size);
    markPoint(context, x, y);
    ring(context, ...onPanel(pixelAt({ x: peak % grid.width, y: Math.floor(peak / grid.width) })), 15, "white", 1.5);
  };

  const drawClasses = ({ context, pixels }, point) => {
    context.putImageData(pixels, 0, 0);
    markCross(context, ...onPanel(point), size);
    markPoint(context, ...onPanel(point));
  };

  // ---- the read-out

  const line = (title, cells) =>
    element("tr", {}, element("th", { scope: "row" }, ...title), ...cells.map((content) => element("td", {}, ...content)));

  const fractionCell = (fraction) => {
    if (fraction === null) return ["–"];
    const bar = element("span", { className: "bar" });
    bar.style.width = `${(6 * fraction).toFixed(2)}rem`;
    bar.setAttribute("aria-hidden", "true");
    return [percent(fraction), bar];
  };

  const classTitle = (id) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = `rgb(${page.palette[id].join(" ")})`;
    swatch.setAttribute("aria-hidden", "true");
    return ["on ", swatch, page.names[id]];
  };

  const showReading = (maps) => {
    const head = byId("reading").querySelector("thead");
    const body = byId("reading").querySelector("tbody");
    head.replaceChildren(
      element("tr", {}, element("td"), ...page.titles.map((title) => element("th", { scope: "col", textContent: title }))),
    );
    const read = state.read ?? cellAt(state.point);
    const pixel = state.read ? pixelAt(read) : state.point;
    const classes = page.names
      .map((_, id) => id)
      .filter((id) => maps.some(({ byClass }) => byClass[id] >= 0.0005))
      .sort((a, b) => maps.at(-1).byClass[b] - maps.at(-1).byClass[a])
      .slice(0, LISTED_CLASSES);
    const peakText = ({ map, peak }) => {
      const pixel = pixelAt({ x: peak % grid.width, y: Math.floor(peak / grid.width) });
      return [`${short(map[peak])} at (${pixel.x}, ${pixel.y})`];
    };
    body.replaceChildren(
      line([`weight ${state.read ? "under the pointer" : "of the point itself"}, (${pixel.x}, ${pixel.y})`], maps.map(({ map }) => [short(map[indexOf(read)])])),
      line(["largest weight"], maps.map(peakText)),
      line(["entropy"], maps.map(({ entropy }) => [`${entropy.toFixed(2)} bits, like ${(2 ** entropy).toFixed(1)} equal cells`])),
      line(["on the cross"], maps.map(({ on }) => fractionCell(on))),
      line(["off the cross"], maps.map(({ off }) => fractionCell(off))),
      ...classes.map((id) => line(classTitle(id), maps.map(({ byClass }) => fractionCell(byClass[id])))),
    );
  };

  const spoken = ({ on, off }) => `${percent(on)} on the cross, ${percent(off)} off it`;
  const announcement = (maps) => {
    const { x, y } = state.point;
    const lines = maps.map((one, i) => `${page.titles[i]}: ${one.class === undefined ? spoken(one) : summary(one, i)}.`);
    return `Point ${x}, ${y}: ${nameOf(classAt(data.prediction, state.point))}. ${lines.join(" ")}`;
  };

  // ---- drawing everything

  const lowest = (limit) => (state.log ? short(limit / 10 ** DECADES) : "0");

  let timer = 0;
  const show = () => {
    const maps = look(state.point);
    const table = data.tables[state.colours];
    const cell = cellAt(state.point);
    drawPicture(picture.context, state.point, state.pins);
    mapPanels.forEach((panel, i) => {
      drawMap(panel, state.point, maps[i]);
      paintBar(panel.bar, table, 0, 0, 256, 1);
      panel.low.textContent = lowest(maps[i].limit);
      panel.high.textContent = `≥ ${short(maps[i].limit)}`;
      panel.fractions.textContent = summary(maps[i], i);
    });
    classPanels.forEach((panel) => {
      drawClasses(panel, state.point);
      panel.note.textContent = nameOf(classAt(panel.ids, state.point));
    });
    byId("where").textContent = `(${state.point.x}, ${state.point.y}), cell (${cell.x}, ${cell.y}), ${nameOf(classAt(data.prediction, state.point))}`;
    showReading(maps);
    // the link and what is read aloud follow once the point rests
    clearTimeout(timer);
    timer = setTimeout(() => settle(maps), 200);
  };

  const settle = (maps) => {
    const text = announcement(maps);
    byId("status").textContent = text;
    picture.canvas.setAttribute("aria-label", `${page.name}, looking from point ${state.point.x}, ${state.point.y}`);
    mapPanels.forEach(({ canvas }, i) => {
      const text = maps[i].class === undefined ? spoken(maps[i]) : summary(maps[i], i);
      canvas.setAttribute("aria-label", `Attention map, ${page.titles[i]}: ${text}`);
    });
    classPanels.forEach(({ canvas, title, ids }) =>
      canvas.setAttribute("aria-label", `${title}: ${nameOf(classAt(ids, state.point))} at the point`),
    );
    const link = `#x=${state.point.x}&y=${state.point.y}`;
    if (location.hash !== link) history.replaceState(null, "", link);
  };

  let request = 0;
  const redraw = () => {
    request ||= requestAnimationFrame(() => {
      request = 0;
      show();
    });
  };

  const go = (point) => {
    state.point = {
      x: Math.min(Math.max(point.x, 0), image.width - 1),
      y: Math.min(Math.max(point.y, 0), image.height - 1),
    };
    redraw();
  };

  // ---- pins

  const samePoint = (a, b) => a.x === b.x && a.y === b.y;

  const choose = (index) => {
    state.chosen = index;
    if (index !== null) go(state.pins[index]);
    showPins();
    redraw();
  };

  const pin = () => {
    const there = state.pins.findIndex((other) => samePoint(other, state.point));
    if (there < 0) state.pins.push(state.point);
    choose(there < 0 ? state.pins.length - 1 : there);
  };

  const unpin = (index) => {
    state.pins.splice(index, 1);
    choose(state.pins.length ? Math.min(index, state.pins.length - 1) : null);
  };

  const showPins = () => {
    byId("pins").replaceChildren(
      ...state.pins.map((point, index) => {
        const name = nameOf(classAt(data.prediction, point));
        const select = element("button", { type: "button", textContent: `${index + 1}: (${point.x}, ${point.y}) ${name}` });
        select.setAttribute("aria-pressed", String(index === state.chosen));
        select.addEventListener("click", () => choose(index));
        const remove = element("button", { type: "button", textContent: "×" });
        remove.setAttribute("aria-label", `Remove pin ${index + 1}`);
        remove.addEventListener("click", () => {
          unpin(index);
          // the button is gone; the focus must not be
          (byId("pins").querySelector("button") ?? picture.canvas).focus();
        });
        return element("span", { className: "pin" }, select, remove);
      }),
    );
  };

  // ---- pointer

  const pointUnder = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const inside = (value, pixels) => Math.min(Math.max(Math.floor(value * pixels), 0), pixels - 1);
    return {
      x: inside((event.clientX - box.left) / box.width, image.width),
      y: inside((event.clientY - box.top) / box.height, image.height),
    };
  };

  const followed = (canvas) => {
    // a finger looks around while it is down, a mouse always
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "touch" || event.buttons) go(pointUnder(event));
    });
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch" && state.chosen !== null) go(state.pins[state.chosen]);
    });
    canvas.addEventListener("click", (event) => {
      go(pointUnder(event));
      pin();
    });
  };
  followed(picture.canvas);
  classPanels.forEach(({ canvas }) => followed(canvas));
  mapPanels.forEach(({ canvas }) => {
    canvas.addEventListener("pointermove", (event) => {
      state.read = cellAt(pointUnder(event));
      redraw();
    });
    canvas.addEventListener("pointerleave", () => {
      state.read = null;
      redraw();
    });
    canvas.addEventListener("click", (event) => {
      choose(null);
      go(pointUnder(event));
    });
  });

  // ---- controls and keys

  const setters = {
    colours: (value) => (state.colours = value),
    clip: (value) => (state.clip = Number(value)),
    opacity: (value) => (state.opacity = Number(value)),
    log: (value) => (state.log = value),
    residual: (value) => (state.residual = value),
    theme: (value) => (document.documentElement.dataset.theme = value),
  };
  const set = (name, value) => {
    const field = byId(name);
    if (field.type === "checkbox") field.checked = value;
    else field.value = value;
    setters[name](field.type === "checkbox" ? field.checked : field.value);
    byId("clip-value").textContent = `${state.clip.toFixed(1)} %`;
    byId("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
    byId("residual-note").hidden = !state.residual;
    redraw();
  };
  const nextOf = (list, current) => list[(list.indexOf(current) + 1) % list.length];

  byId("colours").append(...page.colours.map((name) => element("option", { value: name, textContent: name })));
  // what a head adds by a weight of its own, or not at all, is no sum of passes
  const gamma = page.composed ? page.gamma : null;
  byId("residual-label").hidden = gamma === null;
  byId("gamma").textContent = `γ = ${(gamma ?? 0).toPrecision(3).replace("-", "−")}`;
  byId("residual-note").textContent =
    `Each pass adds γ times what it gathers to what is there, so the maps are those of I + |γ| A` +
    `${page.gamma < 0 ? " (γ is negative here, its size is taken)" : ""}, scaled to sum to 1.`;
  for (const name of Object.keys(setters)) {
    byId(name).addEventListener("input", ({ target }) => set(name, target.type === "checkbox" ? target.checked : target.value));
  }
  byId("controls").addEventListener("submit", (event) => event.preventDefault());

  const figure = () => {
    const points = state.pins.length ? state.pins : [state.point];
    const figureRows = points.map((point) => {
      const copy = (draw) => {
        const canvas = element("canvas", size);
        draw(canvas.getContext("2d"));
        return canvas;
      };
      const maps = look(point);
      const name = nameOf(classAt(data.prediction, point));
      return {
        panels: [
          { title: "input", note: `(${point.x}, ${point.y})  ${name}`, canvas: copy((context) => drawPicture(context, point, [])) },
          ...maps.map((one, i) => ({
            title: page.titles[i],
            note: summary(one, i),
            scale: [lowest(one.limit), `≥ ${short(one.limit)}`],
            canvas: copy((context) => drawMap({ context, pixels: mapPanels[i].pixels }, point, one)),
          })),
        ],
      };
    });
    return figureOf(figureRows, data.tables[state.colours], size);
  };

  const save = () =>
    figure().toBlob((blob) => {
      const link = element("a", { href: URL.createObjectURL(blob), download: `${page.name.replace(/\.\w+$/, "")}-attention.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    });

  const copyLink = async () => {
    const link = new URL(`#x=${state.point.x}&y=${state.point.y}`, location.href).href;
    try {
      await navigator.clipboard.writeText(link);
      byId("status").textContent = "The link is copied.";
      byId("copy").textContent = "Copied";
    } catch {
      // a page from a file may not write to the clipboard: the address bar has the link
      history.replaceState(null, "", link);
      byId("copy").textContent = "See the address bar";
    }
    setTimeout(() => (byId("copy").textContent = "Copy link"), 2000);
  };

  byId("save").addEventListener("click", save);
  byId("copy").addEventListener("click", copyLink);
  byId("keys").addEventListener("click", () => byId("help").showModal());

  const move = (across, down) => (event) => {
    if (event.shiftKey) return go({ x: state.point.x + across, y: state.point.y + down });
    const cell = cellAt(state.point);
    const inside = (value, cells) => Math.min(Math.max(value, 0), cells - 1);
    const next = pixelAt({ x: inside(cell.x + across, grid.width), y: inside(cell.y + down, grid.height) });
    // the other coordinate stays where it is
    return go({ x: across ? next.x : state.point.x, y: down ? next.y : state.point.y });
  };
  const brightest = () => {
    const { peak } = look(state.point).at(-1);
    go(pixelAt({ x: peak % grid.width, y: Math.floor(peak / grid.width) }));
  };
  const fade = (by) => () => set("opacity", Math.min(Math.max(state.opacity + by, 0), 1).toFixed(2));
  const keys = {
    ArrowLeft: move(-1, 0),
    ArrowRight: move(1, 0),
    ArrowUp: move(0, -1),
    ArrowDown: move(0, 1),
    Enter: pin,
    " ": pin,
    Delete: () => state.chosen !== null && unpin(state.chosen),
    Backspace: () => state.chosen !== null && unpin(state.chosen),
    m: brightest,
    c: () => set("colours", nextOf(page.colours, state.colours)),
    l: () => set("log", !state.log),
    r: () => gamma !== null && set("residual", !state.residual),
    "+": fade(0.05),
    "=": fade(0.05),
    "-": fade(-0.05),
    s: save,
    "?": () => byId("help").showModal(),
  };
  // on the picture alone: single letters belong to whoever types elsewhere
  picture.canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : null;
    const act = digit === null ? keys[event.key.length === 1 ? event.key.toLowerCase() : event.key] : digit < state.pins.length ? () => choose(digit) : null;
    if (!act) return;
    event.preventDefault();
    act(event);
  });

  window.addEventListener("hashchange", () => {
    const point = pointOf(location.hash, image);
    if (point) go(point);
  });

  page.pins.forEach((point) => state.pins.push(point));
  if (state.pins.length) state.chosen = 0;
  const linked = pointOf(location.hash, image);
  if (linked) Object.assign(state, { point: linked, chosen: null });
  byId("reading").classList.toggle("beside", byId("panels").querySelectorAll(".panel").length % COLUMNS === 1);
  // on a telephone the controls would push the maps out of sight
  byId("options").open = matchMedia("(min-width: 40rem)").matches;
  byId("viewer").hidden = false;
  set("clip", page.clip);
  showPins();
  show();

  return {
    map: (x, y, number) => mapOf({ x, y }, number),
    cell: (x, y) => Object.values(cellAt({ x, y })),
    look: (x, y) => {
      const began = performance.now();
      state.point = { x, y };
      show();
      return performance.now() - began;
    },
  };
}

const page = JSON.parse(byId("page").textContent);
const ready = load(page).then((data) => Object.assign(window.ccnet, start(page, data)));
window.ccnet = { ready };
ready.catch((error) => {
  byId("failure").textContent = `The maps cannot be shown: ${error.message}. A browser of 2023 or newer is needed.`;
  byId("failure").hidden = false;
  throw error;
});
