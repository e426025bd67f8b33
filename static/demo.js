// Draws what the server tells, shows how it gets here, and breaks that on request.
(function () {
  "use strict";

  const WINDOW = 120; // seconds drawn, and the events asked for at first
  const LISTED = 50;
  const SVG = "http://www.w3.org/2000/svg";
  const STATES = { connecting: "Connecting", live: "Live", polling: "Polling", waiting: "Waiting", closed: "Closed" };
  const TRANSPORTS = { eventsource: "EventSource", xhr: "Streamed XHR", poll: "Poll" };

  const byId = (id) => document.getElementById(id);
  const samples = []; // of demo/machine, oldest first; {gap: true} where the line could not be continued
  const offsets = {}; // of the last event, by channel
  const counts = { count: 0, missed: 0, repeated: 0, reconnects: 0, resets: 0 };
  let clock = null, feed;

  /* Events */

  function receive(event) {
    follow(event.channel, Number(event.id.split("=")[1].split("-")[0]));
    add("count", 1);
    byId("last").textContent = feed.lastEventId;
    if (event.channel === "demo/machine" && event.type === "sample") sampled(event.json);
    if (event.channel === "demo/hello") list("#" + offsets[event.channel], event.data);
    judge();
  }

  // Offsets are 1, 2, 3…: the page can see for itself that nothing is missing, and that nothing comes twice.
  function follow(channel, offset) {
    if (offset <= offsets[channel]) add("repeated", 1);
    else if (offset > offsets[channel] + 1) add("missed", offset - offsets[channel] - 1);
    offsets[channel] = offset;
  }

  // What came before cannot be continued: mark the place and go on. A page with state would fetch it again here.
  function reset(told) {
    add("resets", 1);
    if (told.missed) add("missed", told.missed);
    delete offsets[told.channel];
    if (told.channel === "demo/machine") samples.push({ gap: true, at: now() });
    else list("reset", "Earlier events may be missing: " + told.reason, "told");
    log("Reset", told.channel + ": " + told.reason, "waiting");
    draw();
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
    prepend("events", item);
  }

  function prepend(id, item) {
    byId(id).prepend(item);
    while (byId(id).childElementCount > LISTED) byId(id).lastChild.remove();
  }

  /* The connection */

  const delivers = () => feed.state === "live" || feed.state === "polling";
  let shown = {}, served = false;

  function changed(told) {
    byId("tabs").textContent = !told.shared ? "not shared"
      : told.tabs > 1 ? told.tabs + " share one connection" : "this one, ready to share";
    byId("reason").textContent = told.reason || "–";
    if (told.state === shown.state && told.transport === shown.transport && told.reason === shown.reason) return;
    if (delivers() && !shown.delivers) {
      if (served) add("reconnects", 1);
      served = true;
    }
    if (byId("state").textContent !== STATES[told.state]) { // a live region speaks at each change
      byId("state").dataset.state = told.state;
      byId("state").textContent = STATES[told.state];
    }
    document.querySelectorAll(".rungs li").forEach((rung) => {
      if (rung.dataset.transport === told.transport && delivers()) rung.setAttribute("aria-current", "step");
      else rung.removeAttribute("aria-current");
    });
    const transport = told.state !== "polling" && TRANSPORTS[told.transport];
    log(STATES[told.state], [transport, told.reason].filter(Boolean).join(" · "), told.state);
    shown = { state: told.state, transport: told.transport, reason: told.reason, delivers: delivers() };
    if (breaking && !delivers()) breaking.broke = breaking.broke || performance.now();
    if (breaking && delivers() && (breaking.broke || told.transport !== breaking.transport)) {
      breaking.back = breaking.back || performance.now();
    }
  }

  function log(what, why, kind) {
    const item = document.createElement("li");
    const time = item.appendChild(document.createElement("time"));
    const words = item.appendChild(document.createElement("p"));
    time.textContent = new Date().toTimeString().slice(0, 8);
    words.appendChild(document.createElement("b")).textContent = what;
    words.append(" " + why);
    item.dataset.state = kind;
    prepend("log", item);
  }

  /* Breaking it */

  const ATTEMPT = 60; // seconds until a break that shows no effect is given up
  const HELD_BACK = "demo_buffer=1";
  const tabs = "BroadcastChannel" in window ? new BroadcastChannel("demo") : null;
  let breaking = null; // {name, at, broke, back, transport, missed, resets}

  const post = (path) => fetch("demo/" + path, { method: "POST" }).then((answer) => {
    if (!answer.ok) throw new Error("the server said " + answer.status);
  });
  const isBuffering = () => document.cookie.split("; ").includes(HELD_BACK);

  function begin(name, expected) {
    if (breaking) tell(breaking.name, ""); // two at once cannot be told apart
    breaking = { name: name, at: performance.now(), transport: feed.transport, missed: counts.missed, resets: counts.resets };
    log(name.charAt(0).toUpperCase() + name.slice(1), "pressed", "pressed");
    tell(name, expected);
  }

  function tell(name, text) {
    byId(name + "-outcome").textContent = text;
    byId("spoken").textContent = text;
  }

  function failed(name) {
    return (error) => {
      breaking = null;
      tell(name, "Not done: " + error.message + ".");
    };
  }

  const span = (from, to) => (to - from < 1000 ? Math.round(to - from) + " ms" : ((to - from) / 1000).toFixed(1) + " s");

  // With the first event after it is back: whether any is missing shows in its place.
  function judge() {
    if (!breaking || !delivers()) return;
    const inPolls = breaking.name === "cut" || (breaking.name === "sleep" && feed.state === "polling");
    const unnoticed = inPolls && !breaking.broke && performance.now() - breaking.at > 5000;
    if (!breaking.back && !unnoticed) return;
    const missed = counts.missed - breaking.missed, resets = counts.resets - breaking.resets;
    const how = feed.state === "polling" ? "Polls" : "Back";
    const words = [how + " after " + span(breaking.at, breaking.back), missed + " missed"];
    if (unnoticed) words[0] = "The browser has asked again by itself";
    if (breaking.name === "sleep" && breaking.broke) {
      words[0] = "Noticed after " + span(breaking.at, breaking.broke) + ", back " + span(breaking.broke, breaking.back) + " later";
    }
    if (resets) words.push(resets + (resets === 1 ? " reset" : " resets"));
    tell(breaking.name, words.join(", ") + ".");
    breaking = null;
  }

  function cut() {
    begin("cut", "Cut. Waiting…");
    post("cut").catch(failed("cut"));
  }

  function sleep() {
    begin("sleep", "Asleep. Waiting for the silence to be noticed…");
    post("sleep").catch(failed("sleep"));
  }

  function buffer() {
    const on = !isBuffering();
    begin("buffer", on ? "Held back. Waiting for polls to take over…" : "Let through. Trying the stream again…");
    // Only the next stream is held back, so this one is cut; polls go on as they are until the stream is back.
    post("buffer?on=" + Number(on)).then(() => {
      if (tabs) tabs.postMessage(on);
      showBuffering();
      if (on) return post("cut");
      return retry();
    }).catch(failed("buffer"));
  }

  // What is remembered of this network no longer holds. In every tab: one of them has the connection.
  function retry() {
    window.dispatchEvent(new Event("online"));
  }

  function showBuffering() {
    byId("buffer").setAttribute("aria-pressed", String(isBuffering()));
  }

  function watch() {
    if (breaking && performance.now() - breaking.at > ATTEMPT * 1000) {
      tell(breaking.name, "Nothing has changed in " + ATTEMPT + " s.");
      breaking = null;
    }
    if (!document.hidden) showBuffering(); // the cookie ends by itself, or in another tab
    draw();
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
    byId("delay").textContent = delay >= 0 && delay < 5000 ? Math.round(delay) + " ms" : "–"; // a replay, or the clocks differ
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

  if (typeof SSE === "undefined") {
    byId("state").dataset.state = "closed";
    byId("state").textContent = "sse/sse.js has not been loaded";
    return;
  }
  charts.forEach(prepare);
  byId("command").textContent = 'curl -d "hello" \\\n-H "Authorization: Bearer $KEY" \\\n' +
    new URL("sse/publish/demo/hello", document.baseURI).href;
  if (tabs) tabs.onmessage = (event) => {
    showBuffering();
    if (!event.data) retry();
  };
  showBuffering();
  byId("cut").addEventListener("click", cut);
  byId("buffer").addEventListener("click", buffer);
  byId("sleep").addEventListener("click", sleep);
  // A short heartbeat, so that the sleep is noticed soon.
  feed = SSE(new URL("sse", document.baseURI).href, {
    channels: ["demo/machine", "demo/hello"], replay: WINDOW, share: true, heartbeat: 5,
  });
  feed.on("sse.event", receive);
  feed.on("sse.reset", reset);
  feed.on("sse.state", changed);
  changed(feed);
  setInterval(watch, 1000);
}());
