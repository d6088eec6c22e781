// What callers, storages and servers do that they should not: it costs nobody else anything, and nothing is left hanging.
import assert from "node:assert/strict";

import { chatTest } from "./world.mjs";

const HOUR = 3_600_000;
const LONGEST = { code: "rate_limited", reason: "for ever", retryable: true, retry_after_ms: 1e15 };
const said = (server) => server.room("a").messages.map(({ content }) => content);

chatTest("what a send says is what it said when it was called, whatever becomes of its data", async (world) => {
  const { server, clock } = world;
  const room = world.room();
  const data = { list: [1] };
  const send = world.outcome(room.send("one", { data }));
  data.list.push(2);
  data.self = data;
  await room.join();
  await clock.settle();
  assert.deepEqual([send.is, send.sent.data, server.room("a").messages[0].data], ["ok", { list: [1] }, { list: [1] }]);
});

chatTest("a place that is null is none, as that of a room which has none yet", async (world) => {
  const room = await world.joined();
  await room.send("one");
  for (let call = 0; call < 20; call += 1) assert.deepEqual([...(await room.history({ before: null, after: null }))], []);
});

chatTest("a history between two places is asked for as it is, since the server refuses it", async (world) => {
  const room = await world.joined();
  const [before, after] = [9, 2].map((offset) => ({ epoch: "e1", offset }));
  await room.history({ before, after });
  assert.deepEqual(world.server.of("history")[0][4], { limit: 50, before, after });
});

chatTest("what is no place to go on from is refused at once, since it would be told as a gap", async (world) => {
  const chat = world.chat();
  for (const after of [{}, "e1", { epoch: "e1" }, { epoch: 1, offset: 1 }, { epoch: "e1", offset: "1" }, { epoch: "e1", offset: -1 }])
    assert.throws(() => chat.room("a", { after }), /after is no place/);
  assert.equal(world.room({ after: { epoch: "e1", offset: 0 } }, chat).place.offset, 0);
});

chatTest("a room object that was left and replaced rejects its join", async (world) => {
  const chat = world.chat();
  const old = chat.room("a");
  old.leave();
  chat.room("a");
  await assert.rejects(old.join(), /another object/);
});

chatTest("nobody sends what another name wrote, though one begins with the other", async (world) => {
  const { server, storage, clock } = world;
  const writer = world.chat({ storage, name: "user:1" });
  world.outcome(writer.room("a").send("secret"));
  for (const name of ["user", "", ":user"]) assert.deepEqual(world.chat({ storage, name }).unsent, []);
  assert.deepEqual(world.chat({ storage, name: "user:1" }).unsent, ["a"]);
  await world.joined({}, world.chat({ storage, name: "user" }));
  await clock.advance(1000);
  assert.deepEqual(said(server), []);
});

chatTest("what a storage has that makes no sense takes no place in the outbox", async (world) => {
  const { storage, server, clock } = world;
  const chat = world.chat({ storage });
  world.outcome(chat.room("a").send("kept"));
  const [[name, kept]] = [...storage.items];
  for (const [end, wrong] of [["0", { bytes: 1e9 }], ["1", { number: "one" }], ["2", { created: null }], ["3", { content: 5 }]])
    storage.setItem(name.slice(0, -1) + (name.endsWith(end) ? "f" : end), JSON.stringify({ ...JSON.parse(kept), ...wrong }));
  const room = await world.joined({}, world.chat({ storage }));
  const send = world.outcome(room.send("new"));
  await clock.settle();
  assert.deepEqual([send.is, said(server)], ["ok", ["kept", "new"]]);
});

for (const event of ["phx_join", "history", "new_message"])
  chatTest(`a pause that no timer can wait for is an hour at most: ${event}`, async (world) => {
    const { server, clock } = world;
    server.say("a", "before");
    server.fault(event, LONGEST);
    const room = world.room({ history: 1 }, world.chat({ outbox: { ageMs: 3 * HOUR } }));
    room.join().catch(() => {});
    world.outcome(room.send("one"));
    await clock.advance(HOUR - 1000);
    assert.deepEqual([server.of(event).length, said(server)], [1, ["before"]]);
    await clock.advance(2000);
    assert.deepEqual(said(server), ["before", "one"]);
  });

chatTest("so is one that comes with a refused poll", async (world) => {
  const { server, clock } = world;
  Object.assign(server, { pollFault: { status: 500 }, retryAfter: "999999999999" });
  const room = world.room({}, world.chat({ WebSocket: null, fetch: server.fetch }));
  room.join().catch(() => {});
  await clock.settle();
  const [, { error }] = room.all("state").at(-1);
  assert.equal(error.retryAfter, HOUR / 1000);
});

chatTest("an answer to a poll that makes no sense is read past, and polling goes on", async (world) => {
  const { server, clock } = world;
  const odd = [5, {}, null, [null, 5, "{}", "[[", "x"]];
  const fetch = async (url, request) => {
    if (request.method === "POST" || !request.headers["x-phoenix-longpoll-token"] || odd.length === 0) return server.fetch(url, request);
    return { headers: new Map(), json: async () => ({ status: 200, token: "s1", messages: odd.shift() }) };
  };
  const room = await world.joined({}, world.chat({ WebSocket: null, fetch }));
  const send = world.outcome(room.send("one"));
  await clock.settle();
  assert.deepEqual([odd, send.is, server.polls], [[], "ok", 1]);
});

chatTest("presence that makes no sense is nobody's, and reports nothing", async (world) => {
  const { server, clock, reported } = world;
  const room = await world.joined();
  const meta = { phx_ref: "1", online_at: 1 };
  const give = (event, payload) => [...server.sockets].forEach((socket) => socket.give([null, null, "room:a", event, payload]));
  give("presence_state", { ada: { metas: [meta] } });
  for (const users of [null, 5, { bob: null }, { bob: {} }, { bob: { metas: 5 } }, { bob: { metas: [null] } }])
    for (const diff of [{ joins: users }, { leaves: users }]) give("presence_diff", diff);
  await clock.settle();
  assert.deepEqual([reported, room.members.get("ada")], [[], [meta]]);
  give("presence_state", null);
  assert.deepEqual([reported, room.members.size], [[], 0]);
});

chatTest("a socket that answers no close is ended, as Node would wait for it", async (world) => {
  const { server, clock } = world;
  let ended = 0;
  class WebSocket extends server.WebSocket {
    terminate() {
      ended += 1;
    }
  }
  const chat = world.chat({ WebSocket });
  await world.joined({}, chat);
  chat.close();
  await clock.advance(2000);
  assert.equal(ended, 1);
});
