/**
 * Keeps a page that the server has rendered up to date, and sends its form without loading it anew.
 *
 * It looks for one element with `data-live`, the address of the stream, and `data-after`, the place that the page leads
 * up to; and inside that, where `data-live-messages` must be and the others may:
 *
 *   data-live-messages   takes the HTML of messages and gaps
 *   data-live-people     takes the HTML of who is here
 *   data-live-count      gets how many that are: the `data-count` in that HTML, or else how many elements it has
 *   data-live-status     gets `data-state` (connecting, connected, waiting) and its words
 *   data-live-form       the form that sends: a text field `content` and a hidden `key`, and what its buttons are named;
 *                        it needs the next one too
 *   data-live-notice     shows why a message was refused: the same element of the page that answered the form
 *
 * What the stream brings is HTML that the server has escaped. Without this script the page works as it was loaded.
 */

const MESSAGE_LIMIT = 1_000;
/** Messages of one person stand together for so long; then the name is there again. */
const GROUP_MS = 5 * 60_000;
const LONGEST_WAIT_MS = 15_000;

const root = document.querySelector("[data-live]");
const part = (name) => root.querySelector(`[data-live-${name}]`);
const messages = part("messages");
const people = part("people");
const form = part("form");
const notice = part("notice");
const count = part("count");

const time24 = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const clock = new Intl.DateTimeFormat(undefined, time24);
const dated = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", ...time24 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

let place = root.dataset.after;
let wait = 1_000;
/** When the group of a message, which then has no name of its own, began. */
const began = new WeakMap();
/** The text that the form's key stands for, once it has been tried. */
let tried = null;

function connect() {
  const address = new URL(root.dataset.live, location.href);
  if (place) address.searchParams.set("after", place);
  const source = new EventSource(address);
  const on = (name, act) =>
    source.addEventListener(name, (event) => {
      if (event.lastEventId) place = event.lastEventId;
      act(event.data);
    });
  on("reset", (html) => {
    messages.innerHTML = html;
    dress();
  });
  on("message", append);
  on("gap", append);
  on("people", (html) => {
    if (!people) return;
    people.innerHTML = html;
    if (count) count.textContent = people.querySelector("[data-count]")?.dataset.count ?? people.children.length;
  });
  source.onopen = () => {
    wait = 1_000;
    status("connected", "Connected");
  };
  source.onerror = () => {
    status("waiting", "Reconnecting…");
    // The browser comes back by itself from a broken connection, but not from a refusal.
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(connect, wait);
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  };
}

function append(html) {
  messages.insertAdjacentHTML("beforeend", html);
  while (messages.children.length > MESSAGE_LIMIT) messages.firstElementChild.remove();
  messages.querySelector("[data-message-id]")?.classList.add("lead");
  dress();
}

/** Puts times into the reader's own zone, and what one person says in a row together. */
function dress() {
  for (const time of messages.querySelectorAll("time:not([title])")) {
    const at = new Date(time.dateTime);
    time.title = moment.format(at);
    const message = time.closest("[data-message-id]");
    const before = message.previousElementSibling;
    const since = before?.dataset.userId === message.dataset.userId ? began.get(before) : undefined;
    const together = at - since < GROUP_MS;
    began.set(message, together ? since : at);
    if (together) message.classList.remove("lead");
    const today = at.toDateString() === new Date().toDateString();
    time.textContent = (today || together ? clock : dated).format(at);
  }
}

function status(state, words) {
  const line = part("status");
  if (!line) return;
  line.dataset.state = state;
  line.textContent = words;
}

/** Another message gets another key; the same one, sent again after a failure, keeps its own and is there once. */
function renew(key) {
  const [base, count = "0"] = key.value.split(".");
  key.value = `${base}.${Number(count) + 1}`;
  tried = null;
}

/** Sends the form; `button` is the one that was pressed, whose name and value are sent along where it has any. */
async function send(button = null) {
  const { content, key } = form.elements;
  if (content.readOnly || (content.value.trim() === "" && !button?.name)) return;
  // What office programs paste as a line break is none to a server.
  const text = content.value.replace(/[\v\f\x85\u2028\u2029]/g, "\n");
  if (text !== content.value) content.value = text;
  if (tried !== null && tried !== content.value) renew(key);
  tried = content.value;
  content.readOnly = true;
  notice.replaceChildren();
  try {
    const body = new URLSearchParams(new FormData(form, button));
    const answer = await fetch(form.action, { method: "POST", body, redirect: "manual" });
    if (answer.type === "opaqueredirect") {
      if (!button?.name) content.value = "";
      renew(key);
      messages.parentElement.scrollTop = 0;
    } else {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const said = page.querySelector("[data-live-notice]");
      if (said) notice.replaceChildren(...said.childNodes);
      else notice.textContent = "The server did not take this. Load the page anew and try again.";
    }
  } catch {
    notice.textContent = "The server cannot be reached. Your text is still here; try again in a moment.";
  }
  content.readOnly = false;
  content.focus();
}

if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(event.submitter);
  });
  form.elements.content.addEventListener("keydown", (event) => {
    // While a word is being composed (Japanese, Chinese, ...), Enter belongs to the input method.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  });
}

status("connecting", "Connecting…");
dress();
connect();
