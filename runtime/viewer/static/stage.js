// The Meta-Upscale stage as a fragment shader: from a slice's responses to pixels at any real scale.
//
// A pixel is a weighted sum of the responses of its source. The weights depend on its offset from the source's centre and on
// 1/r alone: for each scale the weight predictor runs once on a grid of offsets, and pixels interpolate between them.

import { places } from './geometry.js';

export const SHOWN = { original: 0, bicubic: 1, ours: 2, difference: 3, uncertainty: 4 };
const CELLS = 160; // an axis of the grid of offsets: half as many would be off by more than 1e-3 of the range
const UNITS = { responses: 0, canonical: 1, lacking: 2, stored: 3, places: 4, table: 5 }; // of textures
const EXTENSION = 'EXT_color_buffer_float'; // to draw the weights
const SOFTWARE = /swiftshader|llvmpipe|softpipe|basic render|software/i; // names of drivers without a GPU
const SAMPLES = 4; // at most, an axis, where pixels of the screen are larger than those of the slice

const CORNERS = `#version 300 es
void main() {
  gl_Position = vec4(vec2((gl_VertexID << 1) & 2, gl_VertexID & 2) * 2.0 - 1.0, 0, 1);
}`;

// Blocks, not textures: all pixels read the same number at the same time.
const predictorOf = (units) => `#version 300 es
#define UNITS ${units}
precision highp float;
layout(std140) uniform Hidden { vec4 hidden[UNITS]; };       // what a unit takes of the row offset, column offset and scale
layout(std140) uniform Weights { vec4 weights[UNITS + 1]; }; // of four of the basis; the bias last
uniform float cells;
out vec4 coefficients;

void main() {
  vec2 offset = (gl_FragCoord.xy - 0.5) / cells - 0.5;
  coefficients = weights[UNITS];
  for (int unit = 0; unit < UNITS; unit++) {
    vec4 h = hidden[unit];
    coefficients += max(h.x * offset.y + h.y * offset.x + h.z, 0.0) * weights[unit];
  }
}`;

// One program for each of `SHOWN`.
const stageOf = (shown) => `#version 300 es
#define SHOWN ${shown}
precision highp float;
uniform highp sampler2DArray responses, table;
uniform highp sampler2D canonical, lacking, stored, places; // places: (canonical source, offset, stored source, offset)
uniform ivec2 corner, size;       // of the panel, from the bottom left
uniform int samples;
uniform bool turned, skip;
uniform float cells, mean, deviation, grain;
uniform vec2 inverse;             // 1 / scale of rows and columns, in canonical pixels
uniform vec2 limits, range;       // of the input's values; what becomes black and white
uniform vec3 beyond;              // the colour beside the slice
out vec4 colour;                  // its alpha is the value: the canvas has none

float at(highp sampler2D image, ivec2 p) {
  return texelFetch(image, clamp(p, ivec2(0), textureSize(image, 0) - 1), 0).r;
}

vec4 keys(float t) { // Keys' cubic with a = -1/2, of the four pixels around
  float s = t * t;
  return vec4(2.0 * s - t - s * t, 3.0 * s * t - 5.0 * s + 2.0, 4.0 * s + t - 3.0 * s * t, s * t - s) / 2.0;
}

float cubic(highp sampler2D image, vec2 place) { // in pixels from the outer edge
  vec2 first = floor(place - 0.5), t = place - 0.5 - first;
  vec4 wx = keys(t.x), wy = keys(t.y);
  float sum = 0.0;
  for (int j = 0; j < 4; j++)
    for (int i = 0; i < 4; i++)
      sum += wy[j] * wx[i] * at(image, ivec2(first) + ivec2(i, j) - 1);
  return sum;
}

float between(ivec2 p) { // what is interpolated: the half width, whose logarithm the last layer tells; else the image
  if (SHOWN != 4) return at(canonical, p);
  ivec3 size = textureSize(responses, 0);
  vec3 told = texelFetch(responses, ivec3(clamp(p, ivec2(0), size.xy - 1), size.z - 1), 0).rgb;
  return exp(min(dot(told, vec3(1, inverse)), 0.0));
}

float linear(ivec2 source, vec2 offset) {
  ivec2 side = ivec2(offset.x < 0.0 ? -1 : 1, offset.y < 0.0 ? -1 : 1);
  vec2 t = abs(offset);
  return mix(mix(between(source), between(source + ivec2(side.x, 0)), t.x),
             mix(between(source + ivec2(0, side.y)), between(source + side), t.x), t.y);
}

float givenBack(ivec2 source, vec2 offset) {
  return grain > 0.0 ? grain * cubic(lacking, 2.0 * (vec2(source) + offset + 0.5)) : 0.0;
}

float ours(ivec2 source, vec2 offset) {
  vec2 cell = ((offset + 0.5) * cells + 0.5) / (cells + 1.0);
  float sum = 0.0;
  for (int layer = 0; layer < textureSize(table, 0).z; layer++)
    sum += dot(texture(table, vec3(cell, layer)), texelFetch(responses, ivec3(source, layer), 0));
  float value = sum * deviation + (skip ? linear(source, offset) : mean);
  return clamp(value + givenBack(source, offset), limits.x, limits.y);
}

float value(vec4 row, vec4 col) {
  ivec2 source = ivec2(col.x, row.x);
  vec2 offset = vec2(col.y, row.y);
  float original = at(stored, ivec2(col.z, row.z));
  vec2 place = vec2(col.z + col.w, row.z + row.w) + 0.5;
  float bicubic = SHOWN == 1 || SHOWN == 3 ? clamp(cubic(stored, place), limits.x, limits.y) : 0.0;
  float ours = SHOWN == 2 || SHOWN == 3 ? ours(source, offset) : 0.0;
  float halfWidth = SHOWN == 4 ? linear(source, offset) + abs(givenBack(source, offset)) : 0.0;
  return float[](original, bicubic, ours, ours - bicubic, halfWidth)[SHOWN];
}

vec3 heat(float t) { // black, red, amber, pale yellow: twice as far, twice as light
  return vec3(t * (2.0 - t), 0.95 * t * sqrt(t), 0.7 * t * t * t * t);
}

void main() {
  ivec2 p = ivec2(gl_FragCoord.xy) - corner;
  p.y = size.y - 1 - p.y;
  float sum = 0.0;
  int count = 0;
  for (int j = 0; j < samples; j++)
    for (int i = 0; i < samples; i++) {
      vec4 across = texelFetch(places, ivec2(p.x * samples + i, 0), 0);
      vec4 down = texelFetch(places, ivec2(p.y * samples + j, 1), 0);
      vec4 row = turned ? across : down, col = turned ? down : across;
      if (row.x < 0.0 || col.x < 0.0) continue;
      count++;
      sum += value(row, col);
    }
  float v = sum / float(max(count, 1));
  if (count == 0) colour = vec4(beyond, beyond.r);
  else if (SHOWN == 3) colour = vec4((v > 0.0 ? vec3(1, 0.62, 0.2) : vec3(-0.25, -0.6, -1)) * v / range.y, v);
  else if (SHOWN == 4) colour = vec4(heat(clamp(v / range.y, 0.0, 1.0)), v);
  else colour = vec4(vec3((v - range.x) / (range.y - range.x)), v);
}`;

export class Stage {
  needsFeatures = true;
  #scale = '';
  #textures = [];

  // Whether this browser can do it, on a GPU or `anyhow`.
  static works(anyhow) {
    const gl = document.createElement('canvas').getContext('webgl2');
    if (!gl?.getExtension(EXTENSION)) return false;
    const renderer = gl.getExtension('WEBGL_debug_renderer_info')?.UNMASKED_RENDERER_WEBGL ?? gl.RENDERER;
    return anyhow || !SOFTWARE.test(gl.getParameter(renderer));
  }

  // `network` is the description's, `predictor` a Float32Array.
  constructor(canvas, network, predictor) {
    const gl = canvas.getContext('webgl2', { alpha: false, antialias: false, depth: false });
    gl.getExtension(EXTENSION);
    Object.assign(this, { gl, canvas, network, layers: Math.ceil(network.basis / 4) });
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.predictor = this.#program(predictorOf(network.hidden));
    this.stages = Object.values(SHOWN).map((shown) => this.#program(stageOf(shown)));
    this.#unpack(predictor);
    this.#allocate(UNITS.table, gl.TEXTURE_2D_ARRAY, gl.RGBA16F, CELLS + 1, CELLS + 1, this.layers);
    this.#filter(gl.TEXTURE_2D_ARRAY, gl.LINEAR);
    this.frame = gl.createFramebuffer();
  }

  // The slice as it is stored: (rows, columns) float32.
  slice(pixels, shape) {
    this.#image(UNITS.stored, this.gl.R32F, this.gl.RED, this.gl.FLOAT, pixels, shape);
  }

  // What `payload` of runtime/viewer/opened.py gives of it.
  features({ canonical, responses, lacking }, plane) {
    const gl = this.gl;
    const [rows, cols] = plane.canonical;
    const depth = this.layers + this.network.uncertainty;
    this.#image(UNITS.canonical, gl.R32F, gl.RED, gl.FLOAT, canonical, plane.canonical);
    this.#image(UNITS.lacking, gl.R16F, gl.RED, gl.HALF_FLOAT, lacking, plane.fine);
    this.#allocate(UNITS.responses, gl.TEXTURE_2D_ARRAY, gl.RGBA16F, cols, rows, depth);
    gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, 0, cols, rows, depth, gl.RGBA, gl.HALF_FLOAT, responses);
  }

  // Draw one image of `SHOWN` into part of the canvas: `panel` has its left and bottom and `clip`, a part [left, right) of its
  // width. `view` is of geometry.js; `look` has the range [black, white], limits and grain.
  draw(shown, view, panel, look, target = null) {
    const gl = this.gl;
    const { down, across, width, height, factors, turned } = view;
    const samples = Math.min(SAMPLES, Math.ceil(1 / Math.min(1, ...factors)));
    const axes = turned ? [across, down] : [down, across];
    // In canonical pixels, within what networks are used for.
    const scales = factors.map((r, k) => Math.min(Math.max(r, 1), this.network.largest) * axes[k].spacing);
    this.#predict(scales);
    this.#places(view, samples);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target);
    const stage = this.stages[SHOWN[shown]];
    gl.useProgram(stage.program);
    gl.viewport(panel.left, panel.bottom, width, height);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(panel.left + panel.clip[0], panel.bottom, panel.clip[1] - panel.clip[0], height);
    const { network } = this;
    stage.set('1i', { ...UNITS, samples, turned, skip: network.skip });
    stage.set('1f', { cells: CELLS, mean: network.mean, deviation: network.std, grain: look.grain });
    stage.set('2i', { corner: [panel.left, panel.bottom], size: [width, height] });
    stage.set('2f', { limits: look.limits, range: look.range, inverse: scales.map((r) => 1 / r) });
    stage.set('3f', { beyond: look.beyond });
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.disable(gl.SCISSOR_TEST);
  }

  // The same as numbers, black 0 and white 1: (height, width) Float32Array, top row first.
  values(shown, view, look) {
    const gl = this.gl;
    const { width, height } = view;
    const buffer = gl.createRenderbuffer();
    gl.bindRenderbuffer(gl.RENDERBUFFER, buffer);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.RGBA32F, width, height);
    const frame = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.RENDERBUFFER, buffer);
    const panel = { left: 0, bottom: 0, clip: [0, width] };
    this.draw(shown, view, panel, { ...look, range: [0, 1], beyond: [NaN, NaN, NaN] }, frame);
    const pixels = new Float32Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.FLOAT, pixels);
    gl.deleteFramebuffer(frame);
    gl.deleteRenderbuffer(buffer);
    return Float32Array.from({ length: width * height }, (_, k) => {
      const row = height - 1 - Math.floor(k / width);
      return pixels[4 * (row * width + (k % width)) + 3];
    });
  }

  // One value at a stored place (row, column), as the screen has it there.
  read(shown, place, view, look) {
    const [down, across] = [view.down, view.across].map((axis) => ({
      ...axis,
      from: place[axis.k] - axis.step / 2,
      length: 1,
    }));
    return this.values(shown, { ...view, down, across, width: 1, height: 1 }, look)[0];
  }

  has() {
    return true;
  }

  clear(colour) {
    this.gl.clearColor(...colour, 1);
    this.gl.clear(this.gl.COLOR_BUFFER_BIT);
  }

  // Wait until all is drawn.
  finish() {
    this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
  }

  // The predictor's numbers, split as runtime/phases.py does: hidden units see rows, columns and the scale.
  #unpack(numbers) {
    const { gl, network, predictor } = this;
    const { hidden: units, inputs, basis } = network;
    let end = 0;
    const part = (count) => numbers.subarray(end, (end += count));
    const [w1, b1, w2, b2] = [units * inputs, units, basis * units, basis].map(part);
    this.firstLayer = { w1, b1 };
    this.hidden = gl.createBuffer();
    this.weights = Array.from({ length: this.layers }, (_, layer) => {
      const four = new Float32Array(4 * (units + 1));
      for (let k = 4 * layer; k < Math.min(4 * layer + 4, basis); k++)
        for (let unit = 0; unit <= units; unit++) four[4 * unit + (k % 4)] = unit < units ? w2[k * units + unit] : b2[k];
      return this.#fill(gl.createBuffer(), four);
    });
    for (const [k, name] of ['Hidden', 'Weights'].entries())
      gl.uniformBlockBinding(predictor.program, gl.getUniformBlockIndex(predictor.program, name), k);
  }

  #fill(buffer, numbers) {
    this.gl.bindBuffer(this.gl.UNIFORM_BUFFER, buffer);
    this.gl.bufferData(this.gl.UNIFORM_BUFFER, numbers, this.gl.DYNAMIC_DRAW);
    return buffer;
  }

  // Fill the table of weights for scales of rows and columns, in canonical pixels.
  #predict(scales) {
    const { gl, network, firstLayer } = this;
    if (this.#scale === (this.#scale = scales.join())) return;
    const inverse = network.inputs === 4 ? scales.map((r) => 1 / r) : [1 / Math.sqrt(scales[0] * scales[1])];
    const parts = new Float32Array(4 * network.hidden);
    for (let unit = 0; unit < network.hidden; unit++) {
      const w = firstLayer.w1.subarray(unit * network.inputs, (unit + 1) * network.inputs);
      parts.set([w[0], w[1], inverse.reduce((sum, value, k) => sum + w[2 + k] * value, firstLayer.b1[unit])], 4 * unit);
    }
    gl.useProgram(this.predictor.program);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.frame);
    gl.viewport(0, 0, CELLS + 1, CELLS + 1);
    gl.bindBufferBase(gl.UNIFORM_BUFFER, 0, this.#fill(this.hidden, parts));
    this.predictor.set('1f', { cells: CELLS });
    for (let layer = 0; layer < this.layers; layer++) {
      gl.framebufferTextureLayer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, this.#textures[UNITS.table].texture, 0, layer);
      gl.bindBufferBase(gl.UNIFORM_BUFFER, 1, this.weights[layer]);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    }
  }

  #places({ across, down }, samples) {
    const gl = this.gl;
    const rows = [across, down].map((axis) => places(axis, axis.from, axis.step, axis.length, samples));
    const width = Math.max(...rows.map((row) => row.length / 4));
    this.#allocate(UNITS.places, gl.TEXTURE_2D, gl.RGBA32F, Math.max(width, this.#textures[UNITS.places]?.size[0] ?? 0), 2);
    rows.forEach((row, y) => gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, y, row.length / 4, 1, gl.RGBA, gl.FLOAT, row));
  }

  #image(unit, internal, format, type, pixels, [rows, cols]) {
    const gl = this.gl;
    this.#allocate(unit, gl.TEXTURE_2D, internal, cols, rows);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, cols, rows, format, type, pixels);
  }

  // Bind a unit's texture, and make it anew where its size changed.
  #allocate(unit, target, internal, ...size) {
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE0 + unit);
    const now = this.#textures[unit];
    if (now?.size.join() === size.join()) return gl.bindTexture(target, now.texture);
    gl.deleteTexture(now?.texture ?? null);
    const texture = gl.createTexture();
    this.#textures[unit] = { texture, size };
    gl.bindTexture(target, texture);
    if (size.length > 2) gl.texStorage3D(target, 1, internal, ...size);
    else gl.texStorage2D(target, 1, internal, ...size);
    this.#filter(target, gl.NEAREST);
  }

  #filter(target, filter) {
    const gl = this.gl;
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, name, filter);
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(target, name, gl.CLAMP_TO_EDGE);
  }

  #program(fragment) {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [type, source] of [
      [gl.VERTEX_SHADER, CORNERS],
      [gl.FRAGMENT_SHADER, fragment],
    ]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    const at = {};
    const set = (kind, values) => {
      for (const [name, value] of Object.entries(values))
        gl[`uniform${kind}v`]((at[name] ??= gl.getUniformLocation(program, name)), [value].flat().map(Number));
    };
    return { program, set };
  }
}
