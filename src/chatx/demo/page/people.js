/**
 * Who is here: Phoenix presence, folded from one `presence_state` and the `presence_diff`s after it.
 *
 * A person is here while they hold at least one meta. Metas are told apart by `phx_ref` alone, so a diff that is seen
 * twice, or that the state already contains, changes nothing.
 */

export class People {
  #metas = new Map();
  #early = [];
  #known = false;

  /** A rejoin begins anew: the next state replaces what is known, and diffs wait for it. */
  expectState() {
    this.#known = false;
    this.#early = [];
  }

  state(state) {
    this.#metas = new Map();
    this.#add(state);
    this.#known = true;
    for (const diff of this.#early) this.#apply(diff);
    this.#early = [];
  }

  diff(diff) {
    if (this.#known) this.#apply(diff);
    else this.#early.push(diff);
  }

  /** User ids by name, `first` before all others. */
  sorted(first) {
    const collator = new Intl.Collator();
    return [...this.#metas.keys()].sort((a, b) => (b === first) - (a === first) || collator.compare(a, b));
  }

  #apply({ joins, leaves }) {
    this.#add(joins);
    for (const [user, { metas }] of Object.entries(leaves ?? {})) {
      const held = this.#metas.get(user);
      if (held === undefined) continue;
      for (const meta of metas) held.delete(meta.phx_ref);
      if (held.size === 0) this.#metas.delete(user);
    }
  }

  #add(entries) {
    for (const [user, { metas }] of Object.entries(entries ?? {})) {
      const held = this.#metas.get(user) ?? new Set();
      for (const meta of metas) held.add(meta.phx_ref);
      this.#metas.set(user, held);
    }
  }
}
