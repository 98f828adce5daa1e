// Where the pixels of the screen lie on the slice. The same arithmetic as runtime/grid.py, for any real scale.

const TIE = 1e-9; // of a pixel: a place on the edge of two pixels belongs to the second, whatever its rounding

// For `count` pixels of the screen, `samples` places in each: canonical source and offset from its centre, stored source and
// offset; source −1 beyond the slice. `from` and `step` are in stored pixels, from the slice's outer edge and between pixels.
export function places(axis, from, step, count, samples) {
  const out = new Float32Array(4 * count * samples);
  for (let k = 0; k < count * samples; k++) {
    const stored = from + ((k + 0.5) / samples) * step;
    const canonical = stored / axis.spacing;
    const source = Math.min(Math.floor(canonical + TIE), axis.canonical - 1);
    const pixel = Math.min(Math.floor(stored + TIE), axis.size - 1);
    const inside = stored >= 0 && stored <= axis.size;
    out.set(inside ? [source, canonical - source - 0.5, pixel, stored - pixel - 0.5] : [-1, 0, -1, 0], 4 * k);
  }
  return out;
}

// The two array axes of a plane, rows first; a picture's pixels count as 1 mm.
export function axesOf(plane) {
  return plane.shape.map((size, k) => ({
    size,
    canonical: plane.canonical[k],
    spacing: plane.spacing[k],
    mm: plane.mm ? plane.mm[k] : 1,
  }));
}

// How a panel of width × height screen pixels sees a plane: `zoom` is screen pixels per mm, `centre` the stored place (row,
// column) in its middle. For the screen's two directions: the array axis, the place at the first edge, the step.
export function seen(plane, zoom, centre, width, height) {
  const axes = axesOf(plane);
  const [down, across] = [plane.turned ? 1 : 0, plane.turned ? 0 : 1].map((k, screen) => {
    const step = (plane.flipped[screen] ? -1 : 1) / (zoom * axes[k].mm);
    const length = screen ? width : height;
    return { k, ...axes[k], step, from: centre[k] - (step * length) / 2, length };
  });
  const factors = axes.map((axis) => zoom * axis.mm);
  return { down, across, factors, turned: plane.turned, width, height };
}

// The stored place (row, column) at a point of the panel, and back.
export function placeAt(view, x, y) {
  const place = [0, 0];
  place[view.across.k] = view.across.from + x * view.across.step;
  place[view.down.k] = view.down.from + y * view.down.step;
  return place;
}

export function pointAt(view, place) {
  return [view.across, view.down].map((axis) => (place[axis.k] - axis.from) / axis.step);
}

// The zoom at which the whole plane fits.
export function fitting(plane, width, height) {
  const mm = axesOf(plane).map((axis) => axis.size * axis.mm);
  const [high, wide] = plane.turned ? [mm[1], mm[0]] : mm;
  return Math.min(width / wide, height / high);
}
