// How the client comes back: when, with which token, and when it does not.
import assert from "node:assert/strict";

import { LIMITED, REFUSED, chatTest } from "./world.mjs";

/** When handshakes were made within so many milliseconds, counted from now. */
async function handshakes({ server, clock }, ms, step = 50) {
  const at = [];
  for (let passed = 0; passed <= ms; passed += step) {
    const before = server.handshakes.length;
    await clock.advance(passed === 0 ? 0 : step);
    for (let count = before; count < server.handshakes.length; count += 1) at.push(passed);
  }
  return at;
}

chatTest("pauses are drawn from twice as long a time each, up to 30 s, and begin anew once a room was joined for a while", async (world) => {
  const { server, clock } = world;
  await world.joined({}, world.chat({ random: () => 0.9999 }));
  server.handshakeFaults = Array(100).fill("refuse");
  await clock.advance(5000);
  server.cut();
  const at = await handshakes(world, 100_000);
  const pauses = at.map((each, index) => each - (at[index - 1] ?? 0));
  assert.deepEqual(pauses, [1000, 2000, 4000, 8000, 16000, 30000, 30000]);
  server.handshakeFaults = [];
  await clock.advance(40_000);
  server.cut();
  assert.deepEqual(await handshakes(world, 2000), [1000]);
  server.cut(); // it was joined for less than the time that proves it well
  assert.deepEqual(await handshakes(world, 2000), [2000]);
});

chatTest("a pause may be none", async (world) => {
  await world.joined({}, world.chat({ random: () => 0 }));
  world.server.cut(1012);
  assert.deepEqual(await handshakes(world, 100), [0]);
});

chatTest("each connection asks for a token and parameters; they travel as the server takes them", async (world) => {
  const { server, clock } = world;
  let number = 0;
  const chat = world.chat({ token: async () => `töken~${(number += 1)}`, params: () => ({ "a b": "ü&" }) });
  await world.joined({}, chat);
  server.cut(4001);
  await clock.advance(1);
  const [first, second] = server.handshakes;
  assert.equal(first.url, "ws://host/socket/websocket?a+b=%C3%BC%26&vsn=2.0.0");
  assert.deepEqual(
    [first, second].map(({ protocols: [phoenix, bearer] }) => [phoenix, Buffer.from(bearer.split(".").at(-1), "base64url").toString()]),
    [["phoenix", "töken~1"], ["phoenix", "töken~2"]],
  );
  assert.doesNotMatch(first.protocols[1], /[+/=]/);
});

chatTest("a token that has expired is renewed at once, but not for ever", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  server.cut(4001);
  await clock.advance(1);
  assert.deepEqual([server.handshakes.length, room.state], [2, "joined"]);
  server.cut(4001);
  await clock.advance(1);
  assert.deepEqual([server.handshakes.length, room.state], [2, "waiting"]);
});

chatTest("a token that cannot be had is asked for again", async (world) => {
  let fails = 2;
  const room = world.room({}, world.chat({ token: () => (fails-- > 0 ? Promise.reject(new Error("login")) : "t") }));
  room.join();
  await world.clock.advance(3000);
  assert.equal(room.state, "joined");
  assert.match(room.all("state").find(([state]) => state === "waiting")[1].error.message, /no_token.*login/);
});

chatTest("who was shut out stays away, until somebody asks for it", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  server.say("a", "1");
  const send = world.outcome(room.send("2"));
  server.cut(4003);
  await clock.advance(100_000);
  server.say("a", "3");
  const [state, { error }] = room.all("state").at(-1);
  assert.deepEqual([state, error.code, server.handshakes.length, send.is], ["stopped", "revoked", 1, "unknown"]);
  await assert.rejects(room.send("4"), { code: "stopped" });
  await room.join();
  assert.deepEqual(room.told(), ["1", "2", "3"]);
});

chatTest("a connection that is dead is found by its heartbeat, and sooner by what is not answered", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  await clock.advance(65_000);
  assert.deepEqual([server.of("heartbeat").length, server.handshakes.length], [2, 1]);
  server.heartbeats = false;
  await clock.advance(34_900);
  assert.equal(server.handshakes.length, 1);
  await clock.advance(2_000);
  assert.equal(server.handshakes.length, 2);
  server.fault("new_message", "unanswered");
  const send = world.outcome(room.send("one"));
  await clock.advance(19_900);
  assert.equal(server.handshakes.length, 2);
  await clock.advance(2_000);
  assert.deepEqual([server.handshakes.length, send.is], [3, "ok"]);
});

chatTest("what is not answered for a minute on a connection that lives ends it", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  server.fault("new_message", "unanswered");
  const send = world.outcome(room.send("one"));
  await clock.advance(59_000);
  assert.deepEqual([send.is, server.handshakes.length], ["waits", 1]);
  await clock.advance(3_000);
  assert.deepEqual([send.is, server.handshakes.length], ["ok", 2]);
});

chatTest("a join that is refused for a while is made again then, one that is refused for good ends it", async (world) => {
  const { server, clock } = world;
  const random = () => 0;
  server.fault("phx_join", LIMITED, REFUSED);
  const room = world.room({}, world.chat({ random }));
  const [joined, send] = [world.outcome(room.join()), world.outcome(room.send("one"))];
  await clock.advance(4999);
  assert.deepEqual([joined.is, room.state, server.of("phx_join").length], ["waits", "waiting", 1]);
  await clock.advance(1);
  assert.deepEqual([joined.is, send.is, room.state], ["blocked", "blocked", "refused"]);
  for (const asked of [room.send("two"), room.history()]) await assert.rejects(asked, { code: "refused" });
  server.cut();
  await clock.advance(5000);
  assert.equal(server.of("phx_join").length, 2);
  await room.join();
  assert.equal(room.state, "joined");
});

chatTest("a membership that failed is begun anew behind the last message", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  const [socket] = server.sockets;
  socket.give([socket.joins.get("a"), null, "room:a", "phx_error", {}]);
  socket.joins.delete("a");
  server.say("a", "1");
  await clock.advance(1000);
  assert.deepEqual([room.told(), room.state, server.handshakes.length], [["1"], "joined", 1]);
});

chatTest("whoever presses the button comes back at once", async (world) => {
  const { server, clock } = world;
  const chat = world.chat({ random: () => 0.9999 });
  const room = await world.joined({}, chat);
  server.handshakeFaults = Array(5).fill("refuse");
  server.cut();
  await clock.advance(31_500);
  const before = server.handshakes.length;
  assert.deepEqual([room.state, clock.next > 20_000], ["waiting", true]);
  chat.retry();
  await clock.advance(1);
  assert.deepEqual([server.handshakes.length, room.state], [before + 1, "joined"]);
});

chatTest("a page that is seen again or back in its network comes back as soon as the server lets it", async (world) => {
  const { server, clock } = world;
  const page = new EventTarget();
  const names = ["addEventListener", "removeEventListener"];
  for (const name of names) globalThis[name] = page[name].bind(page);
  try {
    const room = await world.joined({}, world.chat({ random: () => 0.9999 }));
    server.handshakeFaults = Array(5).fill("refuse");
    server.cut();
    await clock.advance(31_500);
    const before = server.handshakes.length;
    assert.ok(clock.next > 20_000);
    page.dispatchEvent(new Event("online"));
    await clock.advance(1);
    assert.deepEqual([server.handshakes.length, room.state], [before + 1, "joined"]);
    page.dispatchEvent(new Event("online"));
    await clock.settle();
    assert.equal(server.of("heartbeat").length, 1);
    room.leave();

    // Not before the server wants it.
    Object.assign(server, { pollFault: { status: 500 }, retryAfter: "50" });
    const polling = world.room({}, world.chat({ WebSocket: null, fetch: server.fetch }));
    polling.join();
    await clock.advance(1_000);
    server.pollFault = null;
    page.dispatchEvent(new Event("online"));
    await clock.advance(40_000);
    assert.equal(polling.state, "waiting");
    await clock.advance(10_000);
    assert.equal(polling.state, "joined");
  } finally {
    for (const name of names) delete globalThis[name];
  }
});

chatTest("where no WebSocket opens requests are tried at once, and WebSockets again less and less often", async (world) => {
  const { server, clock } = world;
  server.handshakeFaults = Array(99).fill("refuse");
  const { fetch } = server;
  const room = world.room({}, world.chat({ fetch }));
  room.join();
  await clock.advance(10);
  await room.send("one");
  server.say("a", "two");
  await clock.advance(10);
  assert.deepEqual([room.told(), server.handshakes.length, server.polls], [["one", "two"], 1, 1]);
  assert.deepEqual(await handshakes(world, 500_000, 500), [30_000, 90_000, 210_000, 450_000]);
  assert.deepEqual([room.state, server.polls], ["joined", 5]);
  server.cut();
  await clock.advance(2000);
  assert.deepEqual([room.state, server.handshakes.length, server.polls], ["joined", 5, 6]);

  server.handshakeFaults = [];
  await clock.advance(600_000);
  assert.deepEqual([room.state, server.handshakes.length, server.polls], ["joined", 6, 6]);
  server.say("a", "three");
  assert.deepEqual([room.told(), room.all("gap")], [["one", "two", "three"], []]);
});

chatTest("where WebSockets got through before, requests are tried only when several of them failed", async (world) => {
  const { server, clock } = world;
  const room = await world.joined({}, world.chat({ fetch: server.fetch }));
  server.handshakeFaults = ["refuse", "refuse", "refuse"];
  server.cut();
  await clock.advance(2_000);
  assert.deepEqual([room.state, server.polls], ["waiting", 0]);
  await clock.advance(8_000);
  assert.deepEqual([room.state, server.polls, server.handshakes.length], ["joined", 1, 4]);
  await clock.advance(30_000);
  assert.deepEqual([room.state, server.polls, server.handshakes.length, server.sockets.size], ["joined", 1, 5, 1]);
});

chatTest("while nothing gets through, sockets and requests are tried in turns; a refusal by requests is told", async (world) => {
  const { server, clock } = world;
  server.handshakeFaults = Array(99).fill("refuse");
  server.pollFault = "fail";
  const room = world.room({}, world.chat({ fetch: server.fetch }));
  room.join().catch(() => {});
  await clock.advance(60_000);
  assert.ok(server.handshakes.length >= 3 && server.handshakes.length <= 8, `${server.handshakes.length}`);
  server.pollFault = { status: 403 };
  await clock.advance(60_000);
  assert.ok(room.all("state").some(([state, { error }]) => state === "waiting" && error?.code === "refused"));
  Object.assign(server, { pollFault: { status: 500 }, retryAfter: "300" });
  await clock.advance(60_000);
  const before = server.handshakes.length;
  await clock.advance(230_000);
  assert.ok(server.handshakes.length - before <= 1);
});

chatTest("several rooms share a connection, which ends with the last", async (world) => {
  const { server, clock } = world;
  const chat = world.chat();
  const [a, b] = [await world.joined({ id: "a" }, chat), await world.joined({ id: "b" }, chat)];
  server.say("b", "to b");
  assert.deepEqual([a.told(), b.told(), server.handshakes.length, chat.room("a") === a], [[], ["to b"], 1, true]);
  a.leave();
  assert.deepEqual([server.sockets.size, server.of("phx_leave").length], [1, 1]);
  b.leave();
  assert.equal(server.sockets.size, 0);
  for (const asked of [a.send("one"), a.history()]) await assert.rejects(asked, { code: "left" });
  await clock.advance(100_000);
  assert.equal(server.handshakes.length, 1);
  await a.join();
  assert.deepEqual([a.state, server.handshakes.length], ["joined", 2]);
});

chatTest("a chat that was closed says so", async (world) => {
  const chat = world.chat();
  const room = await world.joined({}, chat);
  const reading = world.outcome((world.server.fault("history", "hold"), room.history()));
  chat.close();
  chat.close();
  await world.clock.settle();
  assert.deepEqual([room.state, reading.is, world.server.sockets.size], ["stopped", "closed", 0]);
  await assert.rejects(room.join(), { code: "closed" });
  await assert.rejects(room.history(), { code: "closed" });
  assert.throws(() => chat.room("b"), { code: "closed" });
});

chatTest("what cannot be an address, a room or a number of messages is refused where it is given", async (world) => {
  const { Chat } = await import("../../../clients/js/chatx.js");
  for (const url of ["/socket", "ftp://host/socket"]) assert.throws(() => new Chat(url), TypeError);
  assert.throws(() => new Chat("ws://host", { WebSocket: null, fetch: null }), /neither a WebSocket nor a fetch/);
  const chat = world.chat();
  for (const id of ["", 5, "x".repeat(129)]) assert.throws(() => chat.room(id), /1 to 128 bytes/);
  for (const history of [-1, 1001, 1.5]) assert.throws(() => chat.room("a", { history }), /from 0 to 1000/);
});
