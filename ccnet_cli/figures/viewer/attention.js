"use strict";

// The numbers: from the embedded arrays to attention maps. Nothing here touches the page.
//
// A grid is {height, width}, of a clip {frames, height, width}; a pixel of it is numbered (t * height + y) * width + x.
// A row holds a pixel's weights over its cross: of a clip first the line through its frames, then its column, then its
// row. The pixel itself lies on each of these lines and counts in the last.
//
// A pass is {add(out, pixel, weight)}, which adds a pixel's weights times `weight` to a map, or {ofClass(id)}, whose map
// is that of a class wherever the pixel lies.

const TYPES = { u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** The arrays of a buffer by its directory {name: [type, offset, length]}. */
function unpack(directory, buffer) {
  const arrays = {};
  for (const [name, [type, offset, length]] of Object.entries(directory)) {
    // 16-bit values lie in two planes, all low bytes before all high ones, which compresses better
    arrays[name] = type.length === 3 ? joinPlanes(buffer, offset, length, type) : new TYPES[type](buffer, offset, length);
  }
  return arrays;
}

function joinPlanes(buffer, offset, length, type) {
  const bytes = new Uint8Array(buffer, offset, 2 * length);
  const values = new TYPES[type.slice(0, 2)](length);
  // 128 was added to signed values, so that small ones of either sign have the same high byte
  const added = type === "i2p" ? 128 : 0;
  for (let i = 0; i < length; i++) values[i] = (bytes[i] | (bytes[length + i] << 8)) - added;
  return values;
}

const cellsOf = ({ frames = 1, height, width }) => frames * height * width;

/** The lines of a cross in the order of a row: how many cells each has, and how far apart their numbers are. */
function linesOf({ frames = 1, height, width }) {
  const plane = [
    { length: height, step: width },
    { length: width, step: 1 },
  ];
  return frames > 1 ? [{ length: frames, step: height * width }, ...plane] : plane;
}

const placeOn = ({ length, step }, pixel) => Math.floor(pixel / step) % length;

/** A pass from embedded weights: code c of a pixel means the weight scale * (c / levels)^2 * gain of its target. */
function passOfWeights(grid, { codes, scale, gain }, levels) {
  const lines = linesOf(grid);
  const size = lines.reduce((sum, { length }) => sum + length, 0);
  return crossPass(grid, (pixel) => {
    const row = new Float32Array(size);
    const factor = scale[pixel] / (levels * levels);
    let i = 0;
    for (const line of lines) {
      let target = pixel - placeOn(line, pixel) * line.step;
      for (let j = 0; j < line.length; j++, i++, target += line.step) {
        const code = codes[pixel * size + i];
        row[i] = code * code * factor * gain[target];
      }
    }
    return row;
  });
}

/** A pass from embedded queries and keys, channel by channel: the softmax over the cross is computed here. */
function passOfProjections(grid, { query, key }, step) {
  const count = cellsOf(grid);
  const lines = linesOf(grid);
  const size = lines.reduce((sum, { length }) => sum + length, 0);
  const channels = query.length / count;
  const queries = pixelMajor(query, count, channels, step);
  const keys = pixelMajor(key, count, channels, step);
  return crossPass(grid, (pixel) => {
    const energies = new Float64Array(size);
    const from = pixel * channels;
    let i = 0;
    lines.forEach((line, number) => {
      const own = placeOn(line, pixel);
      for (let j = 0, to = (pixel - own * line.step) * channels; j < line.length; j++, to += line.step * channels) {
        let sum = 0;
        for (let c = 0; c < channels; c++) sum += queries[from + c] * keys[to + c];
        // the pixel lies on all lines: count it once, in the last
        energies[i++] = j === own && number < lines.length - 1 ? -Infinity : sum;
      }
    });
    return softmax(energies);
  });
}

function pixelMajor(values, count, channels, step) {
  const transposed = new Float32Array(values.length);
  for (let c = 0; c < channels; c++) {
    for (let p = 0; p < count; p++) transposed[p * channels + c] = values[c * count + p] * step;
  }
  return transposed;
}

function softmax(energies) {
  // plain loops for speed: a move of the pointer may need hundreds of new rows
  let most = -Infinity;
  for (const energy of energies) most = Math.max(most, energy);
  const row = new Float32Array(energies.length);
  let sum = 0;
  for (let i = 0; i < row.length; i++) sum += row[i] = Math.exp(energies[i] - most);
  for (let i = 0; i < row.length; i++) row[i] /= sum;
  return row;
}

/** Compute each row on first use: while the pointer moves, few rows are needed, and those again and again. */
function memoize(grid, compute) {
  const rows = new Array(cellsOf(grid));
  return (pixel) => (rows[pixel] ??= compute(pixel));
}

function crossPass(grid, compute) {
  const lines = linesOf(grid);
  const rowOf = memoize(grid, compute);
  const add = (out, pixel, weight) => {
    const row = rowOf(pixel);
    let i = 0;
    for (const line of lines) {
      let target = pixel - placeOn(line, pixel) * line.step;
      for (let j = 0; j < line.length; j++, target += line.step) out[target] += weight * row[i++];
    }
  };
  return { add };
}

/** A pass in which a pixel looks at all keys of its group; what a key gets is shared by the pixels whose own it is. */
function passOfGroups(grid, { query, key, own, group, keygroup }, step) {
  const count = grid.height * grid.width;
  const channels = query.length / count;
  const queries = pixelMajor(query, count, channels, step);
  const keys = pixelMajor(key, keygroup.length, channels, step);
  const sharers = new Uint32Array(keygroup.length);
  for (const index of own) if (index >= 0) sharers[index]++;
  // of a group, its keys and the pixels whose own these are
  const members = new Map();
  const places = new Uint32Array(keygroup.length);
  keygroup.forEach((number, index) => {
    if (!members.has(number)) members.set(number, { positions: [], pixels: [] });
    places[index] = members.get(number).positions.push(index) - 1;
  });
  own.forEach((index, pixel) => {
    if (index >= 0) members.get(keygroup[index]).pixels.push(pixel);
  });
  const add = (out, pixel, weight) => {
    const { positions, pixels } = members.get(group[pixel]);
    const from = pixel * channels;
    const energies = Float64Array.from(positions, (index) => {
      let sum = 0;
      for (let c = 0, to = index * channels; c < channels; c++) sum += queries[from + c] * keys[to + c];
      return sum;
    });
    const row = softmax(energies);
    for (const other of pixels) out[other] += (weight * row[places[own[other]]]) / sharers[own[other]];
  };
  return { add };
}

/** The maps of classes, of one channel each. */
function passOfClasses(grid, { codes, scale, classes, channel }) {
  const count = grid.height * grid.width;
  const indexOf = (id) => Math.max(classes.indexOf(id), 0);
  const ofClass = (id) => {
    const index = indexOf(id);
    return Float32Array.from(codes.subarray(index * count, (index + 1) * count), (code) => code * scale[index]);
  };
  return { ofClass, channelOf: (id) => channel[indexOf(id)] };
}

/** Spread each pixel's weight in a map over what it looks at, as a pass does. */
function spread({ add }, map) {
  const out = new Float64Array(map.length);
  for (let pixel = 0; pixel < map.length; pixel++) if (map[pixel] !== 0) add(out, pixel, map[pixel]);
  return out;
}

/**
 * The map of a pixel through these passes; sums to 1.
 *
 * The last pass comes first. With residual > 0 each pass is (I + residual A), scaled so that its weights sum to 1.
 */
function compose(passes, grid, pixel, residual = 0) {
  let map = new Float64Array(cellsOf(grid));
  map[pixel] = 1;
  for (const pass of [...passes].reverse()) {
    const next = spread(pass, map);
    map = residual ? next.map((value, i) => (residual * value + map[i]) / (residual + 1)) : next;
  }
  return Float32Array.from(map);
}

/** The cell with the largest weight in a pixel when the network enlarges its scores; of two equal ones, the lower. */
function cellOf(pixel, pixels, cells, alignCorners) {
  const exact = alignCorners ? (pixel * (cells - 1)) / Math.max(pixels - 1, 1) : ((pixel + 0.5) * cells) / pixels - 0.5;
  return Math.min(Math.max(Math.ceil(exact - 0.5 - 1e-9), 0), cells - 1);
}

/** The middle one of the pixels that cellOf maps to a cell. */
function pixelOf(cell, pixels, cells, alignCorners) {
  const exact = alignCorners ? (cell * (pixels - 1)) / Math.max(cells - 1, 1) : ((cell + 0.5) * pixels) / cells - 0.5;
  return Math.min(Math.max(Math.round(exact), 0), pixels - 1);
}

/** The edges, in pixels, between which a cell has the largest weight. */
function extent(cell, pixels, cells, alignCorners) {
  const position = (edge) =>
    alignCorners ? (edge * (pixels - 1)) / Math.max(cells - 1, 1) + 0.5 : ((edge + 0.5) * pixels) / cells;
  const inside = (value) => Math.min(Math.max(value, 0), pixels);
  return cells === 1 ? [0, pixels] : [inside(position(cell - 0.5)), inside(position(cell + 0.5))];
}

/** 1 for the pixels on a pixel's cross, else 0. */
function crossOf(pixel, grid) {
  const cross = new Uint8Array(cellsOf(grid));
  for (const line of linesOf(grid)) {
    let target = pixel - placeOn(line, pixel) * line.step;
    for (let j = 0; j < line.length; j++, target += line.step) cross[target] = 1;
  }
  return cross;
}

/** Statistics of a map: weights on and off the cross, per class and frame, entropy in bits, index of the largest. */
function describe(map, grid, pixel, classes, classCount) {
  const byClass = new Float64Array(classCount);
  const byFrame = new Float64Array(grid.frames ?? 1);
  const plane = grid.height * grid.width;
  const cross = crossOf(pixel, grid);
  let on = 0;
  let off = 0;
  let entropy = 0;
  let peak = 0;
  map.forEach((weight, index) => {
    byClass[classes[index]] += weight;
    byFrame[Math.floor(index / plane)] += weight;
    if (cross[index]) on += weight;
    else off += weight;
    if (weight > 0) entropy -= weight * Math.log2(weight);
    if (weight > map[peak]) peak = index;
  });
  return { on, off, byClass, byFrame, entropy, peak };
}

/** A percentile of values, which are sorted in place. */
function percentile(values, percent) {
  values.sort();
  const position = ((values.length - 1) * percent) / 100;
  const low = Math.floor(position);
  const high = Math.min(low + 1, values.length - 1);
  return values[low] + (values[high] - values[low]) * (position - low);
}

/**
 * The weight that gets the brightest colour: a percentile of the weights off the cross or, if those are 0, of those on
 * it. After two passes half of the weight may still lie on the cross: scaled by it, the rest would be black.
 */
function clipLimit(map, grid, pixel, percent) {
  const cross = crossOf(pixel, grid);
  const parts = [new Float32Array(map.length), new Float32Array(map.length)];
  const counts = [0, 0];
  let most = 0;
  for (let index = 0; index < map.length; index++) {
    const side = cross[index];
    parts[side][counts[side]++] = map[index];
    if (map[index] > most) most = map[index];
  }
  const sides = parts.map((part, side) => part.subarray(0, counts[side]));
  const limits = sides.filter((part) => part.length).map((part) => percentile(part, percent));
  // with all weight in a few cells, the percentile is close to 0 and the map would show noise
  return Math.max(limits.find((limit) => limit > 0) ?? 1, most / 100);
}
