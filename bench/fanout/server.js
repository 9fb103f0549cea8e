// The same as servers.py, for Node's `ws`: node server.js
const { WebSocketServer } = require("ws");
const readline = require("readline");

const GROUPS = 50;
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096, perMessageDeflate: false });
let next = 1;

function payload(n, last) {
  const metadata = `{"n":${n},"group":${n % GROUPS},"name":"a thing that has a name","last":${last}}`;
  return (
    `{"type":"index_update","collection":"bench","event":{"event_type":"update","document_id":"thing-${n}",` +
    `"timestamp":"2026-11-20T10:00:00.123456+00:00","index_version":${n},"version":2,"metadata":${metadata}}}`
  );
}

async function publish(count) {
  for (let i = 1; i <= count; i++) {
    const data = Buffer.from(payload(next++, i === count));
    for (const client of server.clients) client.send(data, { binary: false });
    await new Promise(setImmediate);
  }
}

server.on("listening", () => console.log(server.address().port));
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  if (line.trim()) publish(Number(line));
  else {
    const { user, system } = process.cpuUsage();
    console.log((user + system) / 1e6);
  }
}).on("close", () => process.exit(0));
