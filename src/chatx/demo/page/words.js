/** What the page says to a person: the words for refusals and for the state of the connection. */

export const CONTENT_LIMIT_BYTES = 4096;
const ID_LIMIT_BYTES = 128;
/** The counter appears when this share of the limit is used. */
const COUNTER_FROM = 0.8;

/** What the demo's moderation refuses. */
export const SHOUT = "WHY IS NOBODY ANSWERING?";
/** More at once than the rate limit lets through. */
export const FLOOD = Array.from({ length: 30 }, (_, index) => `A flood of messages, ${index + 1} of 30`);

const number = new Intl.NumberFormat("en");
const encoder = new TextEncoder();

export function byteLength(text) {
  return encoder.encode(text).length;
}

/** The counter under the composer: `{text, over}`, the text empty while the limit is far. */
export function counterWords(text) {
  // A character takes at most three bytes per UTF-16 unit, so short texts need no encoding.
  if (text.length * 3 < CONTENT_LIMIT_BYTES * COUNTER_FROM) return { text: "", over: false };
  const left = CONTENT_LIMIT_BYTES - byteLength(text);
  if (left > CONTENT_LIMIT_BYTES * (1 - COUNTER_FROM)) return { text: "", over: false };
  if (left >= 0) return { text: `${plural(left, "byte")} left`, over: false };
  return { text: `${plural(-left, "byte")} too long`, over: true };
}

/** The text with a newline for each other line break that may be pasted; those of office programs are refused. */
export function oneKindOfLineBreak(text) {
  return text.replace(/\r\n|[\v\f\r\x85\u2028\u2029]/g, "\n");
}

export function plural(count, word) {
  return `${number.format(count)} ${word}${count === 1 ? "" : "s"}`;
}

/** What is wrong with a name or a room as typed, or the empty text. `what` is how the page calls it. */
export function idProblem(id, what) {
  if (id === "") return `Please choose ${what}.`;
  if (byteLength(id) > ID_LIMIT_BYTES) return `This is too long. Please use at most ${ID_LIMIT_BYTES} bytes.`;
  // Joiners within words and emoji, and the tags of flags, are the server's to judge.
  const judged = id
    .replace(/([\p{L}\p{M}\p{S}])[\u200c\u200d]/gu, "$1")
    .replace(/\u{1f3f4}[\u{e0030}-\u{e007a}]+\u{e007f}/gu, "");
  if (/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0]/u.test(judged))
    return "This contains an invisible character. Please type it anew.";
  return "";
}

/** Why a message was not accepted, in a sentence or two; the server's own reason where it knows more. */
export function refusalWords({ code, reason }, text) {
  switch (code) {
    case "rate_limited":
      return "You are sending faster than this room allows.";
    case "room_overloaded":
      return "The room is very busy right now.";
    case "room_unavailable":
      return "The room had a problem and is coming back.";
    case "message_too_large":
      return `This message is too long (${plural(byteLength(text), "byte")}). Please shorten it.`;
    case "blocked":
      return withReason("This message was not let through by the room’s moderation.", reason);
    case "unauthorized":
      return withReason("You are not allowed to write in this room.", reason);
    case "invalid_message":
      return withReason("This message cannot be sent as it is.", reason);
    case "adapter_error":
      return "The server could not check this message, so it was not sent.";
    case "closed":
      return "The server is shutting down.";
    case "outbox_full":
      return "Too many messages wait to be sent.";
    case "expired":
      return "This has waited for too long, and was not sent.";
    case "unknown":
      return "The connection broke while this was being sent; it may or may not have arrived.";
    default:
      return withReason("The server did not accept this message.", reason);
  }
}

/** The state of the connection: `{text, counting}`; `counting` says that the time to the next attempt follows. */
export function statusWords({ state, error, at }) {
  const counting = at !== null;
  switch (state) {
    case "connected":
      return { text: "Connected", counting };
    case "waiting":
      return { text: "Reconnecting", counting };
    case "offline":
      return { text: "You are offline. Trying again", counting };
    case "refused":
      return { text: "Refused by the server. Trying again", counting };
    case "denied":
      return { text: denialWords(error) + (counting ? " Trying again" : ""), counting };
    case "ended":
      return { text: "The server ended this connection.", counting };
    default:
      return { text: "Connecting…", counting };
  }
}

/** Why the room did not let us in. */
export function denialWords({ code, reason }) {
  if (code === "unauthorized") return "You are not allowed in this room.";
  return withReason("The room did not let you in.", reason);
}

function withReason(sentence, reason) {
  if (reason === "") return sentence;
  const shown = reason.charAt(0).toUpperCase() + reason.slice(1);
  return `${sentence} ${/[.!?…]$/.test(shown) ? shown : `${shown}.`}`;
}
