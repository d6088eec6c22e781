// What becomes of a send: it is in the room once, in order, or its caller hears that it is not, or that nobody knows.
import assert from "node:assert/strict";

import { LIMITED, REFUSED, chatTest } from "./world.mjs";

const said = (server) => server.room("a").messages.map(({ content }) => content);
const keysOf = (server) => server.of("new_message").map((frame) => frame[4].key);
const UNAVAILABLE = { code: "room_unavailable", reason: "rebuilt", retryable: true, retry_after_ms: 1_000 };

chatTest("a send resolves with its place, and waits for the join before", async (world) => {
  const { server, clock } = world;
  const room = world.room();
  const early = world.outcome(room.send("early", { data: { a: [1] } }));
  await clock.advance(1000);
  assert.deepEqual([early.is, server.frames], ["waits", []]);
  await room.join();
  await clock.settle();
  const { key, inserted_at, ...rest } = early.sent;
  assert.deepEqual(rest, { id: "e1-1", room_id: "a", content: "early", data: { a: [1] }, epoch: "e1", offset: 1 });
  assert.deepEqual([keysOf(server), inserted_at > 0, room.pending], [[key], true, []]);
});

for (const fault of ["cut", "lose"])
  chatTest(`a send whose answer is lost goes again under its key, and what is behind it keeps its place: ${fault}`, async (world) => {
    const { server, clock } = world;
    server.fault("new_message", fault);
    const room = await world.joined();
    const sends = ["one", "two", "three"].map((content) => world.outcome(room.send(content)));
    await clock.advance(2000);
    assert.deepEqual(sends.map(({ is }) => is), ["ok", "ok", "ok"]);
    assert.deepEqual([said(server), room.told()], [["one", "two", "three"], ["one", "two", "three"]]);
    const [first, again] = keysOf(server);
    assert.equal(first, again);
    assert.equal(new Set(keysOf(server)).size, 3);
    assert.equal(sends[0].sent.duplicate, fault === "cut" ? true : undefined);
  });

chatTest("what is refused for a while waits for as long, with all that is behind it; what is refused for good rejects", async (world) => {
  const { server, clock } = world;
  server.fault("new_message", LIMITED, REFUSED);
  const room = await world.joined();
  const sends = ["one", "two"].map((content) => world.outcome(room.send(content)));
  await clock.advance(4999);
  assert.deepEqual([sends.map(({ is }) => is), server.of("new_message").length], [["waits", "waits"], 1]);
  assert.deepEqual(room.all("held").map(([{ code, retryAfter }, { content }]) => [code, retryAfter, content]), [["rate_limited", 5, "one"]]);
  await clock.advance(1);
  assert.deepEqual(sends.map(({ is }) => is), ["blocked", "ok"]);
  assert.deepEqual([sends[0].error.reason, sends[0].error.retryAfter], ["not that", null]);
  assert.deepEqual(said(server), ["two"]);
});

chatTest("a refusal that names no time is waited for longer each time", async (world) => {
  const { server, clock } = world;
  const { retry_after_ms, ...timeless } = LIMITED;
  server.fault("new_message", timeless, timeless, timeless);
  const room = await world.joined();
  const send = world.outcome(room.send("one"));
  const at = [];
  for (let ms = 0; ms < 6000 && send.is === "waits"; ms += 100) {
    const before = server.of("new_message").length;
    await clock.advance(100);
    if (server.of("new_message").length > before) at.push(ms);
  }
  assert.deepEqual([send.is, at.length], ["ok", 3]);
  assert.ok(at[1] - at[0] > at[0] && at[2] - at[1] > at[1] - at[0], `${at}`);
});

chatTest("a room that the server does not know any more is joined anew, and the send goes then", async (world) => {
  const { server, clock } = world;
  server.fault("new_message", { code: "unmatched_topic", reason: "unmatched topic", retryable: false });
  const room = await world.joined();
  const send = world.outcome(room.send("one"));
  await clock.advance(1000);
  assert.deepEqual([send.is, server.of("phx_join").length, said(server)], ["ok", 2, ["one"]]);
});

chatTest("more than the bounds is refused at once, and there is room again when something went", async (world) => {
  const { server, clock } = world;
  const room = await world.joined({}, world.chat({ outbox: { messages: 2, bytes: 100 } }));
  server.fault("new_message", LIMITED);
  const sends = ["one", "two", "three"].map((content) => world.outcome(room.send(content)));
  await clock.settle();
  assert.deepEqual(sends.map(({ is }) => is), ["waits", "waits", "outbox_full"]);
  assert.match(sends[2].error.reason, /2 messages/);
  await clock.advance(5000);
  assert.equal(world.outcome(room.send("four")).is, "waits");
  const large = world.outcome(room.send("x".repeat(80)));
  await clock.settle();
  assert.deepEqual([large.is, large.error.retryable], ["outbox_full", true]);
  assert.match(large.error.reason, /100 bytes/);
});

chatTest("what can be no message is refused before it waits", async (world) => {
  const room = await world.joined();
  const circle = {};
  circle.circle = circle;
  for (const [content, data, code] of [[5, undefined, "invalid_message"], ["", circle, "invalid_message"], ["é".repeat(33_000), undefined, "message_too_large"]])
    await assert.rejects(room.send(content, { data }), { code });
  assert.deepEqual(room.pending, []);
});

chatTest("what waits for too long is expired, or unknown where an attempt was not answered", async (world) => {
  const { server, clock } = world;
  const room = await world.joined({}, world.chat({ outbox: { ageMs: 60_000 } }));
  server.fault("new_message", "lose");
  server.handshakeFaults = Array(50).fill("refuse");
  const sends = ["one", "two"].map((content) => world.outcome(room.send(content)));
  await clock.advance(59_999);
  assert.deepEqual(sends.map(({ is }) => is), ["waits", "waits"]);
  await clock.advance(1);
  assert.deepEqual(sends.map(({ is }) => is), ["unknown", "expired"]);
});

chatTest("a send is not repeated once the server may have forgotten its key", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  server.fault("new_message", "cut");
  server.handshakeFaults = Array(400).fill("refuse");
  const sends = ["one", "two"].map((content) => world.outcome(room.send(content)));
  await clock.advance(400_000);
  assert.deepEqual(sends.map(({ is }) => is), ["waits", "waits"]);
  server.handshakeFaults = [];
  await clock.advance(30_000);
  assert.deepEqual(sends.map(({ is }) => is), ["unknown", "ok"]);
  assert.deepEqual([said(server), room.told()], [["one", "two"], ["one", "two"]]);
});

chatTest("a date that is set back makes no key younger", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  server.fault("new_message", "cut");
  server.handshakeFaults = Array(400).fill("refuse");
  const send = world.outcome(room.send("one"));
  await clock.advance(400_000);
  clock.wrong = -399_000;
  server.handshakeFaults = [];
  await clock.advance(31_000);
  clock.wrong = 0;
  assert.deepEqual([send.is, said(server)], ["unknown", ["one"]]);
});

chatTest("what came meanwhile says that it was sent, where it is this user's own", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  await room.send("first");
  server.fault("new_message", "cut");
  server.handshakeFaults = Array(400).fill("refuse");
  const send = world.outcome(room.send("one"));
  await clock.settle();
  server.say("a", "one", "somebody else");
  await clock.advance(400_000);
  server.handshakeFaults = [];
  await clock.advance(30_000);
  assert.deepEqual([send.is, send.sent.offset], ["ok", 2]);
  assert.deepEqual(said(server), ["first", "one", "one"]);
});

chatTest("a send is unknown in another stream, where its key is not, and one that was never made goes there", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  server.fault("new_message", "cut");
  const sends = ["one", "two"].map((content) => world.outcome(room.send(content)));
  await clock.settle();
  server.room("a").begin("e2");
  await clock.advance(1000);
  assert.deepEqual([sends.map(({ is }) => is), said(server)], [["unknown", "ok"], ["two"]]);
});

chatTest("what may be there goes again in its epoch only, also where nobody has told of another one; what surely is not goes anywhere", async (world) => {
  const { server, clock } = world;
  for (const [refusal, epoch, outcome] of [[UNAVAILABLE, "e1", "unknown"], [LIMITED, undefined, "ok"]]) {
    server.frames = [];
    server.room("a").begin("e1");
    const room = await world.joined();
    server.fault("new_message", refusal);
    const sends = ["one", "two"].map((content) => world.outcome(room.send(content)));
    await clock.settle();
    server.room("a").begin("e2");
    await clock.advance(6_000);
    assert.deepEqual([sends.map(({ is }) => is), server.of("phx_join").length > 1], [[outcome, "ok"], true]);
    assert.deepEqual(server.of("new_message").slice(0, 2).map((frame) => frame[4].epoch), [undefined, epoch]);
    room.leave();
  }
});

chatTest("a server that knows a key of another epoch says what became of the send, also to the next page", async (world) => {
  const { server, clock, storage } = world;
  for (const [keeps, heard] of [[true, "sent"], [false, "failed"]]) {
    server.room("a").begin("e1");
    const before = await world.joined({}, world.chat({ storage }));
    server.fault("new_message", "hold");
    before.send("one").catch(() => {});
    await clock.settle();
    const kept = new Map(storage.items);
    world.end();
    storage.items = kept;
    const keys = new Map(server.room("a").keys);
    server.room("a").begin("e2");
    if (keeps) server.room("a").keys = keys;
    const room = await world.joined({}, world.chat({ storage }));
    await clock.settle();
    assert.deepEqual(room.events.map(([name]) => name).filter((name) => name === "sent" || name === "failed"), [heard]);
    assert.deepEqual([said(server), server.of("new_message").at(-1)[4].epoch], [[], "e1"]);
  }
});

chatTest("a room that failed while it had the message leaves its outcome open, any other refusal does not", async (world) => {
  const { server, clock } = world;
  for (const [refusal, outcome] of [[UNAVAILABLE, "unknown"], [LIMITED, "ok"]]) {
    const room = world.room();
    await room.join();
    server.fault("new_message", refusal);
    const send = world.outcome(room.send("one"));
    await clock.settle();
    server.handshakeFaults = Array(400).fill("refuse");
    server.cut();
    await clock.advance(400_000);
    server.handshakeFaults = [];
    await clock.advance(31_000);
    assert.equal(send.is, outcome);
    room.leave();
  }
});

chatTest("a refusal of a later attempt says nothing of the one before it", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  server.fault("new_message", "cut", { ...LIMITED, retry_after_ms: 310_000 });
  const send = world.outcome(room.send("one"));
  await clock.advance(400_000);
  assert.deepEqual([send.is, said(server)], ["unknown", ["one"]]);
});

chatTest("leaving and closing reject what waits, and what may have been sent is unknown", async (world) => {
  const { server, clock } = world;
  for (const [end, code] of [[(room) => room.leave(), "left"], [(room, chat) => chat.close(), "closed"]]) {
    const chat = world.chat({ storage: world.storage });
    const room = await world.joined({}, chat);
    server.fault("new_message", "hold");
    const sends = ["one", "two"].map((content) => world.outcome(room.send(content)));
    await clock.settle();
    end(room, chat);
    await clock.settle();
    assert.deepEqual(sends.map(({ is }) => is), ["unknown", code]);
    await assert.rejects(room.send("three"), { code });
    assert.deepEqual([room.pending, world.storage.length], [[], 0]);
  }
});

chatTest("what waited when the page went is sent by the next one, in order and under its key", async (world) => {
  const { server, clock, storage } = world;
  server.handshakeFaults = ["refuse"];
  const before = world.room({}, world.chat({ storage }));
  before.join().catch(() => {});
  for (const content of ["one", "two"]) before.send(content).catch(() => {});
  await clock.settle();
  const kept = new Map(storage.items); // as a page leaves it that just goes
  world.end();
  storage.items = kept;
  storage.items.set("somebody's", "own");
  storage.items.set([...kept.keys()][0] + "x", "{");

  const chat = world.chat({ storage });
  assert.deepEqual(chat.unsent, ["a"]);
  const room = world.room({}, chat);
  const keys = room.pending.map(({ key }) => key);
  const joined = room.join();
  const third = world.outcome(room.send("three"));
  await joined;
  await clock.settle();
  assert.deepEqual([said(server), keysOf(server).slice(0, 2)], [["one", "two", "three"], keys]);
  assert.deepEqual(room.all("sent").map(([{ content, key }]) => [content, key]), [["one", keys[0]], ["two", keys[1]]]);
  assert.deepEqual([third.is, chat.unsent, storage.length], ["ok", [], 2]);
});

chatTest("an attempt of an earlier page counts: what may have been sent is not sent again too late", async (world) => {
  const { server, clock, storage } = world;
  const before = await world.joined({}, world.chat({ storage }));
  server.fault("new_message", "hold");
  before.send("one").catch(() => {});
  await clock.settle();
  const kept = new Map(storage.items);
  world.end();
  for (const [wait, heard] of [[1_000, "sent"], [300_000, "failed"]]) {
    storage.items = new Map(kept);
    await clock.advance(wait);
    const room = await world.joined({}, world.chat({ storage }));
    await clock.settle();
    assert.deepEqual(room.events.filter(([name]) => name === "sent" || name === "failed").map(([name]) => name), [heard]);
    if (heard === "failed") assert.deepEqual(room.all("failed").map(([{ code }, { content }]) => [code, content]), [["unknown", "one"]]);
  }
  assert.deepEqual(said(server), ["one"]);
});

chatTest("two pages with one storage send once, and a full one refuses", async (world) => {
  const { server, clock, storage } = world;
  const rooms = [world.room({}, world.chat({ storage }))];
  rooms[0].send("one").catch(() => {});
  rooms.push(world.room({}, world.chat({ storage })));
  for (const room of rooms) {
    await room.join();
    await clock.advance(400_000);
  }
  assert.deepEqual([said(server), rooms[1].pending, rooms[1].all("failed")], [["one"], [], []]);
  // The page that has the promise comes last: whoever has sent it has told it, and here nobody knows.
  const first = world.room({}, world.chat({ storage }));
  const send = world.outcome(first.send("two"));
  await world.joined({}, world.chat({ storage }));
  await clock.advance(400_000);
  await first.join();
  await clock.settle();
  assert.deepEqual([send.is, said(server)], ["unknown", ["one", "two"]]);
  storage.full = true;
  await assert.rejects(rooms[0].send("three"), { code: "outbox_full" });
  assert.deepEqual([world.chat({ storage, name: "bob" }).unsent, first.pending, server.of("new_message").length], [[], [], 2]);
});

chatTest("a bound that is none is refused where it is given", async (world) => {
  for (const outbox of [{ messages: 0 }, { bytes: -1 }, { ageMs: "no" }]) assert.throws(() => world.chat({ outbox }), /outbox\./);
});
