/**
 * What has become of the messages of one page's room, by what the page itself has seen.
 *
 * - A place `(epoch, offset)` that the stream has passed and that was not seen is lost, whoever's it was. So is one that
 *   was acknowledged to this page in an epoch that is over, and was not seen.
 * - A message seen twice is doubled, and so is a number of this page that has two places.
 */

/** Places and ids that are remembered; the oldest are forgotten first. */
const REMEMBERED = 20_000;
/** Places of one hole that are remembered, to be taken off where they come after all. */
const HOLE_PLACES = 1_000;

export class Tally {
  sent = 0;
  acknowledged = 0;
  seen = 0;
  doubled = 0;
  /** Streams that have begun anew since the page came in. */
  epochs = 0;
  /** The longest wait for an acknowledgement, in ms. */
  longestMs = 0;

  #cursor = null;
  #awaited = new Map();
  #seenIds = new Set();
  #numbers = new Map();
  #lost = new Set();
  #lostBeyond = 0;

  get lost() {
    return this.#lost.size + this.#lostBeyond;
  }

  /** The room was joined, or joined again. */
  joined({ epoch, offset, recovered }) {
    const before = this.#cursor;
    if (before !== null && recovered === true) return;
    this.#cursor = { epoch, offset };
    if (before === null) return;
    if (before.epoch === epoch) this.#hole(epoch, before.offset + 1, offset);
    else this.#epochEnds();
  }

  /** A message of this page was acknowledged, `waitedMs` after it was sent first. */
  answered({ id, epoch, offset }, waitedMs) {
    this.acknowledged += 1;
    this.longestMs = Math.max(this.longestMs, waitedMs);
    if (this.#seenIds.has(id)) return;
    if (this.#cursor !== null && this.#cursor.epoch === epoch && offset <= this.#cursor.offset) {
      this.#lost.add(place(epoch, offset));
    } else {
      remember(this.#awaited, id, { epoch, offset });
    }
  }

  /** A message came live. `number` is what this page sent it as, or undefined. */
  received({ id, epoch, offset }, number) {
    if (this.#seenIds.has(id)) {
      this.doubled += 1;
      return;
    }
    this.#seenIds.add(id);
    if (this.#seenIds.size > REMEMBERED) this.#seenIds.delete(this.#seenIds.values().next().value);
    this.seen += 1;
    this.#awaited.delete(id);
    if (number !== undefined) {
      if (this.#numbers.has(number)) this.doubled += 1;
      remember(this.#numbers, number, id);
    }
    const before = this.#cursor;
    if (before !== null && before.epoch === epoch && offset <= before.offset) {
      this.#lost.delete(place(epoch, offset)); // late, and not lost after all
      return;
    }
    this.#cursor = { epoch, offset };
    if (before === null) return;
    if (before.epoch === epoch) this.#hole(epoch, before.offset + 1, offset - 1);
    else this.#epochEnds();
  }

  #hole(epoch, first, last) {
    const remembered = Math.min(last, first + HOLE_PLACES - 1);
    for (let offset = first; offset <= remembered; offset += 1) this.#lost.add(place(epoch, offset));
    this.#lostBeyond += Math.max(0, last - remembered);
  }

  #epochEnds() {
    this.epochs += 1;
    for (const [id, { epoch, offset }] of this.#awaited) {
      if (epoch === this.#cursor.epoch) continue;
      this.#lost.add(place(epoch, offset));
      this.#awaited.delete(id);
    }
  }
}

function place(epoch, offset) {
  return `${epoch}/${offset}`;
}

function remember(map, key, value) {
  map.set(key, value);
  if (map.size > REMEMBERED) map.delete(map.keys().next().value);
}
