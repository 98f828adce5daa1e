// The page: what is looked at, what the mouse and the keys do to it, and one frame of it.

import { fitting, placeAt, seen } from './geometry.js';
import { Loader } from './loader.js';
import { write } from './overlay.js';
import { Stage } from './stage.js';
import { Windows } from './windows.js';

const BACK = [0.063, 0.075, 0.086]; // the page's own background, beside a slice too
const GAP = 2; // between panels
const LARGER = 1.25; // times: so much larger must a slice become for panels to leave their row
const FINEST = 64; // pixels of the screen for one of the slice
const STRONG = { difference: 0.1, uncertainty: 0.2 }; // of the window: what has the full colour
const AHEAD = 2; // slices that are encoded before they are asked for, in the direction of scrolling

const $ = (id) => document.getElementById(id);
const [screen, pictures, overlay] = ['screen', 'pictures', 'overlay'].map($);
const scan = await (await fetch('scan.json')).json();
const predictor = new Float32Array(await (await fetch('predictor')).arrayBuffer());
const network = { ...scan.network, largest: scan.largest_scale };

// An image is a row here and a branch of the shader.
const IMAGES = [
  ['original', 'Original'],
  ['bicubic', 'Bicubic'],
  ['ours', 'Super-resolved'],
  ['difference', 'Difference'],
  ...(network.uncertainty ? [['uncertainty', 'Uncertainty']] : []),
];
const NAMES = Object.fromEntries(IMAGES);

const state = {
  plane: scan.planes[0],
  index: Math.floor(scan.planes[0].count / 2),
  direction: 1,
  volume: 0,
  noise: scan.noise,
  grain: 0,
  images: ['original', 'bicubic', 'ours'],
  wipe: null, // the line's place, 0 … 1
  level: 0.5,
  window: 1,
  centre: [0, 0],
  zoom: 1,
  fits: true,
  cursor: null, // a stored place (row, column)
};
let panels = [];
let drawn = { slice: '', features: '', painted: '', frame: 0 };
let waiting = false;
let resting = 0;

const renderer = makeRenderer();
const slices = new Loader(
  'slice',
  scan.kept / 4,
  (_, buffer) => ({ pixels: new Float32Array(buffer), bytes: buffer.byteLength }),
  later,
);
const responses = new Loader('responses', scan.kept, unpack, later);

// `?shader` and `?windows` in the address choose; a shader in software is slower than the server.
function makeRenderer() {
  const asked = new URLSearchParams(location.search);
  if (asked.has('windows') || !network.shader || !Stage.works(asked.has('shader'))) return new Windows(pictures, later);
  pictures.addEventListener('webglcontextlost', () => (location.search = '?windows'));
  return new Stage(pictures, network, predictor);
}

// The parts of a payload, as runtime/viewer/opened.py puts them together.
function unpack(key, buffer, told) {
  const plane = scan.planes.find(({ axis }) => axis === Number(new URLSearchParams(key).get('axis')));
  const pixels = plane.canonical[0] * plane.canonical[1];
  const channels = 4 * (Math.ceil(network.basis / 4) + network.uncertainty);
  const canonical = new Float32Array(buffer, 0, pixels);
  const halves = new Uint16Array(buffer, 4 * pixels, channels * pixels);
  const lacking = new Uint16Array(buffer, (4 + 2 * channels) * pixels);
  return { canonical, responses: halves, lacking, told, bytes: buffer.byteLength };
}

function keyOf(index, noise = state.noise) {
  const { plane, volume } = state;
  return String(new URLSearchParams({ axis: plane.axis, index, volume, noise }));
}

// Ask for the slice that is looked at, and for those that come next.
function load() {
  const { index, direction, plane } = state;
  const near = (steps) => steps.map((n) => index + n * direction).filter((k) => k >= 0 && k < plane.count);
  slices.want(near([0, 1, 2, 3, 4, -1, -2]).map((k) => keyOf(k, 0)));
  if (renderer.needsFeatures)
    responses.want(near([0, ...Array.from({ length: AHEAD }, (_, k) => k + 1), -1]).map((k) => keyOf(k)));
  later();
}

function later() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    frame();
  });
}

// The images are drawn again where something of them changed, or `anyway`; what is written over them always.
function frame(anyway = false) {
  const ratio = devicePixelRatio;
  const [width, height] = [screen.clientWidth, screen.clientHeight].map((n) => Math.max(1, Math.round(n * ratio)));
  for (const canvas of [pictures, overlay])
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  arrange(width, height);
  const key = keyOf(state.index);
  const [stored, features] = [slices.get(keyOf(state.index, 0)), responses.get(key)];
  if (stored && drawn.slice !== keyOf(state.index, 0)) {
    renderer.slice(stored.pixels, state.plane.shape);
    drawn.slice = keyOf(state.index, 0);
  }
  const hasSlice = drawn.slice === keyOf(state.index, 0);
  if (features && drawn.features !== key) {
    renderer.features(features, state.plane);
    drawn.features = key;
  }
  if (hasSlice && !renderer.needsFeatures) renderer.ask(key, panels[0].view, state);
  const ready = renderer.needsFeatures ? drawn.features === key : renderer.isReady(key);
  const { images, wipe, level, window, centre, zoom, grain } = state;
  const painted = JSON.stringify([key, ready, hasSlice, width, height, images, wipe, level, window, centre, zoom, grain]);
  if (anyway || painted !== drawn.painted || !renderer.needsFeatures) paint(ready, hasSlice);
  drawn.painted = painted;
  annotate(ready, hasSlice, ratio);
  say(features, ready);
  document.documentElement.dataset.shown = ready && hasSlice ? key : '';
  clearTimeout(resting);
  resting = setTimeout(measure, 250);
}

// Panels of equal size, in one row, or in the rows and columns that show the slice much larger.
function arrange(width, height) {
  const count = state.wipe === null ? state.images.length : 1;
  const sizes = Array.from({ length: count }, (_, k) => {
    const [cols, rows] = [k + 1, Math.ceil(count / (k + 1))];
    const [w, h] = [Math.floor((width - GAP * (cols - 1)) / cols), Math.floor((height - GAP * (rows - 1)) / rows)];
    return { cols, w, h, zoom: fitting(state.plane, w, h) };
  }).filter(({ cols }) => count % cols === 0);
  const { cols, w, h, zoom } = sizes.reduceRight((best, size) => (size.zoom > LARGER * best.zoom ? size : best));
  state.fitting = 0.92 * zoom;
  if (state.fits) Object.assign(state, { zoom: state.fitting, centre: state.plane.shape.map((n) => n / 2) });
  const view = seen(state.plane, state.zoom, state.centre, w, h);
  panels = Array.from({ length: count }, (_, k) => {
    const [left, top] = [(k % cols) * (w + GAP), Math.floor(k / cols) * (h + GAP)];
    return { left, top, bottom: height - top - h, view, images: state.wipe === null ? [state.images[k]] : ends() };
  });
}

function ends() {
  return [state.images[0], state.images[state.images.length - 1]];
}

// Whether an image can be drawn; bicubic interpolation stands in its place until then.
function isThere(name, ready) {
  return name === 'original' || (name === 'bicubic' && renderer.needsFeatures) || (ready && renderer.has(name));
}

function look(name) {
  const { level, window, grain, volume } = state;
  const { low, high } = scan.ranges[volume % scan.ranges.length];
  const range = STRONG[name] ? [0, STRONG[name] * window] : [level - window / 2, level + window / 2];
  return { range, limits: [low, high], grain, beyond: BACK };
}

function paint(ready, hasSlice) {
  renderer.clear(BACK);
  if (hasSlice) panels.forEach((panel) => draw(panel, ready));
}

// While the network still computes, its panel shows bicubic interpolation, and says so.
function draw({ images, left, bottom, view }, ready) {
  const line = state.wipe === null ? view.width : Math.round(state.wipe * view.width);
  images.forEach((name, k) => {
    const clip = k ? [line, view.width] : [0, line];
    const known = isThere(name, ready) ? name : 'bicubic';
    if (clip[1] > clip[0]) renderer.draw(known, view, { left, bottom, clip }, look(known));
  });
}

function annotate(ready, hasSlice, ratio) {
  const { plane, index, cursor, level, window } = state;
  const { black, white } = scan.ranges[state.volume % scan.ranges.length];
  const digits = Math.max(0, 3 - Math.ceil(Math.log10(Math.abs(white - black))));
  const shown = (value) => (Number.isFinite(value) ? value.toFixed(digits) : '');
  const real = (unit) => black + unit * (white - black);
  const wait = renderer.needsFeatures ? 'Bicubic, the network computes …' : 'The network computes …';
  const title = (name) => {
    const waits = !isThere(name, ready);
    const strong = shown(STRONG[name] * window * (white - black));
    const coded = {
      difference: `Difference to bicubic, ±${strong}`,
      uncertainty: `Uncertainty (${100 * network.coverage} %), to ±${strong}`,
    };
    const label = coded[name] ?? NAMES[name];
    if (waits || !cursor || !hasSlice) return { name: waits ? wait : label, quiet: waits };
    const unit = renderer.read(name, cursor, panels[0].view, look(name));
    const value = shown(STRONG[name] ? unit * (white - black) : real(unit));
    return { name: label, value: value && name === 'uncertainty' ? `± ${value}` : value };
  };
  const placed = plane.position;
  const place = placed && placed.first + index * placed.step;
  const where = placed ? ` · ${placed.letters[place < 0 ? 0 : 1]} ${Math.abs(place).toFixed(1)} mm` : '';
  const position = plane.count > 1 ? `${plane.name} ${index + 1} / ${plane.count}${where}` : '';
  const titled = panels.map((panel) => ({ ...panel, titles: panel.images.map(title) }));
  const facts = [
    [position, scales() + (plane.mm ? ` (${(1 / state.zoom).toFixed(3)} mm)` : '')].filter(Boolean).join(' · '),
    ...plane.acquired.split(', ').map((part) => part[0].toUpperCase() + part.slice(1)), // or it would not fit into a panel
    ready ? against(responses.get(keyOf(index)), (part) => shown(part * (white - black))) : '',
    `Window ${shown(window * (white - black))} · Level ${shown(real(level))}`,
    'Not for diagnosis',
  ].filter(Boolean);
  const perMillimetre = plane.mm ? state.zoom : 0;
  write(overlay, titled, { letters: plane.letters, facts, perMillimetre, cursor, wipe: state.wipe, ratio });
  $('where').value = position.replace(`${plane.name} `, '');
}

// How far the image lies from what was measured: what is given back by `grain` brings it nearer.
function against(features, shown) {
  if (!features) return '';
  const [typical, largest] = features.told.off.map((part) => shown(part * (1 - state.grain)));
  return `Differs from the measured data: RMS ${typical}, at most ${largest}`;
}

// How much finer the screen is than the stored rows and columns.
function scales() {
  const { factors } = panels[0].view;
  const times = Math.abs(factors[0] / factors[1] - 1) < 0.005 ? [factors[1]] : factors;
  return times.map((r) => `×${r.toFixed(2)}`).join(' ');
}

function say(features, ready) {
  const speed = ready && features ? ` · encoded in ${features.told.ms} ms` : '';
  const windows = renderer.ms ? ` · rendered in ${renderer.ms} ms` : '';
  const frames = drawn.frame ? ` · drawn in ${drawn.frame.toFixed(1)} ms` : '';
  const problem = slices.problem || responses.problem || renderer.problem;
  $('status').textContent = problem || scales() + speed + windows + frames;
  $('status').classList.toggle('problem', Boolean(problem));
}

// How long a frame takes to the end, measured when nothing moves any more.
function measure() {
  const key = keyOf(state.index);
  if (!renderer.needsFeatures || document.documentElement.dataset.shown !== key) return;
  renderer.finish();
  const began = performance.now();
  paint(true, true);
  renderer.finish();
  drawn.frame = performance.now() - began;
  say(responses.get(key), true);
}

function change(values) {
  Object.assign(state, values);
  for (const [id, value] of Object.entries({ index: state.index, grain: state.grain, noise: state.noise })) $(id).value = value;
  $('grain').nextElementSibling.value = `${Math.round(100 * state.grain)} %`;
  $('noise').nextElementSibling.value = `${(100 * state.noise).toFixed(1)} %`;
  $('volume').nextElementSibling.value = `${state.volume + 1} / ${scan.volumes}`;
  for (const button of document.querySelectorAll('#planes button, #images button'))
    button.setAttribute('aria-pressed', button.value === String(state.plane.axis) || state.images.includes(button.value));
  $('wipe').setAttribute('aria-pressed', state.wipe !== null);
  later();
}

function goTo(index) {
  const to = Math.min(Math.max(index, 0), state.plane.count - 1);
  if (to === state.index) return;
  change({ index: to, direction: Math.sign(to - state.index) });
  load();
}

function choosePlane(plane) {
  if (!plane || plane === state.plane) return;
  $('index').max = plane.count - 1;
  drawn = { slice: '', features: '', painted: '', frame: 0 };
  change({ plane, index: Math.floor(plane.count / 2), fits: true, cursor: null });
  load();
}

function toggle(name) {
  const images = IMAGES.map(([id]) => id).filter((id) => state.images.includes(id) !== (id === name));
  if (images.length) change({ images, wipe: images.length > 1 ? state.wipe : null });
}

function wipe() {
  change({ wipe: state.wipe === null ? 0.5 : null, images: state.images.length > 1 ? state.images : ['bicubic', 'ours'] });
}

// Zoom so that the point (x, y) of a panel, by default its middle, stays where it is.
function zoomBy(factor, panel = panels[0], x = panel.view.width / 2, y = panel.view.height / 2) {
  const finest = Math.min(...(state.plane.mm ?? [1]));
  const zoom = Math.min(Math.max(state.zoom * factor, state.fitting / 4), Math.max(FINEST / finest, state.fitting));
  const [before, after] = [state.zoom, zoom].map((z) =>
    placeAt(seen(state.plane, z, state.centre, panel.view.width, panel.view.height), x, y),
  );
  change({ zoom, fits: false, centre: state.centre.map((c, k) => c + before[k] - after[k]) });
}

function pan(panel, x, y) {
  const [from, to] = [placeAt(panel.view, 0, 0), placeAt(panel.view, x, y)];
  change({ fits: false, centre: state.centre.map((c, k) => c + from[k] - to[k]) });
}

function save() {
  frame(true);
  const sheet = Object.assign(document.createElement('canvas'), { width: pictures.width, height: pictures.height });
  for (const canvas of [pictures, overlay]) sheet.getContext('2d').drawImage(canvas, 0, 0);
  sheet.toBlob((blob) => {
    const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(blob) });
    const name = scan.name.replace(/\.(nii|gz|dcm|png|nrrd|mha)\b/g, '');
    link.download = `${name}_${state.plane.name.toLowerCase()}_${state.index + 1}.png`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

// The panel under the mouse, and where in it, in pixels of the screen.
function under(event) {
  const box = screen.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) * devicePixelRatio, (event.clientY - box.top) * devicePixelRatio];
  const panel =
    panels.find(({ left, top, view }) => x >= left && y >= top && x < left + view.width && y < top + view.height) ?? panels[0];
  return { panel, x: x - panel.left, y: y - panel.top };
}

let drag = null;
screen.addEventListener('pointerdown', (event) => {
  const { panel, x, y } = under(event);
  const onLine = state.wipe !== null && Math.abs(x - state.wipe * panel.view.width) < 8 * devicePixelRatio;
  const kind = event.button === 1 || event.shiftKey ? 'pan' : event.button === 2 ? 'zoom' : onLine ? 'wipe' : 'window';
  drag = { kind, panel, x, y, clientX: event.clientX, clientY: event.clientY };
  screen.setPointerCapture(event.pointerId);
  screen.focus();
  event.preventDefault();
});
screen.addEventListener('pointermove', (event) => {
  const { panel, x, y } = under(event);
  if (!drag) return change({ cursor: placeAt(panel.view, x, y) });
  const [dx, dy] = [event.clientX - drag.clientX, event.clientY - drag.clientY];
  Object.assign(drag, { clientX: event.clientX, clientY: event.clientY });
  if (drag.kind === 'pan') pan(drag.panel, dx * devicePixelRatio, dy * devicePixelRatio);
  else if (drag.kind === 'zoom') zoomBy(Math.exp(-dy / 150), drag.panel, drag.x, drag.y);
  else if (drag.kind === 'wipe') moveLine((dx * devicePixelRatio) / drag.panel.view.width);
  else
    change({
      window: Math.min(Math.max(state.window * Math.exp(dx / 250), 0.01), 10),
      level: state.level + (dy / 500) * state.window,
    });
});
for (const name of ['pointerup', 'pointercancel']) screen.addEventListener(name, () => (drag = null));
screen.addEventListener('pointerleave', () => change({ cursor: null }));
screen.addEventListener('contextmenu', (event) => event.preventDefault());
screen.addEventListener('dblclick', () => change({ fits: true }));

let turned = 0; // of the wheel, in pixels; a notch is 100 or so, a finger's stroke many small steps
screen.addEventListener(
  'wheel',
  (event) => {
    event.preventDefault();
    const { panel, x, y } = under(event);
    const delta = event.deltaY * (event.deltaMode ? 40 : 1);
    if (event.ctrlKey || event.metaKey) return zoomBy(Math.exp(-delta / 400), panel, x, y);
    turned = Math.abs(delta) >= 40 ? 40 * Math.sign(delta) : turned + delta;
    if (Math.abs(turned) < 40) return undefined;
    goTo(state.index + Math.sign(turned));
    turned = 0;
    return undefined;
  },
  { passive: false },
);

function moveLine(by) {
  if (state.wipe !== null) change({ wipe: Math.min(Math.max(state.wipe + by, 0), 1) });
}

const KEYS = {
  ArrowUp: () => goTo(state.index - 1),
  ArrowDown: () => goTo(state.index + 1),
  PageUp: () => goTo(state.index - 10),
  PageDown: () => goTo(state.index + 10),
  Home: () => goTo(0),
  End: () => goTo(state.plane.count - 1),
  ArrowLeft: () => moveLine(-0.02),
  ArrowRight: () => moveLine(0.02),
  '+': () => zoomBy(1.1),
  '=': () => zoomBy(1.1),
  '-': () => zoomBy(1 / 1.1),
  f: () => change({ fits: true }),
  r: () => change({ window: 1, level: 0.5 }),
  w: wipe,
  p: save,
  h: () => ($('keys').open ? $('keys').close() : $('keys').show()),
  Escape: () => $('keys').close(),
  ...Object.fromEntries(IMAGES.map(([id], k) => [String(k + 1), () => toggle(id)])),
  ...Object.fromEntries(
    scan.planes.map((plane) => [plane.name[0].toLowerCase(), () => choosePlane(plane)]).filter(([key]) => 'acs'.includes(key)),
  ),
};
document.addEventListener('keydown', (event) => {
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const slides = event.target.type === 'range' && event.key.length > 1; // its arrows move the slider
  if (!act || slides || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
});

function button(parent, value, text, act) {
  const made = Object.assign(document.createElement('button'), { value, textContent: text });
  made.addEventListener('click', act);
  $(parent).append(made);
}

$('name').textContent = $('name').title = document.title = scan.name;
$('notes').textContent = scan.notes.join(' · ');
if (scan.planes.length > 1) scan.planes.forEach((plane) => button('planes', plane.axis, plane.name, () => choosePlane(plane)));
IMAGES.forEach(([id, name]) => button('images', id, name, () => toggle(id)));
for (const [id, key] of Object.entries({ wipe: 'w', auto: 'r', fit: 'f', save: 'p', help: 'h' }))
  $(id).addEventListener('click', KEYS[key]);
$('index').max = state.plane.count - 1;
$('volume').max = scan.volumes - 1;
$('slices').hidden = scan.planes.every(({ count }) => count < 2);
$('times').hidden = scan.volumes < 2;
$('told').hidden = !network.told;
$('index').addEventListener('input', (event) => goTo(Number(event.target.value)));
$('volume').addEventListener('input', (event) => {
  change({ volume: Number(event.target.value) });
  load();
});
$('grain').addEventListener('input', (event) => change({ grain: Number(event.target.value) }));
$('noise').addEventListener('change', (event) => {
  change({ noise: Number(event.target.value) });
  load();
});
new ResizeObserver(later).observe(screen);
change({});
load();
