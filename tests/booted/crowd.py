#!/usr/bin/env python3
"""A crowd of WebSockets behind nginx, and a producer in Redis that counts: what the clients noticed is written
to a file, ten times a second.

    crowd.py FILE [--clients 20] [--path /webws] [--channels 4] [--password REDIS_PASSWORD]

Each channel's producer publishes "r:0:", "r:1:" and so on; the lua wire appends the channel's name. A client
that misses a number counts it as lost, one that comes again as twice. Clients publish as well and hear
themselves ("c:CLIENT:N:"). Python's own library only.
"""

import argparse
import base64
import json
import os
import selectors
import socket
import struct
import time


class Client:
    def __init__(self, number, path, channel):
        self.number, self.channel = number, channel
        self.last, self.heard, self.lost, self.twice, self.said, self.heard_self = None, 0, 0, 0, 0, 0
        self.code, self.data = None, b""
        self.sock = socket.create_connection(("127.0.0.1", 80), timeout=20)
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET {path}?channel=%22{channel}%22 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.data:
            more = self.sock.recv(4096)
            if not more:
                break
            self.data += more
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        self.status = int(head.split(b" ", 2)[1]) if head else 0
        if self.status != 101:
            raise ConnectionError(f"answered {self.status}")
        self.sock.setblocking(False)

    def send(self, opcode, payload):
        mask = os.urandom(4)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        try:
            self.sock.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)
        except OSError:
            self.code = self.code or 1006

    def say(self):
        self.send(1, f"c:{self.number}:{self.said}:".encode())
        self.said += 1

    def read(self):
        try:
            more = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self.code = self.code or 1006
            return
        self.data += more
        while self.frame():
            pass

    def frame(self):
        if len(self.data) < 2:
            return False
        length, start = self.data[1] & 0x7F, 2
        if length == 126:
            if len(self.data) < 4:
                return False
            length, start = struct.unpack(">H", self.data[2:4])[0], 4
        if len(self.data) < start + length:
            return False
        opcode, payload = self.data[0] & 0xF, self.data[start : start + length]
        self.data = self.data[start + length :]
        if opcode == 8:
            self.code = struct.unpack(">H", payload[:2])[0] if payload else 1005
            self.send(8, payload[:2])
        elif opcode == 9:
            self.send(10, payload)
        elif opcode == 1:
            self.on_text(payload.decode().split(":"))
        return True

    def on_text(self, parts):
        if parts[0] == "c":
            self.heard_self += int(parts[1]) == self.number
            return
        number = int(parts[1])
        self.heard += 1
        if self.last is not None:
            if number <= self.last:
                self.twice += 1
                return
            self.lost += number - self.last - 1
        self.last = number


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("file")
    arguments.add_argument("--clients", type=int, default=20)
    arguments.add_argument("--channels", type=int, default=4)
    arguments.add_argument("--path", default="/webws")
    arguments.add_argument("--password")
    options = arguments.parse_args()
    clients = [Client(n, options.path, f"c{n % options.channels}") for n in range(options.clients)]
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.sock, selectors.EVENT_READ, client)
    redis = socket.create_connection(("127.0.0.1", 6379))
    if options.password:
        redis.sendall(f"AUTH {options.password}\r\n".encode())
        redis.recv(65536)
    published, since = 0, time.monotonic()
    while True:
        for key, _ in selector.select(0.02):
            client = key.data
            client.read()
            if client.code:
                selector.unregister(client.sock)
                client.sock.close()
        # Fifty a second on each channel, whatever the clients do.
        while published < (time.monotonic() - since) * 50:
            for channel in range(options.channels):
                redis.sendall(f"PUBLISH chat:c{channel} r:{published}:\r\n".encode())
            redis.recv(65536)
            published += 1
            if published % 25 == 0:
                for client in clients:
                    if not client.code:
                        client.say()
        codes = {}
        for client in clients:
            if client.code:
                codes[str(client.code)] = codes.get(str(client.code), 0) + 1
        seen = {
            "open": sum(not client.code for client in clients),
            "codes": codes,
            "heard": min(client.heard for client in clients),
            "lost": sum(client.lost for client in clients),
            "twice": sum(client.twice for client in clients),
            "unheard": sum(client.said - client.heard_self for client in clients if not client.code),
            "published": published,
        }
        with open(options.file + ".new", "w") as file:
            json.dump(seen, file)
        os.replace(options.file + ".new", options.file)


main()
