// What a room tells: each message once, in order, and what is missing at its place.
import assert from "node:assert/strict";

import { LIMITED, REFUSED, chatTest } from "./world.mjs";

const say = (server, count, from = 1) => {
  for (let number = from; number < from + count; number += 1) server.say("a", `${number}`);
};
const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => `${from + index}`);

chatTest("history comes first, and what was said while it was loaded behind it", async (world) => {
  const { server, clock } = world;
  say(server, 300);
  server.fault("history", "hold");
  const room = world.room({ history: 250 });
  const joined = world.outcome(room.join());
  await clock.settle();
  say(server, 2, 301);
  assert.deepEqual([room.told(), joined.is], [[], "waits"]);

  server.release();
  await clock.settle();

  assert.deepEqual(room.told(), numbers(51, 302));
  assert.equal(joined.is, "ok");
  const older = await room.history({ limit: 30 });
  assert.deepEqual([older.map(({ content }) => content), older.more], [numbers(21, 50), true]);
  assert.deepEqual((await room.history()).map(({ content }) => content), numbers(1, 20));
  assert.deepEqual((await room.history({ after: { epoch: "e1", offset: 301 } })).length, 1);
});

chatTest("without history a room begins with what is said from then on", async (world) => {
  say(world.server, 3);
  const room = await world.joined();
  say(world.server, 2, 4);
  assert.deepEqual(room.told(), ["4", "5"]);
  assert.deepEqual(room.place, { epoch: "e1", offset: 5 });
  assert.deepEqual((await room.history()).map(({ content }) => content), ["1", "2", "3"]);
});

chatTest("more than is kept while the history is loaded is asked for again", async (world) => {
  const { server, clock } = world;
  server.fault("history", "hold");
  server.room("a").kept = 5000;
  server.most = 5000;
  const room = world.room({ history: 1 });
  room.join();
  await clock.settle();
  say(server, 1500);
  server.release();
  await clock.settle();
  assert.deepEqual(room.told(), numbers(1, 1500));
  assert.deepEqual([room.all("gap"), server.of("phx_join").length], [[], 2]);
});

chatTest("a connection that was cut is resumed behind the last message", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  say(server, 2);
  server.cut();
  say(server, 3, 3);
  await clock.advance(1000);
  say(server, 1, 6);
  assert.deepEqual(room.told(), numbers(1, 6));
  assert.deepEqual(server.of("phx_join").map((frame) => frame[4]), [{}, { epoch: "e1", offset: 2 }]);
  assert.deepEqual(room.all("state").map(([state]) => state), ["joining", "joined", "waiting", "joining", "joined"]);
});

chatTest("a history that was cut off begins anew, and doubles nothing", async (world) => {
  const { server, clock } = world;
  say(server, 3);
  server.fault("history", "lose");
  const room = world.room({ history: 50 });
  room.join();
  await clock.settle();
  say(server, 1, 4);
  await clock.advance(1000);
  assert.deepEqual(room.told(), numbers(1, 4));
  assert.deepEqual(room.all("gap"), []);
});

chatTest("who was away for too long is told how much is missing", async (world) => {
  const { server, clock } = world;
  server.most = 5;
  const room = await world.joined();
  say(server, 2);
  server.cut();
  say(server, 10, 3);
  await clock.advance(1000);
  say(server, 1, 13);
  assert.deepEqual(room.all("gap"), [
    [{ room_id: "a", reason: "too_many", missed: 10, after: { epoch: "e1", offset: 2 }, epoch: "e1", offset: 12 }],
  ]);
  assert.deepEqual(room.told(), ["1", "2", "13"]);
});

chatTest("the history fills a gap from its end, as far as was asked for", async (world) => {
  const { server, clock } = world;
  server.most = 5;
  const room = await world.joined({ history: 8 });
  say(server, 2);
  server.cut();
  say(server, 10, 3);
  await clock.advance(1000);
  assert.deepEqual(room.all("gap").map(([{ missed, offset }]) => [missed, offset]), [[2, 4]]);
  assert.deepEqual(room.told(), ["1", "2", ...numbers(5, 12)]);

  server.cut();
  say(server, 7, 13);
  await clock.advance(2000);
  assert.deepEqual(room.all("gap").length, 1);
  assert.deepEqual(room.told(), ["1", "2", ...numbers(5, 19)]);
});

chatTest("another stream is a gap of unknown length, and its history follows", async (world) => {
  const { server, clock } = world;
  const room = await world.joined({ history: 10 });
  say(server, 2);
  server.cut();
  server.room("a").begin("e2");
  say(server, 3, 11);
  await clock.advance(1000);
  assert.deepEqual(room.all("gap"), [
    [{ room_id: "a", reason: "epoch_changed", missed: null, after: { epoch: "e1", offset: 2 }, epoch: "e2", offset: 0 }],
  ]);
  assert.deepEqual(room.told(), ["1", "2", "11", "12", "13"]);
});

chatTest("a stream that comes back doubles nothing that was told of it", async (world) => {
  const { server, clock } = world;
  const room = await world.joined({ history: 10 });
  const { messages } = server.room("a");
  say(server, 3);
  for (const [epoch, kept] of [["e2", []], ["e1", messages]]) {
    server.cut();
    server.room("a").begin(epoch);
    Object.assign(server.room("a"), { messages: kept, head: kept.length });
    await clock.advance(2000);
  }
  say(server, 1, 4);
  assert.deepEqual(room.told(), numbers(1, 4));
  assert.equal(room.all("gap").length, 2);
});

chatTest("a message that is skipped is asked for once, and missing where it is skipped again", async (world) => {
  const { server, clock } = world;
  const room = await world.joined();
  say(server, 1);
  server.room("a").publish("server", "2");
  say(server, 1, 3);
  await clock.settle();
  assert.deepEqual([room.told(), server.of("phx_join").length], [["1", "2", "3"], 2]);

  server.skips.add("4");
  server.room("a").publish("server", "4");
  say(server, 1, 5);
  await clock.settle();
  assert.deepEqual([room.told(), server.of("phx_join").length], [["1", "2", "3", "5"], 3]);
  assert.deepEqual(room.all("gap").map(([{ reason, missed, offset }]) => [reason, missed, offset]), [["missing", 1, 4]]);
});

chatTest("what comes twice is told once", async (world) => {
  const { server } = world;
  const room = await world.joined();
  say(server, 2);
  for (const message of server.room("a").messages) server.tell("a", message);
  assert.deepEqual(room.told(), ["1", "2"]);
});

chatTest("what is no frame of the protocol harms nothing", async (world) => {
  const { server } = world;
  const room = await world.joined();
  const [socket] = server.sockets;
  for (const data of ["", "{", "null", "[]", '[null,null,"room:a","new_message",{"id":1}]', '[1,2,3,4,5,6,7]'])
    socket.onmessage({ data });
  socket.give(["999", null, "room:a", "phx_error", {}]);
  say(server, 1);
  assert.deepEqual([room.told(), room.state], [["1"], "joined"]);
});

chatTest("a history that is refused for a while is asked for again, and one that is refused for good is a gap", async (world) => {
  const { server, clock } = world;
  say(server, 2);
  server.fault("history", LIMITED, REFUSED);
  const room = world.room({ history: 5 });
  const joined = world.outcome(room.join());
  await clock.advance(4999);
  assert.equal(joined.is, "waits");
  await clock.advance(1);
  say(server, 1, 3);
  assert.equal(joined.is, "ok");
  assert.deepEqual(room.all("gap").map(([{ reason, missed, after }]) => [reason, missed, after]), [["blocked", null, null]]);
  assert.deepEqual(room.told(), ["3"]);
});

chatTest("a room goes on from a place that was kept", async (world) => {
  say(world.server, 4);
  const room = await world.joined({ after: { epoch: "e1", offset: 2 } });
  assert.deepEqual(room.told(), ["3", "4"]);
  assert.deepEqual((await room.history()).map(({ content }) => content), ["1", "2"]);
});

chatTest("a history that was asked for while the connection is away comes with the next one, and a few may wait", async (world) => {
  const { server, clock } = world;
  say(server, 3);
  server.fault("history", "lose");
  const room = await world.joined();
  const asked = Array.from({ length: 17 }, () => world.outcome(room.history({ limit: 2 })));
  await clock.settle();
  server.fault("history", LIMITED);
  await clock.advance(2000);
  assert.deepEqual([asked[16].is, asked.slice(0, 16).map(({ is }) => is)], ["busy", ["rate_limited", ...Array(15).fill("ok")]]);
  assert.equal(asked[0].error.retryAfter, 5);
});

chatTest("a listener that throws or leaves ends nothing but what it says", async (world) => {
  const { server } = world;
  const room = world.room({ history: 5 });
  say(server, 3);
  room.on("message", () => {
    throw new Error("mine");
  });
  const off = room.on("message", ({ content }) => content === "2" && room.leave());
  await room.join().catch(({ code }) => assert.equal(code, "left"));
  assert.deepEqual([room.told(), room.state], [["1", "2"], "idle"]);
  assert.deepEqual(world.reported.map(({ message }) => message), ["mine", "mine"]);
  off();
  assert.throws(() => room.on("nothing", () => {}), /no event nothing/);
});

chatTest("presence is who is there, whatever they are called", async (world) => {
  const room = await world.joined();
  const [socket] = world.server.sockets;
  const give = (event, payload) => socket.onmessage({ data: `[null,null,"room:a","${event}",${payload}]` });
  give("presence_state", '{"__proto__": {"metas": [{"phx_ref": "1"}]}, "bob": {"metas": [{"phx_ref": "2"}, {"phx_ref": "3"}]}}');
  give("presence_diff", '{"joins": {"eve": {"metas": [{"phx_ref": "4"}]}, "bob": {"metas": [{"phx_ref": "5"}]}}, "leaves": {"__proto__": {"metas": [{"phx_ref": "1"}]}, "bob": {"metas": [{"phx_ref": "2"}]}}}');
  const [[first], [second]] = room.all("presence");
  assert.deepEqual([...first.keys()], ["__proto__", "bob"]);
  assert.deepEqual([...second].map(([user, metas]) => [user, metas.map(({ phx_ref }) => phx_ref)]), [["bob", ["3", "5"]], ["eve", ["4"]]]);
  assert.deepEqual(room.members, second);
});
