// A clock that a test turns: it stands for the timers, the date and `performance.now` of the whole process.
const realImmediate = globalThis.setImmediate;

export class Clock {
  now = Date.UTC(2026, 0, 1);
  /** How far the date is set wrong, in milliseconds; the other clocks do not know. */
  wrong = 0;
  #timers = new Map();
  #last = 0;

  install() {
    const start = this.now;
    globalThis.setTimeout = (act, ms = 0) => this.#add(act, ms, null);
    globalThis.setInterval = (act, ms) => this.#add(act, ms, ms);
    globalThis.clearTimeout = globalThis.clearInterval = (id) => this.#timers.delete(id);
    Date.now = () => this.now + this.wrong;
    performance.now = () => this.now - start;
    return this;
  }

  #add(act, ms, every) {
    this.#last += 1;
    this.#timers.set(this.#last, { act, at: this.now + Math.ceil(Math.max(0, Number(ms) || 0)), every });
    return this.#last;
  }

  /** Lets whatever needs no time happen. */
  async settle() {
    for (let turn = 0; turn < 8; turn += 1) await new Promise((resolve) => realImmediate(resolve));
  }

  /** How many milliseconds there are until the next timer, or null. */
  get next() {
    const due = [...this.#timers.values()].map(({ at }) => at);
    return due.length === 0 ? null : Math.min(...due) - this.now;
  }

  /** Lets time pass, and every timer that is due in it act. */
  async advance(ms) {
    const end = this.now + ms;
    await this.settle();
    for (;;) {
      const [first] = [...this.#timers].sort(([a, x], [b, y]) => x.at - y.at || a - b);
      if (first === undefined || first[1].at > end) break;
      const [id, timer] = first;
      this.now = Math.max(this.now, timer.at);
      if (timer.every === null) this.#timers.delete(id);
      else timer.at += timer.every;
      timer.act();
      await this.settle();
    }
    this.now = end;
    await this.settle();
  }
}
