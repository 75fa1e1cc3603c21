// A WebSocket server as one writes it with Node, ws and ioredis; for comparison (benches/compare).
//
// One shared subscriber with counted subscriptions, one publisher that pipelines, the channel's name
// behind every payload, a ping after 5 s of silence, no compression, the subscription confirmed
// before the 101. One frame is made per publication and client by ws, as its broadcast examples do.
//
//   node server.js SOCKET REDIS_PORT

'use strict';

const http = require('node:http');
const Redis = require('ioredis');
const { WebSocketServer } = require('ws');

const [socketPath, redisPort] = process.argv.slice(2);
const PREFIX = 'chat:';
const PING_AFTER_MS = 5000;

const redis = { host: '127.0.0.1', port: Number(redisPort) };
// The ready check is an INFO, which a connection that has begun to subscribe may not ask.
const subscriber = new Redis({ ...redis, enableReadyCheck: false });
const publisher = new Redis({ ...redis, enableAutoPipelining: true });

/** Redis channel -> { clients: Set<WebSocket>, waiting: number, subscribed: Promise } */
const rooms = new Map();

function enter(channel) {
  let room = rooms.get(channel);
  if (!room) {
    room = { clients: new Set(), waiting: 0, subscribed: subscriber.subscribe(channel) };
    rooms.set(channel, room);
  }
  return room;
}

function leaveIfEmpty(channel, room) {
  if (room.clients.size === 0 && room.waiting === 0 && rooms.get(channel) === room) {
    rooms.delete(channel);
    subscriber.unsubscribe(channel).catch(() => {});
  }
}

subscriber.on('message', (channel, message) => {
  const room = rooms.get(channel);
  if (!room) return;
  const payload = Buffer.from(message + channel.slice(PREFIX.length));
  for (const client of room.clients) client.send(payload, { binary: false });
});

const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false, maxPayload: 65535 });
const server = http.createServer((request, response) => response.writeHead(400).end());

server.on('upgrade', async (request, stream, head) => {
  let name;
  try {
    name = JSON.parse(new URL(request.url, 'http://x').searchParams.get('channel'));
    if (typeof name !== 'string' && typeof name !== 'number') throw new Error('no channel');
  } catch {
    stream.end('HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n');
    return;
  }
  const channel = PREFIX + name;
  const room = enter(channel);
  const onError = () => stream.destroy();
  stream.on('error', onError);
  room.waiting++;
  try {
    await room.subscribed;
  } catch {
    stream.end('HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n');
    room.waiting--;
    rooms.delete(channel);
    return;
  }
  stream.off('error', onError);
  room.waiting--;
  if (stream.destroyed) return leaveIfEmpty(channel, room);
  // A handshake that ws refuses ends the stream without calling back.
  stream.once('close', () => leaveIfEmpty(channel, room));
  sockets.handleUpgrade(request, stream, head, (client) => {
    room.clients.add(client);
    let silent = setTimeout(ping, PING_AFTER_MS);
    function ping() {
      client.ping();
      silent.refresh();
    }
    client.on('message', (data, isBinary) => {
      silent.refresh();
      if (!isBinary) publisher.publish(channel, data).catch(() => {});
    });
    client.on('ping', () => silent.refresh());
    client.on('pong', () => silent.refresh());
    client.on('error', () => {});
    client.on('close', () => {
      clearTimeout(silent);
      room.clients.delete(client);
      leaveIfEmpty(channel, room);
    });
  });
});

server.listen({ path: socketPath, backlog: 4096 });
process.on('SIGTERM', () => process.exit(0));
