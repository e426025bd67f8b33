// Follows a stream with the `eventsource` package, which reconnects by itself: each event is one line of JSON.
import { EventSource } from "eventsource";

const source = new EventSource(process.argv[2]);
for (const type of ["message", "sse.open", "sse.reset"]) {
  source.addEventListener(type, ({ data }) => console.log(JSON.stringify({ type, data })));
}
source.onerror = ({ code, message }) => {
  if (source.readyState === EventSource.CLOSED) {
    console.error(`closed for good: ${code} ${message}`);
    process.exit(1);
  }
};
setInterval(() => {}, 60_000); // the package's timer for reconnecting does not keep a process alive
