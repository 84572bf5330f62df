"use strict";

// The page: what is shown, and what mouse, touch and keyboard do to it.
//
// For scripts and tests, window.ccnet offers
//   ready                      a promise that resolves once everything can be called
//   map(x, y, number, model)   the network's weights as Float32Array, which sum to 1, of each cell (of a clip, of all its
//                              frames): from the image's pixel (x, y) through passes 1 to `number`, or through that one
//                              alone where passes stand side by side; of the first model unless another's number is
//                              given; independent of the controls
//   cell(x, y)                 the feature cell [x, y] of a pixel
//   look(x, y)                 show a pixel at once; returns the milliseconds that it took

function start(page, data) {
  const { image, frames, place } = page;
  const maps = page.models.reduce((sum, model) => sum + model.recurrence, 0);
  const fit = Math.sqrt((PANEL_AREA * Math.min(1, MOST_MAPS / maps)) / (image.width * image.height));
  const size = {
    width: clamp(Math.round(image.width * fit), 1, 4096),
    height: clamp(Math.round(image.height * fit), 1, 4096),
  };
  const several = data.models.length > 1;
  // a column of the read-out for each map
  const columns = data.models.flatMap((model) =>
    model.titles.map((title, index) => ({ model, number: index + 1, title: several ? `${model.title}, ${title}` : title })),
  );

  const state = {
    point: page.point,
    pins: [],
    chosen: null,
    read: null,
    clip: page.clip,
    opacity: 0,
    log: false,
    residual: false,
    only: null,
    frame: place,
    colours: page.colours[0],
  };

  const cellAt = ({ grid, align }, { x, y }) => ({
    x: cellOf(x, image.width, grid.width, align),
    y: cellOf(y, image.height, grid.height, align),
  });
  const pixelAt = ({ grid, align }, cell) => ({
    x: pixelOf(cell.x, image.width, grid.width, align),
    y: pixelOf(cell.y, image.height, grid.height, align),
  });
  const indexOf = ({ grid }, cell, frame) => (frame * grid.height + cell.y) * grid.width + cell.x;
  const placeOf = ({ grid }, index) => ({
    x: index % grid.width,
    y: Math.floor(index / grid.width) % grid.height,
    frame: Math.floor(index / (grid.width * grid.height)),
  });
  const area = page.classes_size.width * page.classes_size.height;
  const classAt = (ids, { x, y }, frame = 0) => {
    const [column, row] = [
      Math.floor(((x + 0.5) * page.classes_size.width) / image.width),
      Math.floor(((y + 0.5) * page.classes_size.height) / image.height),
    ];
    return ids[frame * area + row * page.classes_size.width + column];
  };
  const nameOf = (id) => page.names[id] ?? "void";
  const frameName = (frame) => (frame === place ? "labelled frame" : `frame ${signed(frame - place)}`);
  const ownClass = (point) => classAt(data.models[0].prediction, point, place);

  const mapOf = (model, point, number, residual = 0) => {
    const { ofClass } = model.passes[number - 1];
    if (ofClass) return ofClass(classAt(model.prediction, point, place));
    const chain = model.passes.slice(model.composed ? 0 : number - 1, number);
    return compose(chain, model.grid, indexOf(model, cellAt(model, point), place), residual);
  };

  // what a point's maps say; the residual is the one control that changes numbers
  const look = (point) =>
    columns.map(({ model, number }) => {
      const own = indexOf(model, cellAt(model, point), place);
      const residual = state.residual && model.composed ? Math.abs(model.gamma ?? 0) : 0;
      const map = mapOf(model, point, number, residual);
      const statistics = describe(map, model.grid, own, model.cells, page.names.length);
      const { channelOf } = model.passes[number - 1];
      const id = channelOf && classAt(model.prediction, point, place);
      // a channel has no cross
      const ofChannel = channelOf && { on: null, off: null, class: id, channel: channelOf(id) };
      return { map, ...statistics, ...ofChannel, limit: clipLimit(map, model.grid, own, state.clip) };
    });
  // a map's figures in a line
  const summary = (one) => {
    if (one.class !== undefined) return `channel ${one.channel}, adds most to ${nameOf(one.class)}; on it ${percent(one.byClass[one.class])}`;
    const here = frames > 1 ? `; ${frameName(state.frame)} ${percent(one.byFrame[state.frame])}` : "";
    return `on cross ${percent(one.on)}, off ${percent(one.off)}${here}`;
  };

  // ---- panels

  let request = 0;
  const redraw = () => {
    request ||= requestAnimationFrame(() => {
      request = 0;
      show();
    });
  };
  // of the part and the frame that are shown
  let ground = null;
  const replaced = () => {
    ground = null;
    redraw();
  };
  const view = newView(image, replaced);
  const part = () => ({ x: (view.left * size.width) / image.width, y: (view.top * size.height) / image.height, zoom: view.zoom });
  const onPanel = ({ x, y }) => [
    ((x + 0.5 - view.left) * size.width * view.zoom) / image.width,
    ((y + 0.5 - view.top) * size.height * view.zoom) / image.height,
  ];

  const newPanel = (title, note) => {
    const canvas = element("canvas", { width: size.width, height: size.height });
    canvas.setAttribute("role", "img");
    const caption = element("figcaption", {}, element("h2", { textContent: title }), " ", element("span", { textContent: note }));
    const figure = element("figure", { className: "panel" }, caption, canvas);
    byId("panels").insertBefore(figure, byId("reading"));
    return { title, figure, canvas, context: canvas.getContext("2d") };
  };
  const picture = { canvas: byId("picture"), context: byId("picture").getContext("2d") };
  Object.assign(picture.canvas, size);
  const scratch = element("canvas", size).getContext("2d", { willReadFrequently: true });

  const reach = frames > 1 ? ["one pass: its cross in space and time", "everywhere"] : ["one pass: its row and column", "everywhere"];
  const notes = ({ model, number }) => {
    if (!model.composed) return model.passes[number - 1].ofClass ? "what one channel gathers, by class" : "";
    if (model.form === "others") return number === 1 ? "one pass" : `${number} passes`;
    return number === 1 ? reach[0] : frames > 1 && number === 2 ? "2 passes: beyond it" : `${number} passes: ${reach[1]}`;
  };
  const newPixels = () => {
    const pixels = new ImageData(size.width, size.height);
    return { pixels, words: new Uint32Array(pixels.data.buffer) };
  };
  const mapPanels = columns.map((column, index) => {
    const panel = newPanel(column.title, notes(column));
    panel.canvas.id = `map-${index + 1}`;
    const bar = element("canvas", { width: 256, height: 1 });
    bar.setAttribute("aria-hidden", "true");
    const [low, high, fractions] = ["low", "high", "fractions"].map((className) => element("span", { className }));
    panel.figure.append(element("div", { className: "scale" }, low, bar, high, fractions));
    return { ...panel, model: column.model, bar: bar.getContext("2d"), low, high, fractions, ...newPixels() };
  });
  // on a telephone the first model's last map stays beside the picture, and the other's follows
  data.models.forEach((model, index) => {
    mapPanels.findLast((panel) => panel.model === model).figure.classList.add(index ? "other" : "last");
  });
  const classPanels = [
    ...data.models.map((model, index) => ["Prediction", several ? `prediction-${index + 1}` : "prediction", model.prediction, model]),
    ["Label", "label", data.label, null],
  ]
    .filter(([, , ids]) => ids)
    .map(([name, id, ids, model]) => {
      const title = several && model ? `${name}, ${model.title}` : name;
      const panel = newPanel(title, "");
      panel.canvas.id = id;
      // a label is that of one frame
      const frameShown = () => (model ? state.frame : 0);
      return { ...panel, ids, frameShown, pixels: new ImageData(size.width, size.height), note: panel.figure.querySelector("span") };
    });

  // a row for each of two models, whose passes stand one below the other: the first prediction begins the second row
  if (several && data.models[0].recurrence === COLUMNS - 1) {
    byId("panels").insertBefore(classPanels[0].figure, mapPanels[COLUMNS - 1].figure);
  }

  /** What is the same for every point: the grey picture, which cells a pixel mixes, the coloured classes. */
  const prepare = () => {
    if (ground) return;
    const shown = part();
    const grey = greyOf(scratch, data.pictures[state.frame], size, shown);
    const mixed = new Map(
      data.models.map((model) => [
        model,
        [
          neighbours(size.height, model.grid.height, model.align, shown.y, shown.zoom),
          neighbours(size.width, model.grid.width, model.align, shown.x, shown.zoom),
        ],
      ]),
    );
    ground = { grey, mixed };
    const palette = page.palette.map((colour, id) => (state.only === null || id === state.only ? colour : null));
    classPanels.forEach(({ ids, pixels, frameShown }) => {
      const own = ids.subarray(frameShown() * area, (frameShown() + 1) * area);
      paintClasses(pixels, grey, own, page.classes_size, palette, shown);
    });
  };

  const drawPicture = (context, point, pins) => {
    // as it was drawn last: a large picture may have to be decoded again
    context.drawImage(scratch.canvas, 0, 0);
    const [x, y] = onPanel(point);
    const model = data.models[0];
    const cell = cellAt(model, point);
    const [left, right] = extent(cell.x, image.width, model.grid.width, model.align);
    const [top, bottom] = extent(cell.y, image.height, model.grid.height, model.align);
    const elsewhere = state.frame !== place;
    if (!elsewhere) markCross(context, x, y, size);
    markPoint(context, x, y, elsewhere);
    markCell(context, [...onPanel({ x: left - 0.5, y: top - 0.5 }), ...onPanel({ x: right - 0.5, y: bottom - 0.5 })]);
    pins.forEach((pin, i) => markPin(context, ...onPanel(pin), i + 1, i === state.chosen));
  };

  const drawMap = ({ context, pixels, words, model }, point, { map, limit, peak }) => {
    const { grid } = model;
    const plane = grid.height * grid.width;
    const begin = state.frame * plane;
    const shades = new Float32Array(plane);
    for (let index = 0; index < plane; index++) {
      const painted = state.only === null || model.cells[begin + index] === state.only;
      if (painted) shades[index] = shade(map[begin + index], limit, state.log);
    }
    const large = enlarge(shades, grid.width, ...ground.mixed.get(model));
    paintShades(words, ground.grey, large, data.tables[state.colours], state.opacity);
    context.putImageData(pixels, 0, 0);
    const [x, y] = onPanel(point);
    const most = placeOf(model, peak);
    const at = onPanel(pixelAt(model, most));
    if (most.frame === state.frame && view.zoom === 1 && isPeaked(map, grid, peak)) drawInset(context, at, [x, y], grid, size);
    if (state.frame === place) markTicks(context, x, y, size);
    markPoint(context, x, y, state.frame !== place);
    if (most.frame === state.frame) ring(context, ...at, 15, "white", 1.5);
  };

  const drawClasses = ({ context, pixels, frameShown, ids }, point) => {
    context.putImageData(pixels, 0, 0);
    const elsewhere = frameShown() !== place && ids !== data.label;
    if (!elsewhere) markCross(context, ...onPanel(point), size);
    markPoint(context, ...onPanel(point), elsewhere);
  };

  // ---- the read-out

  const line = (title, cells, className = "") =>
    element("tr", { className }, element("th", { scope: "row" }, ...title), ...cells.map((content) => element("td", {}, ...content)));

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
    return [element("span", { className: "name" }, "on ", swatch, page.names[id])];
  };

  const showReading = (maps) => {
    const head = byId("reading").querySelector("thead");
    const body = byId("reading").querySelector("tbody");
    head.replaceChildren(
      element("tr", {}, element("td"), ...columns.map(({ title }) => element("th", { scope: "col", textContent: title }))),
    );
    const pixel = state.read ?? state.point;
    // under the pointer in the frame that is shown; the point itself lies in the labelled one
    const read = maps.map(({ map }, i) => map[indexOf(columns[i].model, cellAt(columns[i].model, pixel), state.read ? state.frame : place)]);
    const classes = page.names
      .map((_, id) => id)
      .filter((id) => id === state.only || maps.some(({ byClass }) => byClass[id] >= 0.0005))
      .sort((a, b) => maps.at(-1).byClass[b] - maps.at(-1).byClass[a])
      .slice(0, LISTED_CLASSES);
    const peakText = ({ map, peak }, i) => {
      const most = placeOf(columns[i].model, peak);
      const { x, y } = pixelAt(columns[i].model, most);
      return [`${short(map[peak])} at (${x}, ${y})${frames > 1 ? `, ${frameName(most.frame)}` : ""}`];
    };
    const times = frames > 1 ? Array.from({ length: frames }, (_, frame) => frame) : [];
    body.replaceChildren(
      line([`weight ${state.read ? "under the pointer" : "of the point itself"}, (${pixel.x}, ${pixel.y})`], read.map((weight) => [short(weight)])),
      line(["largest weight"], maps.map(peakText)),
      line(["entropy"], maps.map(({ entropy }) => [`${entropy.toFixed(2)} bits, like ${(2 ** entropy).toFixed(1)} equal cells`])),
      line(["on the cross"], maps.map(({ on }) => fractionCell(on))),
      line(["off the cross"], maps.map(({ off }) => fractionCell(off))),
      ...times.map((frame) =>
        line([`in the ${frameName(frame)}`], maps.map(({ byFrame }) => fractionCell(byFrame[frame])), frame === state.frame ? "shown" : ""),
      ),
      ...classes.map((id) => line(classTitle(id), maps.map(({ byClass }) => fractionCell(byClass[id])))),
    );
  };

  const spoken = ({ on, off }) => `${percent(on)} on the cross, ${percent(off)} off it`;
  const described = (one) => (one.class === undefined ? spoken(one) : summary(one));
  const announcement = (maps) => {
    const { x, y } = state.point;
    const lines = maps.map((one, i) => `${columns[i].title}: ${described(one)}.`);
    const shown = frames > 1 ? ` The ${frameName(state.frame)} is shown.` : "";
    return `Point ${x}, ${y}: ${nameOf(ownClass(state.point))}. ${lines.join(" ")}${shown}`;
  };

  // ---- drawing everything

  const lowest = (limit) => (state.log ? short(limit / 10 ** DECADES) : "0");

  let timer = 0;
  const show = () => {
    prepare();
    const maps = look(state.point);
    const table = data.tables[state.colours];
    const cell = cellAt(data.models[0], state.point);
    drawPicture(picture.context, state.point, state.pins);
    mapPanels.forEach((panel, i) => {
      drawMap(panel, state.point, maps[i]);
      paintBar(panel.bar, table, 0, 0, 256, 1);
      panel.low.textContent = lowest(maps[i].limit);
      panel.high.textContent = `≥ ${short(maps[i].limit)}`;
      panel.fractions.textContent = summary(maps[i]);
    });
    classPanels.forEach((panel) => {
      drawClasses(panel, state.point);
      panel.note.textContent = nameOf(classAt(panel.ids, state.point, panel.frameShown()));
    });
    byId("where").textContent = `(${state.point.x}, ${state.point.y}), cell (${cell.x}, ${cell.y}), ${nameOf(ownClass(state.point))}`;
    byId("frame-value").textContent = `${frameName(state.frame)}, ${state.frame + 1} of ${frames}`;
    byId("zoom-value").textContent = `${view.zoom.toFixed(1)}×`;
    showReading(maps);
    // the link and what is read aloud follow once the point rests
    clearTimeout(timer);
    timer = setTimeout(() => settle(maps), 200);
  };

  const settle = (maps) => {
    byId("status").textContent = announcement(maps);
    picture.canvas.setAttribute("aria-label", `${page.name}, looking from point ${state.point.x}, ${state.point.y}`);
    mapPanels.forEach(({ canvas }, i) => canvas.setAttribute("aria-label", `Attention map, ${columns[i].title}: ${described(maps[i])}`));
    classPanels.forEach(({ canvas, title, ids, frameShown }) =>
      canvas.setAttribute("aria-label", `${title}: ${nameOf(classAt(ids, state.point, frameShown()))} at the point`),
    );
    if (location.hash !== link()) history.replaceState(null, "", link());
  };
  const link = () => `#x=${state.point.x}&y=${state.point.y}${state.frame === place ? "" : `&frame=${state.frame}`}`;

  const go = (point) => {
    state.point = { x: clamp(point.x, 0, image.width - 1), y: clamp(point.y, 0, image.height - 1) };
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
        const select = element("button", { type: "button", textContent: `${index + 1}: (${point.x}, ${point.y}) ${nameOf(ownClass(point))}` });
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
    const { x, y } = view.under(event, event.currentTarget);
    return { x: clamp(Math.floor(x), 0, image.width - 1), y: clamp(Math.floor(y), 0, image.height - 1) };
  };

  const followed = (canvas) => {
    const dragged = zoomable(canvas, view);
    // a finger looks around while it is down, a mouse always
    canvas.addEventListener("pointermove", (event) => {
      if ((event.pointerType !== "touch" || event.buttons) && !(event.buttons && dragged())) go(pointUnder(event));
    });
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch" && state.chosen !== null) go(state.pins[state.chosen]);
    });
    canvas.addEventListener("click", (event) => {
      if (dragged()) return;
      go(pointUnder(event));
      pin();
    });
  };
  followed(picture.canvas);
  classPanels.forEach(({ canvas }) => followed(canvas));
  mapPanels.forEach(({ canvas }) => {
    const dragged = zoomable(canvas, view);
    canvas.addEventListener("pointermove", (event) => {
      state.read = pointUnder(event);
      redraw();
    });
    canvas.addEventListener("pointerleave", () => {
      state.read = null;
      redraw();
    });
    canvas.addEventListener("click", (event) => {
      if (dragged()) return;
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
    only: (value) => (state.only = value === "" ? null : Number(value)),
    theme: (value) => (document.documentElement.dataset.theme = value),
    frame: (value) => (state.frame = Number(value)),
  };
  const set = (name, value) => {
    const field = byId(name);
    if (field.type === "checkbox") field.checked = value;
    else field.value = value;
    setters[name](field.type === "checkbox" ? field.checked : field.value);
    byId("clip-value").textContent = `${state.clip.toFixed(1)} %`;
    byId("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
    byId("residual-note").hidden = !state.residual;
    replaced();
  };
  const nextOf = (list, current) => list[(list.indexOf(current) + 1) % list.length];

  byId("colours").append(...page.colours.map((name) => element("option", { value: name, textContent: name })));
  byId("only").append(element("option", { value: "", textContent: "all" }), ...page.names.map((name, id) => element("option", { value: id, textContent: name })));
  byId("time").hidden = frames === 1;
  Object.assign(byId("frame"), { max: frames - 1, value: place });
  // what a head adds by a weight of its own, or not at all, is no sum of passes
  const gammas = data.models.filter(({ composed, gamma }) => composed && gamma !== null).map(({ gamma }) => gamma);
  byId("residual-label").hidden = !gammas.length;
  byId("gamma").textContent = `γ = ${gammas.map((gamma) => gamma.toPrecision(3).replace("-", "−")).join(", ")}`;
  byId("residual-note").textContent =
    `Each pass adds γ times what it gathers to what is there, so the maps are those of I + |γ| A` +
    `${gammas.some((gamma) => gamma < 0) ? " (where γ is negative, its size is taken)" : ""}, scaled to sum to 1.`;
  for (const name of Object.keys(setters)) {
    byId(name).addEventListener("input", ({ target }) => set(name, target.type === "checkbox" ? target.checked : target.value));
  }
  byId("controls").addEventListener("submit", (event) => event.preventDefault());

  const figure = () => {
    const points = state.pins.length ? state.pins : [state.point];
    const shown = state.frame;
    const copy = (draw) => {
      const canvas = element("canvas", size);
      draw(canvas.getContext("2d"));
      return canvas;
    };
    const mapPanel = (one, i, point, title, note) => ({
      title,
      note,
      scale: [lowest(one.limit), `≥ ${short(one.limit)}`],
      canvas: copy((context) => drawMap({ ...mapPanels[i], context }, point, one)),
    });
    const rowOfMaps = (point) => {
      const input = { title: "input", note: `(${point.x}, ${point.y})  ${nameOf(ownClass(point))}`, canvas: copy((context) => drawPicture(context, point, [])) };
      return [[input, ...look(point).map((one, i) => mapPanel(one, i, point, columns[i].title, summary(one)))]];
    };
    // a row of the frames for each pass
    const rowsOfFrames = (point) =>
      look(point).map((one, i) =>
        Array.from({ length: frames }, (_, frame) => {
          [state.frame, ground] = [frame, null];
          prepare();
          const own = frame === place ? `, (${point.x}, ${point.y})  ${nameOf(ownClass(point))}` : "";
          return mapPanel(one, i, point, frameName(frame), `${columns[i].title}: ${percent(one.byFrame[frame])}${own}`);
        }),
      );
    prepare();
    const rows = points.flatMap(frames > 1 ? rowsOfFrames : rowOfMaps).map((panels) => ({ panels }));
    state.frame = shown;
    replaced();
    return figureOf(rows, data.tables[state.colours], size);
  };

  const save = () =>
    figure().toBlob((blob) => {
      const link = element("a", { href: URL.createObjectURL(blob), download: `${page.name.replace(/\.\w+$/, "")}-attention.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    });

  const copyLink = async () => {
    const address = new URL(link(), location.href).href;
    try {
      await navigator.clipboard.writeText(address);
      byId("status").textContent = "The link is copied.";
      byId("copy").textContent = "Copied";
    } catch {
      // a page from a file may not write to the clipboard: the address bar has the link
      history.replaceState(null, "", address);
      byId("copy").textContent = "See the address bar";
    }
    setTimeout(() => (byId("copy").textContent = "Copy link"), 2000);
  };

  const zoom = (factor) => () => view.by(factor, state.point);
  byId("save").addEventListener("click", save);
  byId("copy").addEventListener("click", copyLink);
  byId("keys").addEventListener("click", () => byId("help").showModal());
  byId("zoom-in").addEventListener("click", zoom(1.5));
  byId("zoom-out").addEventListener("click", zoom(1 / 1.5));
  byId("zoom-all").addEventListener("click", () => view.reset());

  const move = (across, down) => (event) => {
    const step = () => {
      if (event.shiftKey) return { x: state.point.x + across, y: state.point.y + down };
      const [model] = data.models;
      const cell = cellAt(model, state.point);
      const next = pixelAt(model, {
        x: clamp(cell.x + across, 0, model.grid.width - 1),
        y: clamp(cell.y + down, 0, model.grid.height - 1),
      });
      // the other coordinate stays where it is
      return { x: across ? next.x : state.point.x, y: down ? next.y : state.point.y };
    };
    go(step());
    view.reveal(state.point);
  };
  const brightest = () => {
    const { model } = columns.at(-1);
    const most = placeOf(model, look(state.point).at(-1).peak);
    set("frame", most.frame);
    go(pixelAt(model, most));
    view.reveal(state.point);
  };
  const step = (by) => () => set("frame", clamp(state.frame + by, 0, frames - 1));
  const fade = (by) => () => set("opacity", clamp(state.opacity + by, 0, 1).toFixed(2));
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
    r: () => gammas.length && set("residual", !state.residual),
    f: () => set("only", nextOf(["", ...page.names.map((_, id) => String(id))], String(state.only ?? ""))),
    ",": step(-1),
    ".": step(1),
    "+": zoom(1.5),
    "=": zoom(1.5),
    "-": zoom(1 / 1.5),
    0: () => view.reset(),
    "[": fade(-0.05),
    "]": fade(0.05),
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

  const follow = () => {
    const point = pointOf(location.hash, image);
    if (!point) return;
    set("frame", frameOf(location.hash, frames) ?? place);
    go(point);
  };
  window.addEventListener("hashchange", follow);

  page.pins.forEach((point) => state.pins.push(point));
  if (state.pins.length) state.chosen = 0;
  if (pointOf(location.hash, image)) state.chosen = null;
  const free = byId("panels").querySelectorAll(".panel").length % COLUMNS === 1;
  byId("reading").classList.toggle("beside", free && columns.length <= COLUMNS);
  byId("panels").classList.toggle("wide", image.width >= WIDE * image.height);
  // on a telephone the controls would push the maps out of sight
  byId("options").open = matchMedia("(min-width: 40rem)").matches;
  byId("viewer").hidden = false;
  set("clip", page.clip);
  follow();
  showPins();
  show();
  // browsers compile what has run several times: not only when the pointer moves
  const warmUp = () => {
    for (const part of [0.2, 0.5, 0.8]) look({ x: Math.floor(part * image.width), y: Math.floor(part * image.height) });
    prepare();
    const maps = look(state.point);
    for (let round = 0; round < 3; round++) mapPanels.forEach((panel, i) => drawMap(panel, state.point, maps[i]));
  };
  (window.requestIdleCallback ?? setTimeout)(warmUp);

  return {
    map: (x, y, number, model = 0) => mapOf(data.models[model], { x, y }, number),
    cell: (x, y) => Object.values(cellAt(data.models[0], { x, y })),
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
