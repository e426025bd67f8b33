"""Round trips of the publish script from as many greenlets as there are clients: what Redis itself costs.

python -m bench.evalsha REDIS_URL GREENLETS SECONDS
"""

from gevent import monkey

monkey.patch_all()

import secrets  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
import redis  # noqa: E402

from sse.stores.scripts import Script  # noqa: E402

PAYLOAD = '{"type":"message","data":"' + "x" * 128 + '"}'


def main(url: str, greenlets: int, seconds: float) -> None:
    """Print how many round trips there were each second, and the CPU seconds of this process for each."""
    client = redis.Redis.from_url(url)
    sha = client.script_load(Script("publish.lua", stores=True).text)
    counts = [0] * greenlets
    end = time.monotonic() + seconds

    def publish(number: int) -> None:
        while time.monotonic() < end:
            once = f"sse:{{bare}}:once:{secrets.token_hex(12)}"
            nonce = secrets.token_hex(8)
            client.evalsha(sha, 2, "sse:{bare}", once, nonce, 1001, 86400, 30, "PUBLISH", "sse:0:{bare}", PAYLOAD)
            counts[number] += 1

    used = time.process_time()
    gevent.joinall([gevent.spawn(publish, number) for number in range(greenlets)], raise_error=True)
    print(sum(counts) / seconds, (time.process_time() - used) / sum(counts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
