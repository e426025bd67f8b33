"""The job: a program of its own, without Flask. Its channel is its argument, and the environment has SSE_REDIS_URL."""

import sys
import time

from sse import Publisher, Stopped

STEPS = 20


def work(channel: str) -> None:
    with Publisher() as publisher, publisher.writing(channel) as out:
        for step in range(1, STEPS + 1):
            time.sleep(0.2)
            print(f"step {step} is done", file=out)
            out.publish({"done": step, "of": STEPS}, type="progress")


if __name__ == "__main__":
    try:
        work(sys.argv[1])
    except Stopped:
        sys.exit("stopped from the page")
