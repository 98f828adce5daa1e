// What is written over the images: names, values, letters, the scale bar, the cursor, the wipe line.

import { pointAt } from './geometry.js';

const INK = '#c6ccd2';
const QUIET = '#9aa3ab';
const MARK = '#7fb2e5';
const BARS = [0.5, 1, 2, 5, 10, 20, 50, 100]; // mm

// `panels` have left, top, view and titles; `facts` are lines for the first of them, the scale bar is in the last.
export function write(canvas, panels, { letters, facts, perMillimetre, cursor, wipe, ratio }) {
  const pen = canvas.getContext('2d');
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.scale(ratio, ratio);
  panels.forEach((panel, number) => {
    const [left, top, width, height] = [panel.left, panel.top, panel.view.width, panel.view.height].map((n) => n / ratio);
    const text = (words, x, y, align = 'left', colour = INK) => put(pen, words, left + x, top + y, align, colour);
    pen.font = '12px system-ui, sans-serif';
    panel.titles.forEach(({ name, value, quiet }, k) => {
      const [x, align] = k ? [width - 10, 'right'] : [10, 'left'];
      text(name, x, 20, align, quiet ? QUIET : INK);
      if (value) text(value, x, 37, align, MARK);
    });
    if (number === 0) facts.forEach((line, k) => text(line, 10, height - 10 - 16 * (facts.length - 1 - k), 'left', QUIET));
    if (perMillimetre && number === panels.length - 1)
      bar(pen, left + width - 14, top + height - 12, perMillimetre / ratio, width / 4);
    if (wipe !== null) {
      pen.fillStyle = MARK;
      pen.fillRect(left + wipe * width - 0.5, top, 1, height);
    }
    pen.font = '13px ui-monospace, monospace'; // whose I is no line
    const middle = [
      [width / 2, 37], // below a long title
      [width / 2, height - 10],
      [12, height / 2 + 4],
      [width - 12, height / 2 + 4],
    ];
    letters.forEach((letter, k) => text(letter, ...middle[k], 'center'));
    if (cursor) cross(pen, left, top, ...pointAt(panel.view, cursor).map((n) => n / ratio), width, height);
  });
}

// A text that can be read on any grey.
function put(pen, words, x, y, align, colour) {
  pen.textAlign = align;
  pen.lineJoin = 'round';
  pen.lineWidth = 3;
  pen.strokeStyle = 'rgba(10, 12, 14, 0.8)';
  pen.strokeText(words, x, y);
  pen.fillStyle = colour;
  pen.fillText(words, x, y);
}

// A bar of a round number of mm, at most `longest`, that ends at (right, bottom).
function bar(pen, right, bottom, perMillimetre, longest) {
  const mm = BARS.filter((n) => n * perMillimetre <= longest).pop() ?? BARS[0];
  const length = mm * perMillimetre;
  pen.fillStyle = INK;
  pen.fillRect(right - length, bottom - 1, length, 1.5);
  for (const x of [right - length, right - 1.5]) pen.fillRect(x, bottom - 6, 1.5, 6);
  put(pen, mm < 10 ? `${mm} mm` : `${mm / 10} cm`, right, bottom - 10, 'right', INK);
}

function cross(pen, left, top, x, y, width, height) {
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  pen.fillStyle = MARK;
  for (const [from, to] of [
    [-12, -4],
    [4, 12],
  ]) {
    pen.fillRect(left + x + from, top + y - 0.5, to - from, 1);
    pen.fillRect(left + x - 0.5, top + y + from, 1, to - from);
  }
}
