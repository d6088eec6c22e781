/**
 * The nodes above the room: who is there, who serves this page, who owns the room; the button that kills the owner; and
 * the line that counts what became of the messages meanwhile.
 */

import { element } from "/static/log.js";
import { watch } from "/static/main.js";
import { Tally } from "/static/tally.js";

const LOOK_MS = 500;
/** Between two numbers; half of what the room's rate limit lets one person say. */
const NUMBER_MS = 200;
/** Numbers are sent for so long before a kill, and so long after all nodes are there again. */
const BEFORE_MS = 1_000;
const AFTER_MS = 3_000;

const byId = (id) => document.getElementById(id);
const page = randomText();
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let entrance = null;
/** Whether the room was joined, so that what comes is counted. */
let begun = false;
let tally = new Tally();
let ownBoot = "";
let seen = null;
/** Numbers are sent until then, in ms since the epoch; Infinity while a node that was killed is not back. */
let countsUntil = 0;
let counting = false;
let killed = "";
let lastOwner = null;

watch({
  entered(entered) {
    entrance = entered;
    begun = false;
    tally = new Tally();
    lastOwner = null;
    byId("node-news").textContent = "";
    byId("kill").disabled = false;
    draw();
  },
  left() {
    entrance = null;
    countsUntil = 0;
  },
  status({ state }) {
    if (state !== "connected") ownBoot = "";
    else if (!begun) {
      begun = true;
      tally.joined(entrance.room.place);
    }
    draw();
  },
  gap(gap) {
    if (!begun) return;
    const { epochs } = tally;
    tally.joined(gap);
    if (tally.epochs > epochs) say("The room began anew: its owner took what only it had along.");
    draw();
  },
  message(message) {
    if (!begun) return; // what was said before is not counted
    tally.received(message, message.data?.page === page ? message.data.number : undefined);
    drawTally();
  },
  presence(members) {
    ownBoot ||= newestBoot(members.get(entrance.name) ?? []);
    draw();
  },
  acknowledged(ack) {
    tally.sent += 1;
    tally.answered(ack, 0);
    drawTally();
  },
});

byId("kill").addEventListener("click", async () => {
  byId("kill").disabled = true;
  count(Infinity);
  await wait(BEFORE_MS);
  try {
    const room = encodeURIComponent(entrance?.roomId ?? "");
    const response = await fetch(`/nodes/kill?room=${room}`, { method: "POST", headers: { "x-chatx-demo": "kill" } });
    const answer = await response.json();
    if (response.ok) killed = answer.killed;
    say(response.ok ? `${killed} owned the room and was killed.` : answer.reason);
    if (!response.ok) settled();
  } catch {
    // The node that was asked may have been the one that was killed.
    killed = seen?.owner ?? "";
    say(`${killed} owned the room, served this page and was killed.`);
  }
  draw();
});

look();

/** Looks at the nodes, again and again, while somebody is in a room. */
async function look() {
  for (;;) {
    if (entrance !== null && !document.hidden) {
      try {
        const response = await fetch(`/nodes?room=${encodeURIComponent(entrance.roomId)}`, { cache: "no-store" });
        if (response.ok) looked(await response.json());
      } catch {
        // The next look is answered by another node.
      }
    }
    await wait(LOOK_MS);
  }
}

function looked(now) {
  const before = seen;
  seen = now;
  if (now.owner !== null && now.owner !== lastOwner) {
    if (lastOwner !== null) say(`${now.owner} owns the room now.`);
    lastOwner = now.owner;
  }
  if (killed !== "") {
    const old = before?.nodes.find(({ name }) => name === killed);
    const node = now.nodes.find(({ name }) => name === killed);
    if (node?.state === "up" && old !== undefined && (old.state !== "up" || old.boot !== node.boot)) {
      say(`${killed} is back.${now.owner === killed ? " It owns the room again." : ""}`);
      settled();
    }
  }
  draw();
}

function settled() {
  killed = "";
  countsUntil = Date.now() + AFTER_MS;
  byId("kill").disabled = entrance === null;
}

/** Sends a number after the other, each until it is acknowledged, until the time is over. */
async function count(until) {
  countsUntil = until;
  if (counting) return;
  counting = true;
  while (entrance !== null && Date.now() < countsUntil) {
    tally.sent += 1;
    drawTally();
    await sendNumber(tally.sent, entrance, tally);
    drawTally();
    await wait(NUMBER_MS);
  }
  counting = false;
}

async function sendNumber(number, into, counted) {
  const began = performance.now();
  try {
    const sent = await into.room.send(String(number), { data: { number, page } });
    counted.answered(sent, performance.now() - began);
  } catch (error) {
    say(`A number was not acknowledged: ${error.reason}`);
  }
}

function draw() {
  const nodes = seen?.nodes ?? [];
  byId("nodes").replaceChildren(...nodes.map(drawn));
  drawTally();
}

function drawn({ name, boot, state }) {
  const item = element("li", "node");
  item.dataset.node = name;
  item.dataset.state = state;
  const label = element("span", "node-name");
  label.textContent = name;
  item.append(label);
  const said = [];
  if (name === killed) said.push("killed");
  if (state !== "up") said.push(state);
  if (boot === ownBoot) said.push("serves this page");
  if (name === seen.owner) said.push("owns the room");
  if (said.length > 0) item.append(` ${said.join(", ")}`);
  return item;
}

function drawTally() {
  const figures = [
    ["sent", tally.sent],
    ["acknowledged", tally.acknowledged],
    ["seen", tally.seen],
    ["lost", tally.lost],
    ["doubled", tally.doubled],
  ];
  const parts = figures.map(([name, value]) => {
    const part = element("span", "figure");
    part.dataset.figure = name;
    part.dataset.value = String(value);
    part.textContent = `${name} ${value}`;
    return part;
  });
  if (tally.longestMs > 0) {
    const part = element("span", "figure");
    part.textContent = `longest wait ${(tally.longestMs / 1_000).toFixed(2)} s`;
    parts.push(part);
  }
  byId("tally").replaceChildren(...parts.flatMap((part, index) => (index === 0 ? [part] : [" · ", part])));
}

function say(words) {
  byId("node-news").textContent = words;
}

/** The node of the newest membership: of several pages under one name, this one joined last when its state came. */
function newestBoot(metas) {
  const [newest] = [...metas].sort((a, b) => b.online_at - a.online_at);
  return newest?.phx_ref.split(".")[0] ?? "";
}

function randomText() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
