"use strict";

// The pictures: from maps and class numbers to pixels on a canvas.

// powers of ten below the brightest colour on a logarithmic scale
const DECADES = 4;
const RING = "#3cff78";
// below a map, the picture's lightness times this, and the least that is left of it at night, as in figures
const DIMMED = 0.4;
const DARKEST = 24;
// of a map's shades, 64 for each colour of the scale
const STEPS = 16_320;

/**
 * The two cells that each of `pixels` pixels mixes, and how, when the network enlarges its scores.
 *
 * With zoom > 1 the pixels show a part of the whole that begins at `from`, in pixels of the whole.
 */
function neighbours(pixels, cells, alignCorners, from = 0, zoom = 1) {
  const low = new Int32Array(pixels);
  const high = new Int32Array(pixels);
  const fraction = new Float32Array(pixels);
  for (let index = 0; index < pixels; index++) {
    const pixel = Math.min(Math.max(from + (index + 0.5) / zoom - 0.5, 0), pixels - 1);
    const exact = alignCorners
      ? (pixel * (cells - 1)) / Math.max(pixels - 1, 1)
      : Math.min(Math.max(((pixel + 0.5) * cells) / pixels - 0.5, 0), cells - 1);
    low[index] = Math.min(Math.floor(exact), cells - 1);
    high[index] = Math.min(low[index] + 1, cells - 1);
    fraction[index] = exact - low[index];
  }
  return { low, high, fraction };
}

/** A map (grid) at a panel's size; rows and columns are the neighbours along its two axes. */
function enlarge(map, width, rows, columns) {
  const across = columns.low.length;
  // rows of cells at the panel's width, each made once
  const wide = new Float32Array((map.length / width) * across);
  for (let index = 0, start = 0; start < map.length; start += width) {
    for (let x = 0; x < across; x++) {
      const left = map[start + columns.low[x]];
      wide[index++] = left + (map[start + columns.high[x]] - left) * columns.fraction[x];
    }
  }
  const out = new Float32Array(rows.low.length * across);
  for (let y = 0, index = 0; y < rows.low.length; y++) {
    const [top, bottom, down] = [rows.low[y] * across, rows.high[y] * across, rows.fraction[y]];
    for (let x = 0; x < across; x++) {
      const above = wide[top + x];
      out[index++] = above + (wide[bottom + x] - above) * down;
    }
  }
  return out;
}

/** A weight's position on the colour scale, 0 to 1. */
function shade(weight, limit, logarithmic) {
  const linear = Math.min(weight / limit, 1);
  return logarithmic ? Math.max(1 + Math.log10(Math.max(linear, 1e-30)) / DECADES, 0) : linear;
}

/**
 * Shades of a panel as colours over its dimmed grey picture: more opaque where larger, nowhere less than `opacity`.
 *
 * A pixel is a word, red in its lowest byte: one store in place of four that round.
 */
function paintShades(words, grey, shades, table, opacity) {
  // of each step of the scale, what is left of the grey picture, and what colour comes to it
  const left = new Float32Array(STEPS + 1);
  const added = new Float32Array(3 * (STEPS + 1));
  for (let step = 0; step <= STEPS; step++) {
    const alpha = opacity + (1 - opacity) * Math.sqrt(step / STEPS);
    const colour = 3 * Math.round((255 * step) / STEPS);
    left[step] = 1 - alpha;
    for (let c = 0; c < 3; c++) added[3 * step + c] = table[colour + c] * alpha;
  }
  for (let i = 0; i < shades.length; i++) {
    const step = (shades[i] * STEPS + 0.5) | 0;
    const below = grey[i] * left[step] + 0.5;
    const at = 3 * step;
    words[i] = 0xff000000 | ((below + added[at + 2]) << 16) | ((below + added[at + 1]) << 8) | (below + added[at]);
  }
}

const WHOLE = { x: 0, y: 0, zoom: 1 };

/**
 * Class numbers (size) as colours over a panel's grey picture; those past the palette are black, and those whose colour
 * is null stay grey. The part that is shown begins at (x, y), in pixels of the panel.
 */
function paintClasses(image, grey, ids, size, palette, part = WHOLE) {
  const { width, height, data } = image;
  const indexOf = (pixel, from, cells, pixels) => Math.min(Math.floor(((from + (pixel + 0.5) / part.zoom) * cells) / pixels), cells - 1);
  const columns = Int32Array.from({ length: width }, (_, x) => indexOf(x, part.x, size.width, width));
  for (let y = 0, i = 0; y < height; y++) {
    const row = indexOf(y, part.y, size.height, height) * size.width;
    for (let x = 0; x < width; x++, i++) {
      const id = ids[row + columns[x]];
      const colour = id < palette.length ? palette[id] : [0, 0, 0];
      for (let c = 0; c < 3; c++) data[4 * i + c] = colour ? 0.7 * colour[c] + 0.3 * grey[i] : grey[i];
      data[4 * i + 3] = 255;
    }
  }
}

/** Draw the part of a picture that a panel shows. */
function drawPart(context, picture, { width, height }, part = WHOLE) {
  const [across, down] = [picture.naturalWidth / width, picture.naturalHeight / height];
  const [w, h] = [width / part.zoom, height / part.zoom];
  context.drawImage(picture, part.x * across, part.y * down, w * across, h * down, 0, 0, width, height);
}

/** The lightness of what a panel shows of the picture, dimmed so that colours stand out from it. */
function greyOf(context, picture, size, part = WHOLE) {
  const { width, height } = size;
  drawPart(context, picture, size, part);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = new Uint8ClampedArray(width * height);
  for (let i = 0; i < grey.length; i++) {
    grey[i] = DARKEST + DIMMED * (0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]);
  }
  return grey;
}

// cells around the largest weight that an inset shows, how much larger, and its distance from the edges
const INSET = { cells: 4, zoom: 3, edge: 16 };

/** Whether the surroundings of a map's largest weight hold half of it: then they are worth an inset. */
function isPeaked(map, { height, width }, peak) {
  const plane = height * width;
  const [x, y] = [peak % width, Math.floor(peak / width) % height];
  let near = 0;
  for (let row = Math.max(y - INSET.cells, 0); row <= Math.min(y + INSET.cells, height - 1); row++) {
    for (let column = Math.max(x - INSET.cells, 0); column <= Math.min(x + INSET.cells, width - 1); column++) {
      near += map[peak - (peak % plane) + row * width + column];
    }
  }
  return near >= 0.5 * map.reduce((sum, weight) => sum + weight, 0);
}

/** Enlarge the surroundings of (x, y) in the corner that is farthest from them and from the point, if there is room. */
function drawInset(context, [x, y], point, grid, { width, height }) {
  const reach = Math.round((INSET.cells + 0.5) * Math.max(height / grid.height, width / grid.width));
  const side = 2 * reach * INSET.zoom;
  if (side > Math.min(width, height) / 2) return;
  const left = Math.min(Math.max(x, reach), width - reach) - reach;
  const top = Math.min(Math.max(y, reach), height - reach) - reach;
  const corners = [INSET.edge, height - side - INSET.edge].flatMap((down) => [INSET.edge, width - side - INSET.edge].map((across) => [across, down]));
  const distance = ([across, down]) =>
    Math.min(...[[x, y], point].map((target) => Math.hypot(across + side / 2 - target[0], down + side / 2 - target[1])));
  const [across, down] = corners.reduce((best, corner) => (distance(corner) > distance(best) ? corner : best));
  context.drawImage(context.canvas, left, top, 2 * reach, 2 * reach, across, down, side, side);
  context.lineWidth = 2;
  context.strokeStyle = "white";
  context.strokeRect(across + 1, down + 1, side - 2, side - 2);
  [context.font, context.textAlign, context.textBaseline] = ["600 15px system-ui, sans-serif", "left", "alphabetic"];
  [context.lineWidth, context.strokeStyle, context.fillStyle] = [3, "black", "white"];
  context.strokeText(`${INSET.zoom}×`, across + 8, down + side - 9);
  context.fillText(`${INSET.zoom}×`, across + 8, down + side - 9);
}

function ring(context, x, y, radius, colour, width) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.stroke();
}

/** The point looked from, seen on any background; dashed where it lies in another frame. */
function markPoint(context, x, y, elsewhere = false) {
  context.setLineDash(elsewhere ? [4, 4] : []);
  ring(context, x, y, 9, "black", 5);
  ring(context, x, y, 9, RING, 2.5);
  context.setLineDash([]);
}

/** Lines [fromX, fromY, toX, toY], seen on any background. */
function strokeLines(context, lines, colour, width) {
  for (const [style, thickness] of [["rgb(0 0 0 / 0.45)", width + 2], [colour, width]]) {
    context.beginPath();
    for (const [fromX, fromY, toX, toY] of lines) {
      context.moveTo(fromX, fromY);
      context.lineTo(toX, toY);
    }
    context.lineWidth = thickness;
    context.strokeStyle = style;
    context.stroke();
  }
}

/** The row and the column of a point, left open around it. */
function markCross(context, x, y, { width, height }) {
  const lines = [
    [0, y, x - 14, y],
    [x + 14, y, width, y],
    [x, 0, x, y - 14],
    [x, y + 14, x, height],
  ];
  strokeLines(context, lines, "rgb(255 255 255 / 0.9)", 1.5);
}

/** Where a point's row and column end: on a map, lines would hide what lies on them. */
function markTicks(context, x, y, { width, height }) {
  const lines = [
    [0, y, 13, y],
    [width - 13, y, width, y],
    [x, 0, x, 13],
    [x, height - 13, x, height],
  ];
  strokeLines(context, lines, RING, 2.5);
}

/** A numbered pin that stands on its point, or hangs from it at the upper edge. */
function markPin(context, x, y, number, chosen) {
  const head = y < 40 ? y + 26 : y - 26;
  strokeLines(context, [[x, y, x, head]], "white", 2);
  context.beginPath();
  context.arc(x, head, 11, 0, 2 * Math.PI);
  context.fillStyle = chosen ? RING : "white";
  context.fill();
  context.lineWidth = 2;
  context.strokeStyle = "black";
  context.stroke();
  context.fillStyle = "black";
  context.font = "bold 14px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(String(number), x, head + 0.5);
}

/** The edges of a cell; a rectangle [left, top, right, bottom]. */
function markCell(context, [left, top, right, bottom]) {
  for (const [colour, width] of [["black", 3], ["#ffd400", 1.5]]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.strokeRect(left, top, right - left, bottom - top);
  }
}

function paintBar(context, table, left, top, width, height) {
  // between two pixels every line of it would be half as strong
  const begin = Math.round(left);
  for (let x = 0; x < width; x++) {
    const offset = 3 * Math.round((255 * x) / Math.max(width - 1, 1));
    context.fillStyle = `rgb(${table[offset]} ${table[offset + 1]} ${table[offset + 2]})`;
    context.fillRect(begin + x, top, 1, height);
  }
}

/**
 * The paper's figure as a canvas: a row for each point, the picture and then its maps, with titles and colour bars.
 *
 * Rows are {caption, panels: [{canvas, title, note, scale}]}; scale, a colour bar's two ends as text, is a map's.
 */
function figureOf(rows, table, { width, height }) {
  const [margin, gap, header, caption] = [32, 20, 56, 84];
  const count = rows[0].panels.length;
  const canvas = document.createElement("canvas");
  canvas.width = 2 * margin + count * width + (count - 1) * gap;
  canvas.height = header + rows.length * (height + caption) + 8;
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, font, colour, align = "left") => {
    [context.font, context.fillStyle, context.textAlign, context.textBaseline] = [font, colour, align, "alphabetic"];
    context.fillText(text, x, y, width);
  };
  rows.forEach((row, number) => {
    const top = header + number * (height + caption);
    row.panels.forEach((panel, index) => {
      const left = margin + index * (width + gap);
      if (number === 0) write(panel.title, left, header - 18, "600 26px system-ui, sans-serif", "#111");
      context.drawImage(panel.canvas, left, top, width, height);
      if (!panel.scale) {
        write(panel.note, left, top + height + 30, "20px system-ui, sans-serif", "#111");
        return;
      }
      const [low, high] = panel.scale;
      const bar = Math.min(160, width / 3);
      write(low, left, top + height + 29, "18px system-ui, sans-serif", "#444");
      const after = left + context.measureText(low).width + 8;
      paintBar(context, table, after, top + height + 14, bar, 18);
      write(high, after + bar + 8, top + height + 29, "18px system-ui, sans-serif", "#444");
      write(panel.note, left, top + height + 60, "20px system-ui, sans-serif", "#111");
    });
  });
  return canvas;
}
