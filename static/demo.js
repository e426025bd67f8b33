// Draws what the server tells, with a plain EventSource and nothing else.
(function () {
  "use strict";

  const WINDOW = 120; // seconds drawn, and the events asked for at first
  const STREAM = "sse/stream?channel=demo/machine&channel=demo/hello&replay=" + WINDOW;
  const LISTED = 50;
  const SVG = "http://www.w3.org/2000/svg";

  const byId = (id) => document.getElementById(id);
  const samples = []; // of demo/machine, oldest first; {gap: true} where the stream could not be continued
  const offsets = {}; // of the last event, by channel
  const counts = { count: 0, missed: 0, reconnects: 0, resets: 0 };
  let source, lastEventId = "", heardAt = 0, patience = 20, clock = null;

  /* The stream */

  function connect() {
    // The browser sends the last event id itself when it reconnects; a source made anew takes it along in its address.
    source = new EventSource(STREAM + (lastEventId ? "&last_event_id=" + encodeURIComponent(lastEventId) : ""));
    source.addEventListener("sse.open", opened);
    source.addEventListener("sse.heartbeat", heard);
    source.addEventListener("sse.reset", reset);
    source.addEventListener("sse.close", (event) => show("reconnecting", "Reconnecting (" + JSON.parse(event.data).reason + ")"));
    source.addEventListener("sample", receive);
    source.addEventListener("message", receive);
    source.addEventListener("error", cut);
  }

  function opened(event) {
    if (lastEventId) add("reconnects", 1);
    patience = JSON.parse(event.data).heartbeat + 5;
    remember(event);
    show("live", "Live");
  }

  function heard() {
    heardAt = performance.now();
  }

  function remember(event) {
    heard();
    lastEventId = event.lastEventId;
    byId("last").textContent = lastEventId;
  }

  function receive(event) {
    const entry = event.lastEventId.split("~")[0].split("="); // the first one is this event's own
    remember(event);
    follow(entry[0], Number(entry[1].split("-")[0]));
    add("count", 1);
    if (entry[0] === "demo/machine" && event.type === "sample") sampled(JSON.parse(event.data));
    if (entry[0] === "demo/hello") list("#" + offsets[entry[0]], event.data);
  }

  // Offsets are 1, 2, 3…: the page can see for itself that nothing is missing.
  function follow(channel, offset) {
    if (channel in offsets && offset > offsets[channel] + 1) add("missed", offset - offsets[channel] - 1);
    offsets[channel] = offset;
  }

  // What came before cannot be continued: mark the place and go on. A page with state would fetch it again here.
  function reset(event) {
    const told = JSON.parse(event.data);
    remember(event);
    add("resets", 1);
    if (told.missed) add("missed", told.missed);
    delete offsets[told.channel];
    if (told.channel === "demo/machine") samples.push({ gap: true, at: now() });
    else list("reset", "Earlier events may be missing: " + told.reason, "told");
    draw();
  }

  function cut() {
    if (source.readyState === EventSource.CLOSED) {
      // The server said no, or the browser has given up: only a new source tries again.
      show("refused", "No stream, trying again (does SSE_PUBLIC allow demo/*?)");
      setTimeout(connect, 5000 + 5000 * Math.random());
    } else if (byId("state").dataset.state !== "reconnecting") {
      show("reconnecting", "Reconnecting");
    }
  }

  function watch() {
    const silent = Math.round((performance.now() - heardAt) / 1000);
    if (byId("state").dataset.state === "live" && silent > patience) show("quiet", "Nothing heard for a while");
    else if (byId("state").dataset.state === "quiet" && silent <= patience) show("live", "Live");
    draw();
  }

  /* What is told in words */

  function show(state, text) {
    if (byId("state").textContent === text) return; // a live region speaks at each change
    byId("state").dataset.state = state;
    byId("state").textContent = text;
  }

  function add(name, number) {
    counts[name] += number;
    byId(name).textContent = counts[name].toLocaleString("en");
  }

  function list(label, text, kind) {
    const item = document.createElement("li");
    const mark = item.appendChild(document.createElement("b"));
    const body = item.appendChild(document.createElement("span"));
    mark.textContent = label;
    body.textContent = text.length > 2000 ? text.slice(0, 2000) + "…" : text;
    if (kind) body.className = kind;
    byId("events").prepend(item);
    while (byId("events").childElementCount > LISTED) byId("events").lastChild.remove();
    speak(body.textContent.slice(0, 200));
  }

  let spokenAt = -Infinity;
  function speak(text) {
    if (performance.now() - spokenAt < 5000) return; // a flood is not read out
    spokenAt = performance.now();
    byId("spoken").textContent = "New event: " + text;
  }

  /* The charts */

  // The machine's time now, whatever this browser's clock says.
  function now() {
    return clock ? clock.at + (performance.now() - clock.heardAt) / 1000 : 0;
  }

  function sampled(sample) {
    clock = { at: sample.at, heardAt: performance.now() };
    samples.push(sample);
    const delay = Date.now() - sample.at * 1000;
    byId("delay").textContent = delay >= 0 && delay < 5000 ? Math.round(delay) + " ms" : "–"; // else the clocks differ
    requestDraw();
  }

  const percent = (value) => (value < 10 ? value.toFixed(1) : Math.round(value)) + " %";
  const plain = (value) => value.toFixed(2);
  const bytes = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
  const rate = (value) => scaled(value, 1000, ["B/s", "kB/s", "MB/s", "GB/s"]);

  function scaled(value, base, units) {
    let unit = 0;
    while (value >= 1000 && unit < units.length - 1) {
      value /= base;
      unit += 1;
    }
    return (value < 10 && unit > 0 ? value.toFixed(1).replace(".0", "") : Math.round(value)) + " " + units[unit];
  }

  // The next of 1, 2, 5 × 10ⁿ.
  function roundUp(value) {
    const power = Math.pow(10, Math.floor(Math.log10(value)));
    return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.9999);
  }

  // The next power of two: bytes of memory look odd otherwise.
  const doubleUp = (value) => Math.pow(2, Math.ceil(Math.log2(value)));

  // Where next to nothing else moves, as in a sandbox, the loopback is drawn.
  const quietNetwork = () => samples.every((s) => s.gap || s.network.in + s.network.out < 1000);
  const traffic = (s) => (quietNetwork() ? s.loopback : s.network);

  const charts = [
    {
      id: "cpu", lines: [(s) => s.cpu], format: percent,
      top: (highest) => Math.min(100, Math.max(10, roundUp(highest))),
      tell: (s) => [percent(s.cpu), "of " + s.cores + (s.cores === 1 ? " core" : " cores")],
    },
    {
      id: "load", lines: [(s) => s.load[0], (s) => s.load[1]], format: plain,
      top: (highest) => Math.max(0.2, roundUp(highest)),
      tell: (s) => [plain(s.load[0]), "over 1 min", plain(s.load[1]) + " over 5"],
    },
    {
      id: "memory", lines: [(s) => s.memory.used], format: bytes,
      top: (highest, s) => Math.min(s.memory.total, doubleUp(highest * 1.1)),
      tell: (s) => [bytes(s.memory.used), "of " + bytes(s.memory.total)],
    },
    {
      id: "network", lines: [(s) => traffic(s).in, (s) => -traffic(s).out], mirrored: true, format: rate,
      top: (highest) => Math.max(1000, roundUp(highest)),
      tell: (s) => [rate(traffic(s).in), "in", rate(traffic(s).out) + " out"],
    },
  ];

  function make(tag, attributes, parent) {
    const element = document.createElementNS(SVG, tag);
    Object.keys(attributes).forEach((name) => element.setAttribute(name, attributes[name]));
    return parent.appendChild(element);
  }

  function label(plot, place, text) {
    const element = plot.appendChild(document.createElement("p"));
    element.className = place;
    element.textContent = text;
    element.setAttribute("aria-hidden", "true");
    return element;
  }

  function prepare(chart) {
    const card = byId(chart.id);
    const plot = card.querySelector(".plot");
    chart.title = card.querySelector("h2");
    chart.value = card.querySelector(".now b");
    chart.rest = card.querySelector(".now span");
    chart.rest.className = chart.lines.length > 1 ? "first" : "";
    chart.second = chart.rest.parentNode.appendChild(document.createElement("span"));
    chart.second.className = "second";
    chart.svg = make("svg", { viewBox: "0 0 120 100", preserveAspectRatio: "none", role: "img" }, plot);
    [0.5, 50, 99.5].forEach((y) => make("line", { class: "grid", x1: 0, x2: 120, y1: y, y2: y }, chart.svg));
    chart.gaps = make("path", { class: "gap" }, chart.svg);
    chart.areas = chart.lines.map((_, i) => make("path", { class: "area " + ["first", "second"][i] }, chart.svg));
    chart.paths = chart.lines.map((_, i) => make("path", { class: "line " + ["first", "second"][i] }, chart.svg));
    chart.topLabel = label(plot, "top", "");
    label(plot, "from", "2 min ago");
    label(plot, "to", "now");
  }

  // Runs of samples that follow each other; where seconds are missing, the line is broken.
  function runs() {
    const found = [];
    let last = null;
    samples.forEach((s) => {
      if (s.gap) last = null;
      else {
        if (!last || s.at - last.at > 2.5) found.push([]);
        found[found.length - 1].push(s);
        last = s;
      }
    });
    return found;
  }

  function drawChart(chart, parts, x) {
    const drawn = [].concat.apply([], parts);
    const latest = drawn[drawn.length - 1];
    const values = [].concat.apply([], chart.lines.map((line) => drawn.map(line))).map(Math.abs);
    const highest = Math.max.apply(null, values);
    const top = chart.top(Math.max(highest, 1e-9), latest);
    const bottom = chart.mirrored ? -top : 0;
    const y = (value) => (99 - 98 * (Math.min(value, top) - bottom) / (top - bottom)).toFixed(2);

    chart.lines.forEach((line, i) => {
      const traces = parts.map((run) => run.map((s) => x(s.at) + " " + y(line(s))).join("L"));
      chart.paths[i].setAttribute("d", traces.map((trace) => "M" + trace).join(""));
      if (i > 0 && !chart.mirrored) return; // two areas over each other are mud
      chart.areas[i].setAttribute("d", traces.map((trace, n) =>
        "M" + x(parts[n][0].at) + " " + y(0) + "L" + trace + "V" + y(0) + "Z").join(""));
    });
    chart.gaps.setAttribute("d", samples.filter((s) => s.gap).map((s) => "M" + x(s.at) + " 0V100").join(""));
    chart.topLabel.textContent = chart.format(top);

    const told = chart.tell(latest);
    chart.value.textContent = told[0];
    chart.rest.textContent = told[1];
    chart.second.textContent = told[2] || "";
    chart.svg.setAttribute("aria-label", chart.title.textContent + ", last two minutes: " +
      told.join(" ") + " now, " + chart.format(Math.min.apply(null, values)) + " to " + chart.format(highest));
  }

  function draw() {
    const end = now();
    while (samples.length && samples[0].at < end - WINDOW - 2) samples.shift();
    const parts = runs();
    if (!parts.length) return;
    const x = (at) => (WINDOW - (end - at)).toFixed(2);
    byId("network").querySelector("h2").textContent = quietNetwork() ? "Network (loopback)" : "Network";
    charts.forEach((chart) => drawChart(chart, parts, x));
  }

  let asked = false;
  function requestDraw() {
    if (asked) return; // a replay is drawn once
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  }

  charts.forEach(prepare);
  byId("command").textContent = 'curl -d "hello" \\\n-H "Authorization: Bearer $KEY" \\\n' +
    new URL("sse/publish/demo/hello", document.baseURI).href;
  connect();
  setInterval(watch, 1000);
}());
