"""A WebSocket client of forty lines: does a stack deliver what it is said to deliver?

Each stack is asked before it is measured, so that nobody compares a server that does nothing.
May not enter: measurements.
"""

import base64
import http.client
import json
import os
import socket
import time
import urllib.parse


class Fault(Exception):
    """What a stack does wrong, as a sentence."""


class Client:
    """One WebSocket; an address is a (host, port) or the path of a Unix socket."""

    def __init__(self, address, channel, path="/webws"):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(5)
        self.socket.connect(address)
        query = urllib.parse.quote(json.dumps(channel))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((
            f"GET {path}?channel={query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self._read()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise Fault(f"the handshake was answered {head.split(bytes([13]))[0].decode()}")

    def _read(self):
        try:
            piece = self.socket.recv(65536)
        except TimeoutError:
            raise Fault("nothing came for 5 s") from None
        if not piece:
            raise Fault("the connection was closed")
        self.buffer += piece

    def _take(self, count):
        while len(self.buffer) < count:
            self._read()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def frame(self):
        """The next frame that is no ping: (first byte, payload)."""
        while True:
            first, length = self._take(2)
            if length == 126:
                length = int.from_bytes(self._take(2), "big")
            elif length == 127:
                length = int.from_bytes(self._take(8), "big")
            payload = self._take(length)
            if first != 0x89:
                return first, payload

    def send_text(self, text):
        payload = text.encode()
        if len(payload) < 126:
            head = bytes([0x81, 0x80 | len(payload)])
        else:
            head = bytes([0x81, 0xFE]) + len(payload).to_bytes(2, "big")
        # The mask 00000000 changes nothing.
        self.socket.sendall(head + bytes(4) + payload)

    def close(self):
        self.socket.close()


def redis_publish(port, channel, payload):
    """PUBLISH; returns the number of receivers."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        words = [b"PUBLISH", channel.encode(), payload.encode()]
        link.sendall(b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        return int(link.recv(100).decode().strip().lstrip(":"))


def http_publish(port, channel, payload):
    """POST to nchan's publisher location."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    link.request("POST", "/pub?channel=" + urllib.parse.quote(json.dumps(channel)), payload.encode())
    status = link.getresponse().status
    link.close()
    if status not in (200, 201, 202):
        raise Fault(f"a publication by HTTP was answered {status}")


def check(address, publish, suffix):
    """Raises Fault unless publications of several sizes arrive, and a client's text comes back.

    `publish(channel, payload)` publishes; `suffix` is whether the channel's name goes behind it.
    """
    channel = "probe"
    ending = channel if suffix else ""
    first, second = Client(address, channel), Client(address, channel)
    other = Client(address, "other")
    # A stack may subscribe after its 101 (lua): wait until a publication arrives, then look closely.
    time.sleep(0.2)
    for payload in ["a", "x" * 125, "y" * 128, "z" * 4096, "end"]:
        publish(channel, payload)
        for client in (first, second):
            got = client.frame()
            if got != (0x81, (payload + ending).encode()):
                raise Fault(f"{len(payload)} bytes were published, and {got[0]:#x} with {len(got[1])} bytes came: "
                            f"{got[1][:60]!r}")
    for text in ["hello", "w" * 300]:
        first.send_text(text)
        for client in (first, second):
            got = client.frame()
            if got != (0x81, (text + ending).encode()):
                raise Fault(f"a client sent {text[:20]!r}, and {got[0]:#x} {got[1][:60]!r} came")
    publish("other", "for you")
    if other.frame() != (0x81, ("for you" + ("other" if suffix else "")).encode()):
        raise Fault("a channel got another one's publication")
    for client in (first, second, other):
        client.close()
