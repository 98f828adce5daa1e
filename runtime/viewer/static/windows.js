// Where the browser has no WebGL 2: the server renders what is to be seen, at the nearest scale that is quick.

const IMAGES = ['original', 'bicubic', 'ours', 'uncertainty'];
const SHARP = 16; // screen pixels of a canonical one, at most, that are asked for

export class Windows {
  needsFeatures = false;
  #window = null;
  #asked = '';
  #busy = false;

  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d', { alpha: false });
    this.changed = changed;
    this.problem = '';
    this.ms = 0; // that the server took for the last window
  }

  slice(pixels, [rows, cols]) {
    this.#asked = '';
    this.#window = { key: '', scale: [1, 1], window: [0, 0, rows, cols], images: [pixels, pixels, pixels, []], sheets: {} };
  }

  features() {}

  isReady(key) {
    return this.#window?.key === key;
  }

  has(shown) {
    return shown !== 'uncertainty' || this.#window.images[3].length > 0;
  }

  // What is to be seen of a slice; the latest request is the one that counts.
  async ask(key, view, { grain, images }) {
    const ends = [view.down, view.across].map((axis) => [axis.from, axis.from + axis.step * axis.length].sort((a, b) => a - b));
    const [[top, bottom], [left, right]] = view.turned ? ends.reverse() : ends;
    const [ry, rx] = view.factors.map((r) => Math.min(Math.max(r, 1), SHARP));
    const uncertainty = images.includes('uncertainty');
    const asked = `${key}&${new URLSearchParams({ ry, rx, top, bottom, left, right, grain, uncertainty })}`;
    if (asked === this.#asked) return;
    this.#asked = asked;
    this.key = key;
    if (this.#busy) return;
    for (let query = ''; query !== this.#asked;) {
      this.#busy = true;
      const of = this.key;
      query = this.#asked;
      try {
        const answer = await fetch(`window?${query}`);
        if (!answer.ok) throw new Error((await answer.text()) || 'the viewer was ended, or its address has changed');
        const { scale, window, ms } = JSON.parse(answer.headers.get('Told'));
        const size = window[2] * window[3];
        const pixels = new Float32Array(await answer.arrayBuffer());
        const parts = IMAGES.map((_, k) => pixels.subarray(k * size, (k + 1) * size));
        this.#window = { key: of, scale, window, images: parts, sheets: {} };
        this.ms = ms;
        this.problem = '';
      } catch (error) {
        this.problem = error instanceof TypeError ? 'the viewer was ended: start it again' : error.message;
      }
      this.#busy = false;
      this.changed();
    }
  }

  draw(shown, view, panel, look) {
    const { context } = this;
    const { scale, window } = this.#window;
    const [top, left] = window;
    const sheet = this.#sheet(shown, look.range);
    const y = this.canvas.height - panel.bottom - view.height;
    context.save();
    context.beginPath();
    context.rect(panel.left + panel.clip[0], y, panel.clip[1] - panel.clip[0], view.height);
    context.clip();
    context.fillStyle = `rgb(${look.beyond.map((c) => 255 * c)})`;
    context.fillRect(panel.left, y, view.width, view.height);
    const [a, e] = along(view.across, scale, [top, left]);
    const [d, f] = along(view.down, scale, [top, left]);
    const matrix = view.turned ? [0, d, a, 0] : [a, 0, 0, d];
    context.setTransform(...matrix, panel.left + e, y + f);
    context.imageSmoothingEnabled = shown !== 'original';
    context.drawImage(sheet, 0, 0);
    context.restore();
  }

  // The window's image in greys or colours, made once for a range.
  #sheet(shown, range) {
    const { window, images, sheets } = this.#window;
    const [, , height, width] = window;
    const name = [shown, ...range].join();
    if (sheets[shown]?.name === name) return sheets[shown].sheet;
    const picture = new ImageData(width, height);
    const colour = painter(shown, range);
    const [of, other] = shown === 'difference' ? [images[2], images[1]] : [images[IMAGES.indexOf(shown)], null];
    for (let k = 0; k < of.length; k++) picture.data.set(colour(other ? of[k] - other[k] : of[k]), 4 * k);
    const sheet = new OffscreenCanvas(width, height);
    sheet.getContext('2d').putImageData(picture, 0, 0);
    sheets[shown] = { name, sheet };
    return sheet;
  }

  read(shown, place) {
    const { scale, window, images } = this.#window;
    const [row, col] = place.map((p, k) => Math.floor(p * scale[k]) - window[k]);
    if (row < 0 || col < 0 || row >= window[2] || col >= window[3]) return NaN;
    const [original, bicubic, ours, uncertainty] = images.map((image) => image[row * window[3] + col]);
    return { original, bicubic, ours, difference: ours - bicubic, uncertainty }[shown];
  }

  clear(colour) {
    this.context.fillStyle = `rgb(${colour.map((c) => 255 * c)})`;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  finish() {}
}

// Of one direction of the screen: pixels of it for one of the window's, and where the window begins.
function along(axis, scale, first) {
  const r = scale[axis.k];
  return [1 / (r * axis.step), (first[axis.k] / r - axis.from) / axis.step];
}

// The colours of the shader.
function painter(shown, [black, white]) {
  if (shown === 'difference')
    return (v) => {
      const part = (255 * v) / white;
      return v > 0 ? [part, 0.62 * part, 0.2 * part, 255] : [-0.25 * part, -0.6 * part, -part, 255];
    };
  if (shown === 'uncertainty')
    return (v) => {
      const t = Math.min(v / white, 1);
      return [255 * t * (2 - t), 242 * t ** 1.5, 178 * t ** 4, 255];
    };
  return (v) => {
    const grey = (255 * (v - black)) / (white - black);
    return [grey, grey, grey, 255];
  };
}
