// The driver in Node: commands on standard input, reports on standard output, one JSON object a line.
import { createInterface } from "node:readline";
import WebSocket from "ws";

import { Driver } from "./driver.mjs";

// Node has no WebSocket of its own before version 22.
const driver = new Driver((report) => console.log(JSON.stringify(report)), WebSocket);

createInterface({ input: process.stdin })
  .on("line", (line) => driver.do(JSON.parse(line)))
  .on("close", () => process.exit());
