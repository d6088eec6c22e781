// Runs an example of the documentation as a page of HOST would: node example_in_node.mjs HOST EXAMPLE
// What it shows and tells goes to standard output, one JSON object a line; the end of standard input ends it.
import { webcrypto } from "node:crypto";
import { pathToFileURL } from "node:url";
import WebSocket from "ws";

const [host, example] = process.argv.slice(2);
const write = (fields) => console.log(JSON.stringify(fields));

// What a browser has, and Node 18 has not.
globalThis.location = { protocol: "http:", host };
globalThis.WebSocket = WebSocket;
globalThis.crypto ??= webcrypto;
// What the example leaves to its reader.
globalThis.show = ({ content }) => write({ shown: content });
globalThis.showBefore = (messages) => write({ before: messages.map(({ content }) => content) });
globalThis.clear = () => write({ cleared: true });
globalThis.tell = (reason) => write({ told: reason });

process.stdin.on("end", () => process.exit()).resume();
await import(pathToFileURL(example));
