"use strict";

// What the page begins with: its data, and small helpers.

// a panel's pixels, whatever the picture's size: enough for a sharp map, few enough to redraw while the pointer moves
const PANEL_AREA = 260_000;
// of more maps each is smaller, as they are redrawn together
const MOST_MAPS = 3;
const LISTED_CLASSES = 8;
// more of them in a row would make the panels too small
const COLUMNS = 3;
// of width to height: on a telephone a picture wider than this has R = 2 below it, a narrower one beside it
const WIDE = 1.5;

const byId = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

const signed = (number) => `${number < 0 ? "−" : "+"}${Math.abs(number)}`;

function short(weight) {
  const text = weight === 0 ? "0" : weight < 0.001 ? weight.toExponential(1) : weight.toPrecision(2);
  return text.replace("-", "−");
}

/** The point of a link #x=..&y=.. that lies in an image, or null. */
function pointOf(hash, { width, height }) {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const [x, y] = ["x", "y"].map((name) => (/^\d{1,9}$/.test(values.get(name) ?? "") ? Number(values.get(name)) : NaN));
  return x < width && y < height ? { x, y } : null;
}

/** The frame of a link that has one, or null. */
function frameOf(hash, count) {
  const value = new URLSearchParams(hash.replace(/^#/, "")).get("frame") ?? "";
  return /^\d{1,9}$/.test(value) && Number(value) < count ? Number(value) : null;
}

/** A model with what the page embeds of it: its passes, and the classes of its cells and of the picture's pixels. */
function modelOf(facts, number, arrays) {
  const own = (name) => arrays[`${number}/${name}`];
  const passes = Array.from({ length: facts.recurrence }, (_, index) => {
    const all = (...names) => Object.fromEntries(names.map((name) => [name, own(`${name}${index + 1}`)]));
    if (facts.form === "weights") return passOfWeights(facts.grid, all("codes", "scale", "gain"), facts.levels);
    if (facts.form === "projections") return passOfProjections(facts.grid, all("query", "key"), facts.steps[index]);
    return facts.steps[index] === null
      ? passOfClasses(facts.grid, { ...all("codes", "scale", "channel"), classes: own(`class${index + 1}`) })
      : passOfGroups(facts.grid, all("query", "key", "own", "group", "keygroup"), facts.steps[index]);
  });
  return { ...facts, passes, cells: own("cells"), prediction: own("prediction") };
}

async function load(page) {
  const arrays = unpack(page.arrays, await inflate(bytesOf(byId("payload").textContent)));
  const tables = Object.fromEntries(page.colours.map((name, i) => [name, arrays.tables.subarray(768 * i, 768 * (i + 1))]));
  const pictures = page.pictures.map((address) => Object.assign(new Image(), { src: address }));
  await Promise.all(pictures.map((picture) => picture.decode()));
  return { models: page.models.map((facts, number) => modelOf(facts, number, arrays)), tables, pictures, label: arrays.label };
}
