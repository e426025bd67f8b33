/*
 * Draws what the server tells, shows how it gets here, and breaks that on request.
 *
 * It speaks through #spoken, its only live region (polite, each line once):
 *   a break: its outcome, once, and nothing of the states in between; a copied command;
 *   a state that has lasted 3 s and differs from the state that was told last;
 *   messages on demo/hello that arrive after the page did: the first at once, then at most one line in 5 s, which
 *   says how many there are and reads the newest; a reset.
 * Each chart is a slider over its two minutes, whose value text reads the sample under the cursor:
 *   Left and Right (Down and Up) go by one sample, Page Up and Page Down by ten, Home to the oldest, End to the newest;
 *   Escape and leaving let the readout follow the newest again. The pointer does the same. Cursors move together.
 * The log, the messages and the table can be scrolled by the keyboard.
 */
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

function make(tag, kind, parent, text) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function shape(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "shape");
  svg.setAttribute("aria-hidden", "true");
  svg.appendChild(document.createElementNS(SVG, "use")).setAttribute("href", "#shape-" + name);
  return svg;
}

/* Speaking */

const SETTLED = 3000; // ms that a state lasts before it is told
const PAUSE = 5000; // ms between two lines about messages
const GROUPS = { connecting: "lost", waiting: "lost", live: "live", polling: "polling", closed: "closed" };
let toldGroup = "live", group = "live", settling = 0; // a page that starts well says nothing
let unread = 0, newest = "", readAt = -PAUSE, reading = 0;

function say(text) {
  const line = make("p", "", byId("spoken"), text);
  setTimeout(() => line.remove(), 10000); // or a screen reader would come across it again
}

function settle(state) {
  if (GROUPS[state] === group) return;
  group = GROUPS[state];
  waitToTell();
}

function waitToTell() {
  clearTimeout(settling);
  settling = setTimeout(tellState, SETTLED);
}

function tellState() {
  if (breaking || group === toldGroup) return; // the outcome of a break says how it is
  toldGroup = group;
  if (group === "live") say("Live again.");
  else say({ lost: "Connection lost", polling: "Polling", closed: "Closed" }[group] + (feed.reason ? ": " + feed.reason : "") + ".");
}

function read(text) {
  unread += 1;
  newest = text;
  if (!reading) reading = setTimeout(readNewest, Math.max(100, readAt + PAUSE - performance.now()));
}

function readNewest() {
  const text = newest.length > 150 ? newest.slice(0, 150) + "…" : newest;
  say(unread === 1 ? "Message: " + text : unread + " messages, the newest: " + text);
  readAt = performance.now();
  unread = reading = 0;
}

/* Events */

function receive(event) {
  follow(event.channel, Number(event.id.split("=")[1].split("-")[0]));
  add("count", 1);
  byId("last").textContent = feed.lastEventId;
  if (event.channel === "demo/machine" && event.type === "sample") sampled(event.json);
  if (event.channel === "demo/hello") {
    list("#" + offsets[event.channel], event.data);
    if (served) read(event.data); // and no replay
  }
  judge();
}

// Offsets are 1, 2, 3…: the page can see for itself that nothing is missing, and that nothing comes twice.
function follow(channel, offset) {
  if (offset <= offsets[channel]) add("repeated", 1);
  else if (offset > offsets[channel] + 1) add("missed", offset - offsets[channel] - 1);
  offsets[channel] = offset;
}

// The events before it cannot be continued: mark the place and go on. A page with state would fetch it again here.
function reset(told) {
  add("resets", 1);
  if (told.missed) add("missed", told.missed);
  delete offsets[told.channel];
  if (told.channel === "demo/machine") samples.push({ gap: true, at: now() });
  else list("reset", "Earlier events may be missing: " + told.reason, "told");
  log("Reset", told.channel + ": " + told.reason, "reset");
  if (!breaking) say("Reset of " + told.channel + ": " + told.reason + ".");
  requestDraw();
}

function add(name, number) {
  counts[name] += number;
  byId(name).textContent = counts[name].toLocaleString("en");
}

function list(label, text, kind) {
  const item = make("li");
  make("b", "", item, label);
  make("span", kind, item, text.length > 2000 ? text.slice(0, 2000) + "…" : text);
  byId("events").hidden = false;
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
  byId("tabs").textContent = !told.shared ? "each on its own"
    : told.tabs > 1 ? told.tabs + " share one connection" : "this one only";
  byId("reason").textContent = told.reason || "–";
  if (told.state === shown.state && told.transport === shown.transport && told.reason === shown.reason) return;
  if (delivers() && !shown.delivers) {
    if (served) add("reconnects", 1);
    served = true;
  }
  showState(told.state, STATES[told.state]);
  settle(told.state);
  document.querySelectorAll(".ways li").forEach((way) => {
    if (way.dataset.transport === told.transport && delivers()) way.setAttribute("aria-current", "step");
    else way.removeAttribute("aria-current");
  });
  const transport = told.state !== "polling" && TRANSPORTS[told.transport];
  log(STATES[told.state], [transport, told.reason].filter(Boolean).join(" · "), told.state);
  shown = { state: told.state, transport: told.transport, reason: told.reason, delivers: delivers() };
  if (breaking && !delivers()) breaking.broke = breaking.broke || performance.now();
  if (breaking && delivers() && (breaking.broke || told.transport !== breaking.transport)) {
    breaking.back = breaking.back || performance.now();
  }
}

function showState(state, words) {
  byId("pill").dataset.state = state;
  byId("pill").querySelector("use").setAttribute("href", "#shape-" + state);
  byId("state").textContent = words;
}

function log(words, why, kind) {
  const item = make("li");
  item.dataset.state = kind;
  item.append(shape(kind));
  make("time", "", item, new Date().toTimeString().slice(0, 8));
  const line = make("p", "", item);
  make("b", "", line, words);
  line.append(" " + why);
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
const title = (name) => name.charAt(0).toUpperCase() + name.slice(1);

function begin(name, expected) {
  if (breaking) tell(breaking.name, ""); // the effects of two breaks at once cannot be told apart
  breaking = { name: name, at: performance.now(), transport: feed.transport, missed: counts.missed, resets: counts.resets };
  log(title(name), "pressed", "pressed");
  ["cut", "buffer", "sleep"].forEach((each) => byId(each + "-outcome").classList.toggle("latest", each === name));
  tell(name, expected);
}

function tell(name, text) {
  byId(name + "-outcome").textContent = text;
}

function end(text) {
  const name = breaking.name;
  breaking = null;
  tell(name, text);
  say(title(name) + ": " + text);
  if (delivers()) toldGroup = group;
  else waitToTell();
}

const failed = (error) => breaking && end("Not done: " + error.message + ".");
const span = (from, to) => (to - from < 1000 ? Math.round(to - from) + " ms" : ((to - from) / 1000).toFixed(1) + " s");

// Called with the first event after the connection is back: its offset shows whether any event is missing.
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
  end(words.join(", ") + ".");
}

function cut() {
  begin("cut", "Cut. Waiting…");
  post("cut").catch(failed);
}

function sleep() {
  begin("sleep", "Asleep. Waiting until that is noticed…");
  post("sleep").catch(failed);
}

function buffer() {
  const on = !isBuffering();
  begin("buffer", on ? "Held back. Waiting for polls…" : "Let through. Trying the stream again…");
  // Only the next stream is held back, so this one is cut; polls go on as they are until the stream is back.
  post("buffer?on=" + Number(on)).then(() => {
    if (tabs) tabs.postMessage(on);
    showBuffering();
    if (on) return post("cut");
    return retry();
  }).catch(failed);
}

// Forget the verdict on this network, in every tab, because one of them has the connection.
function retry() {
  window.dispatchEvent(new Event("online"));
}

function showBuffering() {
  byId("buffer").setAttribute("aria-pressed", String(isBuffering()));
}

function watch() {
  if (breaking && performance.now() - breaking.at > ATTEMPT * 1000) end("Nothing has changed in " + ATTEMPT + " s.");
  if (document.hidden) return;
  showBuffering(); // the cookie ends by itself, or in another tab
  draw();
}

/* Copying the command */

function copy() {
  if (!navigator.clipboard) return select();
  return navigator.clipboard.writeText(byId("command").textContent).then(() => copied("Copied", "Command copied."), select);
}

// For a page that may not write to the clipboard.
function select() {
  getSelection().selectAllChildren(byId("command"));
  copied("Selected", "The command is selected. Copy it with the keyboard.");
}

let copying = 0;
function copied(word, spoken) {
  const button = byId("copy");
  button.textContent = "";
  make("span", "copied", button, word).prepend(shape("done"));
  clearTimeout(copying);
  copying = setTimeout(() => { button.textContent = "Copy"; }, 3000);
  say(spoken);
}

/* The figures */

// The machine's time now, whatever this browser's clock says.
function now() {
  return clock ? clock.at + (performance.now() - clock.heardAt) / 1000 : 0;
}

function sampled(sample) {
  clock = { at: sample.at, heardAt: performance.now() };
  samples.push(sample);
  while (samples[0].at < sample.at - WINDOW - 2) samples.shift();
  const delay = Date.now() - sample.at * 1000;
  byId("delay").textContent = delay >= 0 && delay < 5000 ? Math.round(delay) + " ms" : "–"; // a replay, or the clocks differ
  requestDraw();
}

const percent = (value) => (value < 10 ? value.toFixed(1) : Math.round(value)) + " %";
const plain = (value) => value.toFixed(2);
const bytes = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const rate = (value) => scaled(value, 1000, ["B/s", "kB/s", "MB/s", "GB/s"]);
const time = (at) => new Date(at * 1000).toTimeString().slice(0, 8);

function scaled(value, base, units) {
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= base;
    unit += 1;
  }
  return (value < 10 && unit > 0 ? value.toFixed(1).replace(".0", "") : Math.round(value)) + " " + units[unit];
}

// The next larger of 1, 2 and 5 × 10ⁿ.
function roundUp(value) {
  const power = Math.pow(10, Math.floor(Math.log10(value)));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.9999);
}

// The next power of two: bytes of memory look odd otherwise.
const doubleUp = (value) => Math.pow(2, Math.ceil(Math.log2(value)));

// If there is next to no other traffic, as in a sandbox, the loopback's is drawn.
const quietNetwork = () => samples.every((s) => s.gap || s.network.in + s.network.out < 1000);
const traffic = (s) => (quietNetwork() ? s.loopback : s.network);
const cores = (s) => "of " + s.cores + (s.cores === 1 ? " core" : " cores");

// For each line, `tell` gives a value, its words, and the words that are read aloud if they differ. `tick` labels the
// axis, which is `axis` pixels wide.
const charts = [
  {
    id: "cpu", axis: 46, lines: [(s) => s.cpu], tick: (value) => Math.round(value) + " %",
    top: (highest) => Math.min(100, Math.max(10, roundUp(highest))),
    tell: (s) => [[percent(s.cpu), cores(s)]],
  },
  {
    id: "load", axis: 36, lines: [(s) => s.load[0], (s) => s.load[1]], tick: (value) => String(Number(value.toFixed(2))),
    top: (highest) => Math.max(0.2, roundUp(highest)),
    tell: (s) => [[plain(s.load[0]), "1 min", "over 1 min"], [plain(s.load[1]), "5 min", "over 5 min"]],
  },
  {
    id: "memory", axis: 58, lines: [(s) => s.memory.used], tick: bytes,
    top: (highest) => Math.min(latest() ? latest().memory.total : Infinity, doubleUp(highest * 1.1)),
    tell: (s) => [[bytes(s.memory.used), "of " + bytes(s.memory.total)]],
  },
  {
    id: "network", axis: 64, lines: [(s) => traffic(s).in, (s) => -traffic(s).out], mirrored: true,
    tick: (value) => rate(Math.abs(value)),
    top: (highest) => Math.max(1000, roundUp(highest)),
    tell: (s) => [[rate(traffic(s).in), "in"], [rate(traffic(s).out), "out"]],
  },
];

/* The charts */

const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10, Home: -WINDOW * 2, End: WINDOW * 2 };
const together = window.uPlot && uPlot.sync("machine");
let rows = []; // the samples as they are drawn: where seconds are missing, a row without values breaks the line
let pinned = null; // the sample that the keyboard has put the cursors on

const latest = () => samples.filter((s) => !s.gap).pop();

// The page's colours in a form that a canvas takes, also if the system chooses them.
const palette = {};
function colour(name) {
  if (!palette[name]) {
    const probe = make("i", "colours", document.body);
    probe.style.color = "var(--" + name + ")";
    palette[name] = getComputedStyle(probe).color;
    probe.remove();
  }
  return palette[name];
}

function recolour() {
  Object.keys(palette).forEach((name) => delete palette[name]);
  charts.forEach((chart) => chart.plot && chart.plot.redraw(false, true));
}

function prepare(chart) {
  const card = byId(chart.id);
  chart.title = card.querySelector("h3");
  chart.at = make("span", "at", card);
  chart.now = make("p", "now", card);
  chart.told = chart.lines.map((_, i) => {
    if (chart.lines.length === 1) return [make("b", "", chart.now), make("span", "", chart.now)];
    const part = make("span", ["first", "second"][i], chart.now);
    make("i", "line", part);
    return [make("b", "", part), make("span", "", part)];
  });
  chart.told.forEach((pair) => pair[0].after(" "));
  if (!window.uPlot) return;
  chart.frame = make("div", "plot", card);
  chart.summary = make("p", "unseen", card);
  chart.summary.id = chart.id + "-summary";
  const times = make("p", "times", card);
  times.setAttribute("aria-hidden", "true");
  times.style.paddingRight = chart.axis + "px";
  ["2 min ago", "1 min ago", "now"].forEach((text) => make("span", "", times, text));
  makeSlider(chart);
  chart.plot = new uPlot(options(chart), [[], ...chart.lines.map(() => [])], chart.frame);
  followPointer(chart.plot);
  new ResizeObserver(() => chart.plot.setSize(size(chart))).observe(chart.frame);
}

// uPlot follows a mouse by itself.
function followPointer(plot) {
  plot.over.addEventListener("mousemove", () => { pinned = null; });
  plot.over.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse") pin(nearest(plot.posToIdx(event.clientX - plot.over.getBoundingClientRect().left)));
  });
  plot.over.addEventListener("pointerleave", (event) => event.pointerType !== "mouse" && pin(null));
}

const size = (chart) => ({ width: chart.frame.clientWidth, height: chart.frame.clientHeight });

function options(chart) {
  const grid = { stroke: () => colour("grid"), width: 1 };
  const bounds = (plot, least, most) => {
    const top = chart.top(Math.max(Math.abs(least || 0), Math.abs(most || 0), 1e-9));
    return [chart.mirrored ? -top : 0, top];
  };
  return Object.assign(size(chart), {
    padding: [8, 0, 4, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: together.key, setSeries: false, scales: ["x", null] } },
    scales: { x: { time: false, range: () => [now() - WINDOW, now()] }, y: { range: bounds } },
    axes: [
      { size: 0, grid: grid, ticks: { show: false }, splits: () => [now() - WINDOW, now() - WINDOW / 2, now()], values: () => [] },
      {
        side: 1, size: chart.axis, gap: 8, grid: grid, ticks: { show: false }, stroke: () => colour("soft"),
        font: "12px " + getComputedStyle(document.body).fontFamily,
        splits: (plot) => [plot.scales.y.min, (plot.scales.y.min + plot.scales.y.max) / 2, plot.scales.y.max],
        values: (plot, splits) => splits.map(chart.tick),
      },
    ],
    series: [{}].concat(chart.lines.map((_, i) => ({
      stroke: () => colour(i ? "soft" : "accent"),
      fill: i ? undefined : () => colour("wash"), // two areas that overlap look muddy
      fillTo: 0,
      width: 1.75,
      dash: i ? [4, 3] : undefined,
      points: { show: false },
    }))),
    hooks: { setCursor: [(plot) => readOut(chart, plot)], draw: [drawGaps] },
  });
}

function drawGaps(plot) {
  const { left, top, width, height } = plot.bbox;
  plot.ctx.save();
  plot.ctx.strokeStyle = colour("warn");
  plot.ctx.setLineDash([4, 4]);
  samples.filter((s) => s.gap).forEach((s) => {
    const x = plot.valToPos(s.at, "x", true);
    if (x < left || x > left + width) return;
    plot.ctx.beginPath();
    plot.ctx.moveTo(x, top);
    plot.ctx.lineTo(x, top + height);
    plot.ctx.stroke();
  });
  plot.ctx.restore();
}

function layRows() {
  let last = null;
  rows = [];
  samples.forEach((s) => {
    if (last && s.at <= last.at) return; // x only goes forward
    if (last && !last.gap && s.at - last.at > 2.5) rows.push({ gap: true, at: last.at + 1 });
    rows.push(s);
    last = s;
  });
}

function draw() {
  const least = now() - WINDOW;
  if (!latest()) return;
  if (pinned && pinned.at < least) pinned = samples.find((s) => !s.gap && s.at >= least) || null;
  layRows();
  byId("network").querySelector("h3").textContent = quietNetwork() ? "Network (loopback)" : "Network";
  charts.forEach(drawChart);
}

function drawChart(chart) {
  if (chart.plot) {
    chart.plot.setData([rows.map((s) => s.at)].concat(chart.lines.map((line) => rows.map((s) => (s.gap ? null : line(s))))));
    if (pinned) point(chart);
    if (document.activeElement !== chart.frame) describe(chart); // or a screen reader would read it each second
  }
  readOut(chart, chart.plot);
}

/* Reading them */

// The sample under the cursor, or the newest.
function readOut(chart, plot) {
  const under = underCursor(plot);
  const sample = under || latest();
  if (!sample) return;
  chart.tell(sample).forEach((pair, i) => [0, 1].forEach((n) => { chart.told[i][n].textContent = pair[n]; }));
  chart.at.textContent = under ? time(sample.at) + " · " + Math.floor(now() - sample.at) + " s ago" : "now";
}

function underCursor(plot) {
  if (pinned || !plot || plot.cursor.left < 0 || typeof plot.cursor.idx !== "number") return pinned;
  return nearest(plot.cursor.idx);
}

function nearest(index) {
  for (let away = 0; away < rows.length; away += 1) {
    const found = [rows[index - away], rows[index + away]].find((s) => s && !s.gap);
    if (found) return found;
  }
  return null;
}

const wording = (pair) => pair[2] || pair[1];
const words = (chart, sample) => chart.tell(sample).map((pair) => pair[0] + " " + wording(pair)).join(", ");

function makeSlider(chart) {
  const frame = chart.frame;
  frame.tabIndex = 0;
  frame.setAttribute("role", "slider");
  frame.setAttribute("aria-label", chart.title.textContent + " over two minutes");
  frame.setAttribute("aria-describedby", chart.summary.id);
  frame.addEventListener("keydown", (event) => step(chart, event));
  frame.addEventListener("focus", () => frame.matches(":focus-visible") && pin(latest()));
  frame.addEventListener("blur", () => pin(null));
  setValue(chart, { at: 0 }, "no sample yet");
}

function setValue(chart, sample, text) {
  chart.frame.setAttribute("aria-valuemin", Math.round(sample.at && now() - WINDOW));
  chart.frame.setAttribute("aria-valuemax", Math.round(now()));
  chart.frame.setAttribute("aria-valuenow", Math.round(sample.at));
  chart.frame.setAttribute("aria-valuetext", text);
}

function describe(chart) {
  const drawn = samples.filter((s) => !s.gap), s = latest();
  const ranges = chart.lines.map((line, i) => {
    const values = drawn.map(line).map(Math.abs);
    return chart.tick(Math.min(...values)) + " to " + chart.tick(Math.max(...values)) +
      (chart.lines.length > 1 ? " " + wording(chart.tell(s)[i]) : "");
  });
  chart.summary.textContent = "In the last two minutes " + ranges.join(", ") + ". Arrow keys read each second.";
  chart.frame.setAttribute("aria-label", chart.title.textContent + " over two minutes");
  setValue(chart, s, words(chart, s));
}

function step(chart, event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape" && latest()) {
    pin(null);
    describe(chart);
  } else if (event.key in STEPS && latest()) {
    event.preventDefault();
    move(chart, STEPS[event.key]);
  }
}

function move(chart, by) {
  const drawn = rows.filter((s) => !s.gap && s.at >= now() - WINDOW);
  const index = drawn.indexOf(underCursor(chart.plot) || drawn[drawn.length - 1]) + by;
  pin(drawn[Math.min(Math.max(index, 0), drawn.length - 1)]);
  setValue(chart, pinned, words(chart, pinned) + ", " + time(pinned.at));
}

function pin(sample) {
  pinned = sample;
  charts.forEach((chart) => {
    point(chart);
    readOut(chart, chart.plot);
  });
}

function point(chart) {
  if (!chart.plot) return;
  const left = pinned ? Math.max(chart.plot.valToPos(pinned.at, "x"), 0) : -10;
  chart.plot.setCursor({ left: left, top: pinned ? 0 : -10 });
}

// The table stays as it is while it is open, so that nothing moves under a reader.
function fillTable() {
  if (!byId("figures").open) return;
  let before = Infinity;
  byId("rows").textContent = "";
  samples.filter((s) => !s.gap).reverse().filter((s) => {
    if (s.at > before - 9.5) return false;
    before = s.at;
    return true;
  }).forEach((s) => {
    const row = make("tr", "", byId("rows"));
    make("th", "", row, time(s.at)).scope = "row";
    charts.forEach((chart) => chart.tell(s).forEach((pair) => make("td", "", row, pair[0])));
  });
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

function start() {
  charts.forEach(prepare);
  ["(prefers-color-scheme: dark)", "(forced-colors: active)"].forEach((query) => matchMedia(query).addEventListener("change", recolour));
  byId("figures").addEventListener("toggle", fillTable);
  byId("command").textContent = 'curl -d "hello" \\\n-H "Authorization: Bearer $THROUGHLINE_KEY" \\\n' +
    new URL("sse/publish/demo/hello", document.baseURI).href;
  if (tabs) tabs.onmessage = (event) => {
    showBuffering();
    if (!event.data) retry();
  };
  showBuffering();
  byId("cut").addEventListener("click", cut);
  byId("buffer").addEventListener("click", buffer);
  byId("sleep").addEventListener("click", sleep);
  byId("copy").addEventListener("click", copy);
  // A short heartbeat, so that the sleep is noticed soon.
  feed = SSE(new URL("sse", document.baseURI).href, {
    channels: ["demo/machine", "demo/hello"], replay: WINDOW, share: true, heartbeat: 5,
  });
  feed.on("sse.event", receive);
  feed.on("sse.reset", reset);
  feed.on("sse.state", changed);
  changed(feed);
  setInterval(watch, 1000);
}

if (typeof SSE === "undefined") showState("closed", "sse/sse.js has not been loaded");
else start();
