// Drawn schedules: connections that are cut, deaf or refused, answers that are lost, refusals, long absences, two
// pages with one storage, rooms that begin another epoch. `SEED=` plays one of them, `RUNS=` so many.
import assert from "node:assert/strict";
import { test } from "node:test";

import { World } from "./world.mjs";

const RUNS = Number(process.env.RUNS ?? 60);
const STEPS = 60;
const UNAVAILABLE = { code: "room_unavailable", reason: "rebuilt", retryable: true };
const LIMITED = { code: "rate_limited", reason: "slowly", retryable: true, retry_after_ms: 700 };
const REFUSALS = [LIMITED, { ...LIMITED, retry_after_ms: undefined }, UNAVAILABLE, { code: "blocked", reason: "no", retryable: false }];

function chances(seed) {
  let state = seed;
  const random = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return { random, upto: (most) => Math.floor(random() * most), pick: (from) => from[Math.floor(random() * from.length)] };
}

async function play(seed) {
  const world = new World();
  globalThis.reportError = (error) => world.reported.push(error);
  const { server, clock } = world;
  const { random, upto, pick } = chances(seed);
  server.room("a").kept = 100_000;
  server.most = pick([5, 100_000]);
  const history = pick([0, 3, 400]);
  const renews = pick([false, true]);
  const clients = ["ada", "bob"].map((name) => {
    const chat = world.chat({ random, params: { user_id: name }, fetch: pick([null, server.fetch]), storage: pick([undefined, world.storage]), name });
    const room = world.room({ history }, chat);
    room.join().catch(() => {});
    return { name, room, sends: [] };
  });
  await clock.settle();
  let number = 0;
  const steps = {
    send: () => {
      const { name, room, sends } = pick(clients);
      number += 1;
      const content = `${name} ${number}`;
      sends.push({ content, outcome: world.outcome(room.send(content)) });
    },
    say: () => server.say("a", `server ${(number += 1)}`),
    cut: () => server.cut(pick([1006, 1001, 1012, 1013, 4001])),
    deaf: () => [...server.sockets].forEach((socket) => random() < 0.5 && (socket.onmessage = () => {})),
    refuse: () => server.handshakeFaults.push(...Array(upto(6)).fill(pick(["refuse", "hang"]))),
    lose: () => server.fault("new_message", pick(["cut", "lose", "unanswered", "crash"])),
    deny: () => server.fault("new_message", pick(REFUSALS)),
    history: () => server.fault("history", pick(["cut", "unanswered", LIMITED])),
    join: () => server.fault("phx_join", pick(["cut", "unanswered", LIMITED])),
    fail: () => [...server.sockets].forEach((socket) => {
      const joinRef = socket.joins.get("a");
      socket.joins.delete("a");
      if (joinRef !== undefined) socket.give([joinRef, null, "room:a", "phx_error", {}]);
    }),
    anew: () => renews && (server.room("a").begin(`e${(number += 1)}`), random() < 0.5 && steps.fail()),
    wait: () => clock.advance(pick([10, 1_000, 40_000])),
    away: () => (server.handshakeFaults.push(...Array(40).fill("refuse")), clock.advance(400_000)),
  };
  const names = Object.keys(steps).flatMap((name) => Array({ send: 8, say: 5, wait: 6, away: 1, deaf: 1 }[name] ?? 2).fill(name));
  for (let step = 0; step < STEPS; step += 1) {
    await steps[pick(names)]();
    await clock.advance(upto(300));
  }
  server.handshakeFaults.length = 0;
  server.faults.clear();
  await clock.advance(300_000);
  server.say("a", "the last");
  await clock.advance(300_000);

  const { said: messages } = server.room("a");
  const at = (place) => messages.find(({ epoch, offset }) => epoch === place.epoch && offset === place.offset);
  const times = (content) => messages.filter((message) => message.content === content).length;
  for (const { name, room, sends } of clients) {
    assert.equal(room.state, "joined");
    assert.deepEqual(room.pending, []);
    for (const { content, outcome } of sends) {
      const allowed = { ok: [1], unknown: [0, 1] }[outcome.is] ?? [0];
      assert.ok(allowed.includes(times(content)), `${content}: ${outcome.is}, and there ${times(content)} times`);
      if (outcome.is === "ok") assert.equal(at(outcome.sent).content, content);
    }
    const own = messages.map(({ content }) => content).filter((content) => content.startsWith(name));
    assert.deepEqual(own, sends.map(({ content }) => content).filter((content) => own.includes(content)));
    let place = null;
    for (const [event, { epoch, offset, missed, content }] of room.events.filter(([each]) => each === "message" || each === "gap")) {
      if (place?.epoch === epoch) assert.equal(offset, place.offset + (event === "gap" ? missed : 1), `${name}: ${event} ${content}`);
      if (event === "message") assert.equal(content, at({ epoch, offset }).content);
      place = { epoch, offset };
    }
    assert.deepEqual(at(place), messages.at(-1));
  }
  assert.deepEqual(world.reported, []);
  world.end();
}

test("what was drawn loses, doubles and reorders nothing, and every send has its outcome", async () => {
  const seeds = process.env.SEED ? [Number(process.env.SEED)] : Array.from({ length: RUNS }, () => Math.floor(Math.random() * 2 ** 31));
  for (const seed of seeds)
    await play(seed).catch((error) => {
      throw new Error(`SEED=${seed}: ${error.message}`, { cause: error });
    });
});
