// Fetches slices one after another, the most wanted first, and keeps the latest up to a number of bytes.

export class Loader {
  #kept = new Map();
  #wanted = [];
  #busy = false;

  constructor(name, bytes, parse, changed) {
    Object.assign(this, { name, bytes, parse, changed, problem: '' });
  }

  get(key) {
    return this.#kept.get(key);
  }

  // What is needed now, in the order of need; what was wanted before is forgotten.
  want(keys) {
    this.#wanted = keys;
    for (const key of [...keys].reverse().filter((key) => this.#kept.has(key))) this.#keep(key, this.#kept.get(key));
    this.#next();
  }

  async #next() {
    const key = this.#wanted.find((key) => !this.#kept.has(key));
    if (this.#busy || key === undefined) return;
    this.#busy = true;
    try {
      const answer = await fetch(`${this.name}?${key}`);
      if (!answer.ok) throw new Error((await answer.text()) || 'the viewer was ended, or its address has changed');
      this.#keep(key, this.parse(key, await answer.arrayBuffer(), JSON.parse(answer.headers.get('Told') ?? '{}')));
      this.problem = '';
    } catch (error) {
      this.problem = error instanceof TypeError ? 'the viewer was ended: start it again' : error.message;
      this.#wanted = [];
    }
    this.#busy = false;
    this.changed();
    this.#next();
  }

  #keep(key, value) {
    this.#kept.delete(key);
    this.#kept.set(key, value);
    let bytes = [...this.#kept.values()].reduce((sum, value) => sum + value.bytes, 0);
    for (const [old, { bytes: size }] of this.#kept) {
      if (bytes <= this.bytes || old === key) break;
      this.#kept.delete(old);
      bytes -= size;
    }
  }
}
