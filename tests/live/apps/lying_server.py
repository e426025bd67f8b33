"""A server for tests of the benchmark: `lying_server.py PORT tells|loses|doubles|forgets|repeats`.

It sends published events to its streams, torn at any byte, and leaves some out or sends some twice if asked to. A
stream with a last event id begins with the events after it; or with none of them, or with one that it has had.
"""

import contextlib
import re
import socket
import sys
import threading

OPEN = b"id: 0\nevent: sse.open\ndata: {}\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(OPEN), OPEN)
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
streams: list[socket.socket] = []
frames: list[bytes] = []
lock = threading.Lock()


def serve(sock: socket.socket, lie: str) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b""
    while more := sock.recv(65536):
        data += more
        head, _, body = data.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            with lock:
                sock.sendall(HEAD)
                if last := re.search(rb"Last-Event-ID: (\d+)", head):
                    after = int(last[1]) - (lie == "repeats")
                    for number in range(after, len(frames) if lie != "forgets" else 0):
                        tell(sock, frames[number], number + 1)
                streams.append(sock)
            return
        length = re.search(rb"Content-Length: (\d+)", head)
        if not length or len(body) < int(length[1]):
            continue
        data = b""
        for frame in body.split(b"\n\n")[:-1]:
            with lock:
                frames.append(b"id: %d\n%b\n\n" % (len(frames) + 1, frame))
                times = {"loses": 0, "doubles": 2}.get(lie, 1) if len(frames) % 10 == 0 else 1
                for stream in streams * times:
                    with contextlib.suppress(OSError):  # it has been cut
                        tell(stream, frames[-1], len(frames))
        sock.sendall(CREATED)


def tell(stream: socket.socket, frame: bytes, number: int) -> None:
    """Send the frame in two chunks, each in two writes. The borders move through the frame."""
    border = 1 + number % (len(frame) - 1)
    for part in (frame[:border], frame[border:]):
        chunk = b"%x\r\n%b\r\n" % (len(part), part)
        tear = number % len(chunk)
        stream.sendall(chunk[:tear])
        stream.sendall(chunk[tear:])


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], sys.argv[2]), daemon=True).start()
