"""Cameras of this machine: an RTSP server of JPEG pictures in one connection, and a capture as a webcam's."""

import contextlib
import re
import socketserver
import struct
import threading
import time
from collections.abc import Iterator

import cv2
import tiny

SIZE = 48, 64
# a camera hangs up after that many pictures where its address ends in /dies
UNTIL_DEATH = 40
DESCRIPTION = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\n"


def packet(number: int) -> bytes:
    """A picture as RFC 2435 sends it: of a JPEG file, its tables of quantisation and its scan."""
    content = cv2.imencode(".jpg", tiny.picture(*SIZE, number % 7))[1].tobytes()
    tables, at = b"", 2
    while content[at + 1] != 0xDA:
        length = int.from_bytes(content[at + 2 : at + 4])
        if content[at + 1] == 0xDB:
            # of each 64 bytes, what comes before them is its number
            body = content[at + 4 : at + 2 + length]
            tables += b"".join(body[start + 1 : start + 65] for start in range(0, len(body), 65))
        at += 2 + length
    scan = content[at + 2 + int.from_bytes(content[at + 2 : at + 4]) : -2]
    rtp = struct.pack(">BBHII", 0x80, 0x80 | 26, number & 0xFFFF, number * 90_000 // 50, 1)
    jpeg = struct.pack(">IBBBB", 0, 1, 255, SIZE[1] // 8, SIZE[0] // 8) + struct.pack(">BBH", 0, 0, len(tables))
    whole = rtp + jpeg + tables + scan
    return struct.pack(">BBH", 0x24, 0, len(whole)) + whole


class Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError, ConnectionError):
            while (method := self.answer()) and method != "TEARDOWN":
                if method == "PLAY":
                    threading.Thread(target=self.play, daemon=True).start()

    def answer(self) -> str | None:
        lines = []
        while line := self.rfile.readline().strip():
            lines.append(line.decode())
        if not lines:
            return None
        method, self.address, _ = lines[0].split()
        number = next(re.search(r"\d+", line)[0] for line in lines if line.lower().startswith("cseq"))
        code, more, body = "200 OK", "", b""
        if "/nothing" in self.address:
            code = "404 Not Found"
        elif method == "DESCRIBE":
            body = DESCRIPTION
            more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "OPTIONS":
            more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        self.wfile.write(f"RTSP/1.0 {code}\r\nCSeq: {number}\r\n{more}\r\n".encode() + body)
        return method

    def play(self) -> None:
        last = UNTIL_DEATH if "/dies" in self.address else 3000
        with contextlib.suppress(OSError, ValueError):
            for number in range(last):
                self.wfile.write(packet(number))
                time.sleep(0.02)
            self.connection.shutdown(2)


@contextlib.contextmanager
def rtsp_server() -> Iterator[str]:
    """The address of a camera of 50 pictures per second."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Conversation) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"rtsp://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


class Webcam:
    """What OpenCV gives for a device: a picture every 20 ms, no length, no times, until it is unplugged."""

    def __init__(self, pictures: int) -> None:
        self.left, self.released = pictures, False
        self.begin = time.monotonic()
        self.read_all = 0

    def isOpened(self) -> bool:
        return True

    def get(self, which: int) -> float:
        return {cv2.CAP_PROP_FRAME_COUNT: -1.0, cv2.CAP_PROP_FPS: 50.0}.get(which, 0.0)

    def read(self):
        if not self.left:
            return False, None
        self.left -= 1
        self.read_all += 1
        time.sleep(0.02)
        return True, tiny.picture(*SIZE, self.read_all % 7)

    def release(self) -> None:
        self.released = True
