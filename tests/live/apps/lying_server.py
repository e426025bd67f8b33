"""A server for tests of the benchmark: `lying_server.py PORT tells|loses|doubles`.

It sends published events to its streams, torn at any byte, and leaves some out or sends some twice if asked to.
"""

import re
import socket
import sys
import threading

OPEN = b"id: bench=0-1\nevent: sse.open\ndata: {}\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(OPEN), OPEN)
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
streams: list[socket.socket] = []
lock = threading.Lock()


def serve(sock: socket.socket, lie: str) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data, published = b"", 0
    while more := sock.recv(65536):
        data += more
        head, _, body = data.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            with lock:
                sock.sendall(HEAD)
                streams.append(sock)
            return
        length = re.search(rb"Content-Length: (\d+)", head)
        if not length or len(body) < int(length[1]):
            continue
        data = b""
        for frame in body.split(b"\n\n")[:-1]:
            published += 1
            times = {"tells": 1, "loses": 0, "doubles": 2}[lie] if published % 10 == 0 else 1
            for _ in range(times):
                with lock:
                    for stream in streams:
                        tell(stream, frame + b"\n\n", published)
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
