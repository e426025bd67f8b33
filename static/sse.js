/*
 * Throughline's embed script: server push that gets through. MIT licence.
 *
 * By tag, with no code at all:
 *
 *   <script src="https://push.example/sse/sse.js" data-channels="prices/acme orders" defer></script>
 *
 *   data-channels     the channels, separated by spaces
 *   data-view         in place of data-channels: a view of the app that answers with its channels (sse.subscribe)
 *   data-url          the service, such as https://push.example/sse; by default where this script comes from
 *   data-token        sent with each request as the parameter `token`
 *   data-token-url    where to get a ticket, as text or as the member `token` or `ticket` of JSON, before a
 *                     connection and again when it is about to expire
 *   data-replay       how many of the newest events of each channel to begin with
 *   data-credentials  send cookies to the service on another origin too
 *   data-share        "off": a connection of its own, instead of one for all tabs
 *   data-heartbeat    seconds of quiet before a heartbeat
 *   data-into         a selector: each event's text replaces the element's; to a list (ul, ol) an item is added;
 *                     pieces, which are events of type "text", are appended
 *   data-template     a text such as "{name}: {price}", or "#" and the id of an element to copy for each event;
 *                     {type}, {data}, {id}, {channel} and members of JSON data such as {user.name} are filled in
 *   data-types        the types of the events to show there; by default all
 *   data-key          such as "{id}", with data-template: an event updates the row that has this key, or adds one
 *   data-remove       types of events that remove the row with their key
 *   data-order        "append" (the default) or "prepend": where a new row is put
 *   data-keep         how many rows to keep there (100)
 *
 *   On the tag's element, and once on `document` if several tags have the channel: "sse:TYPE" for each event, detail
 *   {channel, id, type, data, json}; "sse-reset", detail {channel, reason, missed, id}; "sse-end", detail {channel,
 *   reason, id}. For each tag, on both: "sse-state", detail {state, reason, transport, shared, tabs, channels};
 *   "sse-source", detail {channel, state}; "sse-auth", detail {expires}, in seconds.
 *
 * By hand:
 *
 *   var feed = SSE("/sse", {channels: ["orders"], token, tokenUrl, replay, credentials, share, heartbeat, lastEventId});
 *   var feed = SSE({view: "/inbox/events"});                       // the view chooses the channels
 *   token may be function (use) { … use(token); }: called for a new one, when data-token-url would be requested
 *   feed.on("created", function (event) { show(event.json); });    // also off(type, fn), close()
 *   feed.on("sse.event" | "sse.state" | "sse.reset" | "sse.end" | "sse.source" | "sse.auth", …);
 *   feed.text(channel)                                             // its pieces so far; a reset empties it
 *   feed.state       connecting | live | polling | waiting | closed; beside it reason, transport, shared, tabs, lastEventId
 *   new SSE.EventSource(url, {withCredentials})                    // the standard interface
 *   SSE.noConflict()                        // gives window.SSE back; ours is document.documentElement.sse, too
 *
 * How it works, from the bottom up: a Parser and three transports; `ask`, which is one poll; a Line, which keeps a
 * connection going over the transport that works; a Member, which shares the line of the tab that leads; a Feed, which
 * the page holds. Events and resets arrive in *steps*: {channel, from, to, items} has all items between two positions
 * of a channel. A feed takes a step only if its own position is the step's `from`. So no event is lost or doubled,
 * over any transport and from any tab. The end of a channel is an item, too. A channel that has ended moves from
 * `places` to `ends`, and is not asked for again.
 */
(function (root, global) { // equal in a classic script; different in a module, and outside of browsers
  "use strict";

  var VERSION = "0.1.0", document = root.document, before = root.SSE;
  if (global === root && document.documentElement.sse) {
    document.documentElement.sse.start();
    return document.documentElement.sse;
  }

  var PATIENCE = 3000; // ms for a stream's first message
  var REMEMBERED = 600000; // ms that a host's streams are not tried again
  var LEARNT = 86400000; // ms that what a host's proxies need is remembered
  var LONGEST_WAIT = 20000; // ms between two tries
  var SHORTEST = 3; // seconds, of a heartbeat and of a poll
  var HOLD = 25; // seconds that a poll waits for an event
  var ANSWER_GAP = 10000; // ms without a byte, after which an answer that has begun is given up
  var LONGEST_ANSWER = 600000; // ms from its first byte to its last
  var LONGEST_TEXT = 2000000; // characters that one XMLHttpRequest may gather
  var SILENT_LEADER = 40000; // ms without a word after which a tab out of sight asks the leader for one
  var WORD = 1500; // ms for a leader's answer
  var FIRST_WORD = 2000; // ms for a leader's answer to a newcomer
  var LOCK = 1000; // ms for a lock that is taken from a leader without an answer
  var GONE = 75000; // ms after which a tab out of sight no longer counts
  var FRESH = 30000; // ms that a token is used for new connections: a ticket lives 60 s
  var MOST_TEXT = 16000000; // characters that a feed keeps of a channel's pieces
  var MOST_KNOWN = 10000; // events that `document` was told of; a service keeps 1,000 of each channel by itself
  var FINAL = { 400: 1, 401: 1, 403: 1, 406: 1 }; // statuses that close a feed, if the service itself answers so
  var CODE = /^(script|style|template)$/i; // elements whose text is not for readers
  var PIECE = "text"; // the type of the pieces of a text
  var OWN_TYPES = [
    "sse.open", "sse.heartbeat", "sse.event", "sse.reset", "sse.end", "sse.source", "sse.auth", "sse.close"
  ];

  /* Small things */

  function noop() {}

  // The wall clock, for times that other pages read. It may be set at any time: times in the future are not believed.
  function date() {
    return Date.now();
  }

  // The clock of every duration: it only goes forward. In some browsers performance.now stands still while the machine
  // sleeps. So if the wall clock jumps ahead of it, the jump is added. A wall clock that is set forward looks like sleep.
  var steady = root.performance && root.performance.now ? root.performance : Date;
  var gap = date() - steady.now(), added = gap;

  function now() {
    var before = gap;
    gap = date() - steady.now();
    if (gap - before > 2000) added += gap - before;
    return steady.now() + added;
  }

  // Without a prototype: "constructor" is a channel's name like any other.
  function map(other) {
    var made = Object.create(null), name;
    for (name in other) made[name] = other[name];
    return made;
  }

  function parse(text) {
    try {
      return JSON.parse(text);
    } catch (error) {
      return;
    }
  }

  // The page's own code: an error in it stops nothing here, and is reported as the page's own where a browser can.
  function call(listener, event, self) {
    try {
      if (typeof listener === "function") listener.call(self, event);
      else listener.handleEvent(event);
    } catch (error) {
      if (root.reportError) root.reportError(error);
      else {
        root.setTimeout(function () {
          throw error;
        }, 0);
      }
    }
  }

  // To the page's author, who may have no code that listens.
  function warn(text) {
    if (root.console) root.console.warn("SSE: " + text);
  }

  function decode(text) {
    try {
      return decodeURIComponent(text.replace(/\+/g, " "));
    } catch (error) {
      return text;
    }
  }

  function unique() {
    return Math.random().toString(36).slice(2);
  }

  // This page's name at the service, on all its connections: who is present is counted by it.
  var CLIENT = (unique() + unique() + unique()).slice(0, 16);

  function isEmpty(object) {
    return !Object.keys(object).length;
  }

  function absolute(url) {
    var link;
    if (!document) throw new Error("SSE: there is no page here: make feeds in a browser");
    link = document.createElement("a");
    link.href = url;
    link.href = link.href; // Internet Explorer fills in protocol and host only now
    return link;
  }

  // A name for the secret that tells two users apart. A token that is renewed for the same user keeps it.
  function identity(token) {
    var claims;
    if (!token) return "";
    try {
      claims = parse(root.atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
    } catch (error) {
      claims = null;
    }
    if (claims && claims.sub) return "user " + claims.iss + " " + claims.sub;
    return "token " + token;
  }

  function formatId(places, first) {
    var names = Object.keys(places).filter(function (channel) {
      return places[channel] && channel !== first;
    });
    if (first) names.unshift(first);
    return names.map(function (channel) {
      return channel + "=" + places[channel];
    }).join("~");
  }

  function parseId(id) {
    var places = map();
    (id || "").split("~").forEach(function (entry) {
      var at = entry.indexOf("=");
      if (at > 0) places[entry.slice(0, at)] = entry.slice(at + 1);
    });
    return places;
  }

  /* Where a feed or a line stands: `places` has its channels, `ends` those that have ended */

  function both(places, ends) {
    var all = map(places), channel;
    for (channel in ends) all[channel] = ends[channel];
    return all;
  }

  function put(places, ends, channel, position, over) {
    delete (over ? places : ends)[channel];
    (over ? ends : places)[channel] = position;
  }

  // A view's answer names the view's channels. Returns true if they are others than before.
  function adopt(places, ends, names) {
    var changed = false;
    [places, ends].forEach(function (known) {
      Object.keys(known).forEach(function (channel) {
        if (names.indexOf(channel) < 0) changed = delete known[channel];
      });
    });
    names.forEach(function (channel) {
      if (channel in places || channel in ends) return;
      places[channel] = "";
      changed = true;
    });
    return changed;
  }

  /* The memory of a host: shared by all tabs where there is localStorage */

  function load(key) {
    try {
      return parse(root.localStorage.getItem(key)) || {};
    } catch (error) {
      return {};
    }
  }

  function save(key, value) {
    try {
      root.localStorage.setItem(key, JSON.stringify(value));
    } catch (error) {
      // full, or forbidden: this page remembers by itself
    }
  }

  function lasts(until) {
    return until > date() && until <= date() + REMEMBERED;
  }

  function Memory(host) {
    var key = "sse:" + host, own = { at: date() - LEARNT };

    function get(name) {
      var stored = load(key);
      // By another tab, or an earlier page, and newer than our own, which may have been kept by a wrong clock.
      if (stored.at <= date() && !(stored.at <= own.at && own.at <= date())) own = stored;
      return own[name];
    }

    function keep(name, value) {
      own[name] = value;
      own.at = date();
      save(key, own);
    }

    return {
      get: get,
      keep: keep,
      polls: function () {
        return lasts(get("until"));
      },
      poll: function (why) {
        keep("why", why);
        keep("until", date() + REMEMBERED);
      },
      stream: function () {
        if (get("until")) keep("until", 0);
      }
    };
  }

  // A browser allows six connections a host to all its tabs together, so the lines of all tabs are counted: the first
  // four may stream, or two where tabs cannot share. The others poll. A shared line has a seat, which its next leader takes.
  function Crowd(host, most, seat) {
    var prefix = "sse:tabs:" + host + " ", me = seat || date().toString(36) + unique(), before, countedAt = now();

    function count(leaving) {
      var store, time = date(), mine = prefix + me, gap = now() - countedAt;
      before = seat === undefined ? Infinity : 0; // a feed's own line, and no count: others may have taken all
      countedAt += gap;
      try {
        store = root.localStorage;
        if (leaving) return store.removeItem(mine);
        store.setItem(mine, time + (gap > 15000 ? GONE : 15000)); // out of sight, there may be one tick a minute
        before = Object.keys(store).filter(function (key) {
          var left = store.getItem(key) - time;
          if (key.indexOf(prefix)) return;
          if (left > 0 && left <= GONE) return key < mine;
          store.removeItem(key);
        }).length;
      } catch (error) {
        // forbidden, or full
      }
    }

    count();
    countedAt -= 3000; // once more soon: tabs that are restored together do not see each other at first
    return {
      seat: me,
      tick: function (time) {
        if (time - countedAt > 4000) count();
      },
      // Why it is to poll, if it is.
      full: function () {
        return before < most ? "" : before < Infinity ? "more than two tabs"
          : "other tabs cannot be counted here";
      },
      leave: function () {
        count(true);
      }
    };
  }

  /* text/event-stream (WHATWG HTML 9.2.6). Its input is text: the caller has decoded the bytes and removed a BOM */

  function Parser(dispatch, retry) {
    var rest = "", half = false, type = "", data = null, id = "";

    function field(name, value) {
      if (name === "data") data = data === null ? value : data + "\n" + value;
      else if (name === "event") type = value;
      else if (name === "id" && value.indexOf("\0") < 0) id = value;
      else if (name === "retry" && /^[0-9]+$/.test(value) && retry) retry(Number(value));
    }

    function line(text) {
      var colon = text.indexOf(":"), event;
      if (text === "") {
        event = { type: type || "message", data: data, id: id };
        type = "";
        data = null;
        if (event.data !== null) dispatch(event);
      } else if (colon < 0) field(text, "");
      else if (colon > 0) field(text.slice(0, colon), text.slice(colon + (text.charAt(colon + 1) === " " ? 2 : 1)));
    }

    this.feed = function (text) {
      var lines;
      if (text === "") return;
      if (half && text.charAt(0) === "\n") text = text.slice(1); // its CR has ended the line already
      half = text.charAt(text.length - 1) === "\r";
      lines = (rest + text).split(/\r\n|\n|\r/);
      rest = lines.pop();
      lines.forEach(line);
    };
  }

  /* The transports. Each returns a function that ends it without calling `end` */

  // The EventSource must not reconnect by itself, because its id has only one channel. WebKit restores a closed
  // EventSource when its page comes back by "Back". So each event that arrives after the end closes it again, and is
  // ignored.
  function openEventSource(url, credentials, message, end) {
    var source = new root.EventSource(url, { withCredentials: credentials }), over = false;

    function listen(type, act) {
      source.addEventListener(type, function (event) {
        if (over) source.close();
        else act(type, event.data, event.lastEventId);
      });
    }

    function stop() {
      over = true;
      source.close();
    }

    OWN_TYPES.forEach(function (type) {
      listen(type, message);
    });
    listen("open", noop);
    listen("error", function () {
      stop();
      end();
    });
    return stop;
  }

  function openXhr(url, credentials, message, end) {
    var xhr = new root.XMLHttpRequest(), read = 0, over = false;
    var parser = new Parser(function (event) {
      if (!over) message(event.type, event.data, event.id);
    });

    function take() {
      var text;
      if (over || xhr.readyState < 3) return;
      if (xhr.status === 200) {
        text = xhr.responseText;
        parser.feed(text.slice(read));
        read = text.length;
      }
      if (!over && (xhr.readyState === 4 || read > LONGEST_TEXT)) {
        stop();
        end();
      }
    }

    function stop() {
      over = true;
      xhr.abort();
    }

    xhr.open("GET", url);
    xhr.withCredentials = credentials;
    xhr.onreadystatechange = xhr.onprogress = take;
    xhr.send();
    return stop;
  }

  // Waits `patience` ms for an answer to begin, ANSWER_GAP for each further byte, and LONGEST_ANSWER for all of it.
  // Calls answer(status, text, Retry-After in ms, bytes that came).
  function get(url, credentials, patience, answer, accept) {
    var xhr = new root.XMLHttpRequest(), bytes = 0, began = 0, timer;

    function finish(status) {
      var after = status > 400 ? Number(xhr.getResponseHeader("Retry-After")) : 0;
      var text = status ? xhr.responseText : "";
      stop();
      answer(status, text, Math.min(after * 1000 || 0, REMEMBERED), bytes);
    }

    function wait(delay) {
      root.clearTimeout(timer);
      timer = root.setTimeout(finish, delay, 0);
    }

    function stop() {
      root.clearTimeout(timer);
      xhr.onreadystatechange = xhr.onprogress = noop;
      xhr.abort();
    }

    xhr.open("GET", url);
    if (accept) xhr.setRequestHeader("Accept", accept);
    xhr.withCredentials = credentials;
    xhr.onreadystatechange = function () {
      if (xhr.readyState === 4) finish(xhr.status);
    };
    xhr.onprogress = function (event) {
      bytes = event.loaded;
      began = began || now();
      wait(Math.min(ANSWER_GAP, began + LONGEST_ANSWER - now()));
    };
    wait(patience);
    xhr.send();
    return stop;
  }

  /* Asking the service */

  // A view has one address for both transports, and chooses the channels. What its own query names is left to the app.
  function address(service, path, places, parameters) {
    var view = service.view, pairs = (view ? [] : Object.keys(places)).map(function (channel) {
      return ["channel", channel];
    }).concat([["token", service.token]], parameters, [["client", CLIENT], ["_", unique()]]).filter(function (pair) {
      return !view || ("&" + service.query).indexOf("&" + pair[0] + "=") < 0;
    });
    pairs.unshift(["last_event_id", formatId(places)]);
    return service.url + (view ? "" : path) + "?" + pairs.filter(function (pair) {
      return pair[1];
    }).map(function (pair) {
      return pair[0] + "=" + encodeURIComponent(pair[1]);
    }).concat(service.query || []).join("&");
  }

  // Connects with a fresh token, never without a token. If there is none, calls `failed` with the reason. Returns a
  // function that ends the connection.
  function authorized(service, connect, failed) {
    var stop = noop, timer;
    if (!service.renew || now() - service.renewedAt < FRESH) return connect();

    function use(token, status, after, own) {
      if (!timer) return;
      end();
      if (token && !/[\s<]/.test(token)) { // no login page
        service.token = token;
        service.renewedAt = now();
        stop = connect("a new token") || noop;
      } else failed({ final: own && FINAL[status], reason: "no token: " + status, after: after || 0, age: 0 });
    }

    function end() {
      root.clearTimeout(timer);
      timer = 0;
      stop();
    }

    timer = root.setTimeout(use, 10000, "", 0); // a function may never answer
    stop = service.renew(use) || noop;
    return end;
  }

  // Sends one poll for the events after these positions. Calls done(fault) or done(null, steps, answer).
  function ask(service, places, seconds, replay, done, again) {
    var asked = map(places), began, size = 1024, stop;

    function connect() {
      began = now();
      return get(address(service, "/poll", asked, [["timeout", seconds], ["replay", replay], ["max_bytes", size]]),
        service.credentials, (seconds + 10) * 1000, answered, service.view && "application/json");
    }

    function answered(status, text, after, bytes) {
      var json = parse(text), answer = json || {}, error = answer.error || {}, age = now() - began, broken = false;
      var own = typeof error.code === "string"; // a proxy or a login page has the same statuses
      after *= 1 + Math.random() / 2;
      if (status === 200 && Array.isArray(answer.events) && Array.isArray(answer.resets)) {
        answer.quick = age < 300;
        // The next answer should take about a second. An answer with `more` came at once, so its age is the time that
        // the network took.
        size *= Math.min(service.growth, Math.max(0.25, 1000 / age));
        if (answer.more) service.bytes = Math.min(service.most, size);
        return done(null, toSteps(service, asked, answer), answer);
      }
      if (status === 401 && (service.renew || after) && !again) {
        service.renewedAt = 0; // after a revocation, only what is issued a little later is taken
        after = root.setTimeout(function () {
          stop = ask(service, places, seconds, replay, done, true);
        }, after);
        stop = function () {
          root.clearTimeout(after);
        };
        return;
      }
      if (!status || (status === 200 && !json && text.charAt(0) === "{")) {
        broken = bytes > 0;
        service.growth = 2;
        service.most = Math.abs(bytes - service.cut) < bytes / 5 ? bytes : Infinity;
        service.cut = bytes;
        service.bytes = bytes || size / 4;
      }
      return done({
        status: status,
        final: own && FINAL[status],
        reason: broken ? "the answer broke off" : !status ? "no answer, or none for this origin"
          : status + " " + (own ? error.message : "not the service's answer"),
        channels: error.channels,
        after: after,
        broken: broken,
        age: age
      });
    }

    // Use only a few sizes, from 1 KiB to 1 MiB, because the service answers equal polls together.
    while (size * 2 <= service.bytes && size < 1048576) size *= 2;
    stop = authorized(service, connect, done);
    return function () {
      stop();
    };
  }

  function toSteps(service, asked, answer) {
    var reached = parseId(answer.last_event_id), steps = map(), list;
    Object.keys(service.view ? reached : asked).forEach(function (channel) {
      var from = asked[channel] || "";
      steps[channel] = { channel: channel, from: from, to: reached[channel] || from, items: [] };
    });
    answer.resets.forEach(function (reset) {
      steps[reset.channel].items.push(toNotice("sse.reset", reset, steps[reset.channel].to));
    });
    answer.events.forEach(function (event) {
      steps[event.channel].items.push(event);
    });
    Object.keys(answer.ended || {}).forEach(function (channel) {
      if (steps[channel]) steps[channel].items.push(toEnd(channel, answer.ended[channel], steps[channel].to));
    });
    list = Object.keys(steps).map(function (channel) {
      return steps[channel];
    }).filter(function (step) {
      return step.from !== step.to || step.items.length;
    });
    if (service.view) list.channels = Object.keys(steps);
    list.sources = answer.source;
    return list;
  }

  function toNotice(type, told, position) {
    told.type = type;
    told.id = told.channel + "=" + position;
    return told;
  }

  function toEnd(channel, reason, position) {
    return toNotice("sse.end", { channel: channel, reason: reason }, position);
  }

  // Gives the milliseconds until the next try: they grow exponentially, with full jitter.
  function Backoff() {
    var tries = 0;
    return {
      base: 3000,
      next: function () {
        tries += 1;
        return Math.random() * Math.min(LONGEST_WAIT, this.base * Math.pow(2, tries - 2));
      },
      reset: function () {
        tries = 0;
      }
    };
  }

  /*
   * A line keeps one connection going, over the transport that works. It calls its listener `heard`: steps(list),
   * beat() for each sign of life from the service, state(state, reason, transport), refused(fault) if the service
   * refuses it, channels(names) if its view has others, sources(states) of channels that have sources. A channel that
   * has ended leaves it, and the connection goes on. Without a channel, the line rests until one is added.
   *
   *   connecting  A stream is opened, and its first message makes it live. If the stream is silent for 3 s or refused,
   *               a poll is sent beside it. If the poll answers first → polling. But the first refusal → waiting, and
   *               the first silent stream on a line that has been live → connecting again.
   *   live        Silence for one and a half heartbeats → connecting, or polling if twice no message came after a
   *               stream's first second. sse.close or a cut → waiting. Repeated cuts without events → polling.
   *   polling     Lasts ten minutes, or until the network is back or the machine wakes. If an answer breaks off →
   *               waiting, then a stream, because a stream brings its events one by one.
   *   waiting     After the wait → connecting, or polling.
   */
  function Line(service, places, ends, crowd, heard) {
    var memory = service.memory, backoff = Backoff();
    var on = false, waiting = false, live = false, proven = false, refusals = 0;
    var stands = null, stream = null, asking = null, timer = 0, restart = 0, action = null, due = 0;
    var opened = 0, bursts = 0, heardAt = 0, period = 15, lastAge = 0, ages = 0, lastQuiet = 0, moved = false, movedAt = 0;

    // Browsers delay the timers of hidden pages, so a tick may come before the timer and acts in its place.
    function after(delay, act) {
      root.clearTimeout(timer);
      action = act;
      due = now() + delay;
      timer = root.setTimeout(fire, delay);
    }

    function fire() {
      var act = action;
      root.clearTimeout(timer);
      action = null;
      if (act) act();
    }

    function halt() {
      root.clearTimeout(timer);
      root.clearTimeout(restart);
      action = null;
      if (stream) stream();
      if (asking) asking();
      stream = asking = null;
      live = waiting = false;
    }

    function rests() {
      return !on || isEmpty(places);
    }

    // The positions that a request names. A view that is not told of an end would tell it again.
    function getPlaces() {
      return service.view ? both(places, ends) : places;
    }

    function run(why) {
      halt();
      if (rests()) return;
      if (crowd.full() || memory.polls()) poll();
      else open(why);
    }

    function wait(delay, why) {
      halt();
      waiting = true;
      after(delay, function () {
        run(why);
      });
      heard.state("waiting", why, ""); // at the end: whoever hears it may close the feed
    }

    function failed(fault) {
      halt();
      if (fault.final) heard.refused(fault);
      else wait(Math.max(backoff.next(), fault.after), fault.reason);
    }

    function move(steps) {
      var taken;
      if (steps.channels) choose(steps.channels);
      if (steps.sources) heard.sources(steps.sources);
      taken = steps.filter(function (step) {
        var channel = step.channel, last = step.items[step.items.length - 1];
        if (positionOf(channel) !== step.from) return false; // it has left, or has come back elsewhere
        put(places, ends, channel, step.to, last && last.type === "sse.end");
        return true;
      });
      if (taken.length) heard.steps(taken);
      if (rests()) halt();
    }

    // A view may begin a channel anew that has ended. Elsewhere, an end is final.
    function positionOf(channel) {
      return (service.view && channel in ends ? ends : places)[channel];
    }

    function choose(names) {
      if (adopt(places, ends, names)) heard.channels(names);
    }

    /* The stream */

    function open(why) {
      var transport = root.EventSource ? "eventsource" : "xhr";
      var first = true;

      function connect() {
        opened = heardAt = now();
        stands = map(getPlaces());
        moved = false;
        movedAt = 0;
        after(PATIENCE, question);
        return (root.EventSource ? openEventSource : openXhr)(address(service, "/stream", stands,
          [["ids", "delta"], ["types", "data"], ["heartbeat", heartbeat()]]), service.credentials, message, ended);
      }

      function message(type, data, id) {
        heardAt = now();
        if (heardAt - opened > 1000) bursts = 0;
        if (first) {
          first = false;
          action = null;
          if (asking) asking();
          asking = null;
        }
        if (type === "sse.open") begin(parse(data) || {}, transport);
        else if (type === "sse.close") leave(parse(data) || {});
        else if (type === "sse.heartbeat") heard.beat();
        else if (type === "sse.auth") expire(parse(data));
        else if (type === "sse.source") tellSource(parse(data));
        else if (OWN_TYPES.indexOf(type) >= 0) receive(type, data, id);
      }

      function ended() {
        stream = null;
        action = null;
        if (first) {
          if (!asking) question();
        } else cut(now() - opened, now() - heardAt);
      }

      stream = authorized(service, connect, failed);
      heard.state("connecting", why, transport);
    }

    // The token is about to expire. If it was fetched just now, a new one would expire as soon. So the next is fetched
    // when the token has expired.
    function expire(told) {
      if (service.renew && now() - service.renewedAt >= FRESH) {
        service.renewedAt = 0;
        restart = root.setTimeout(function () {
          asking = authorized(service, run, noop) || asking; // without one, the old one is good until it ends
        }, Math.random() * told.expires * 200);
      }
      heard.auth(told); // at the end: whoever hears it may close the feed
    }

    function heartbeat() {
      var learnt = bursts ? SHORTEST : memory.get("heartbeat") || Infinity;
      var wanted = Math.min(learnt, service.heartbeat || Infinity);
      return wanted < Infinity ? wanted : 0;
    }

    function tellSource(told) {
      var states = map();
      states[told.channel] = told.state;
      heard.sources(states);
    }

    function begin(told, transport) {
      var channels = told.channels || {}, states = map(), over = [];
      live = proven = true;
      refusals = 0;
      period = told.heartbeat || period;
      backoff.base = told.retry || backoff.base;
      memory.stream();
      if (service.view) choose(Object.keys(channels));
      heard.state("live", "the stream delivers", transport);
      Object.keys(channels).forEach(function (channel) {
        var told = channels[channel], at = stands[channel];
        if (told.source) states[channel] = told.source;
        if (!told.ended || !at) return;
        over.push({ channel: channel, from: at, to: at, items: [toEnd(channel, told.ended, at)] });
      });
      heard.sources(states);
      move(over);
    }

    function receive(type, data, id) {
      var at = id.indexOf("="), channel = id.slice(0, at), to = id.slice(at + 1), end = data.indexOf("\n");
      var from = stands[channel] || "";
      stands[channel] = to;
      if (type === "sse.event" && from === places[channel]) {
        moved = true;
        if (heardAt - opened > 1000) movedAt = movedAt || heardAt;
      }
      move([{
        channel: channel,
        from: from,
        to: to,
        items: [type !== "sse.event" ? toNotice(type, parse(data), to)
          : { channel: channel, id: id, type: data.slice(0, end), data: data.slice(end + 1) }]
      }]);
    }

    // The stream is silent or refused. A poll shows the reason. If the poll delivers first, polling is better here.
    function question() {
      asking = ask(service, getPlaces(), 1, 0, function (fault, steps) {
        var mute = stream !== null, reason = mute ? "the stream was mute" : "the stream was refused";
        asking = null;
        if (fault) return failed(fault);
        halt();
        move(steps);
        refusals += 1;
        if (rests()) return;
        if (refusals < 2 && !mute) return wait(backoff.next(), reason);
        if (refusals < 2 && proven) return open(reason); // a restart may have been at fault
        memory.poll(reason);
        return poll();
      });
    }

    function leave(goodbye) {
      if (goodbye.reason === "expired") service.renewedAt = 0;
      backoff.reset();
      wait(goodbye.retry >= 0 ? goodbye.retry : backoff.next(), goodbye.reason);
    }

    // A stream that brings events before it is cut makes progress. In a young stream any event counts. In an older one,
    // events that came at its beginning, or were let go at its end, do not.
    function cut(age, quiet) {
      var young = age <= PATIENCE;
      if (!young) moved = movedAt && now() - movedAt > 200;
      learn(age, quiet);
      if (moved || !young) backoff.reset();
      wait(young && moved ? backoff.base * (1 + Math.random()) / 2 : backoff.next(), "the stream was cut");
    }

    // If streams are cut twice after the same time of quiet, a proxy closes quiet connections: ask for faster
    // heartbeats. If they are cut three times at the same age (twice may be chance), a proxy bounds the age: change to
    // polls. But stay with a stream that brings events.
    function learn(age, quiet) {
      var idle = quiet > 2000 && Math.abs(quiet - lastQuiet) < 300 + quiet / 10;
      var wanted = Math.max(SHORTEST, Math.floor(quiet / 2000));
      ages = moved ? 0 : age < 15000 && Math.abs(age - lastAge) < 50 + age / 30 ? ages + 1 : 1;
      lastAge = age;
      lastQuiet = idle ? 0 : quiet;
      if (idle && wanted < period) memory.keep("heartbeat", wanted);
      else if (!moved && (idle || ages > 2)) memory.poll("the stream was cut again and again");
    }

    /* Polls */

    function poll() {
      var hold = lasts(memory.get("held")) ? memory.get("hold") : HOLD, began = now(), crowded = crowd.full();
      asking = ask(service, getPlaces(), crowded ? 1 : hold, 0, function (fault, steps, answer) {
        asking = null;
        if (fault) {
          shorten(fault, hold);
          if (fault.broken) memory.stream(); // a stream may bring events that a poll cannot
          return failed(fault);
        }
        backoff.reset();
        backoff.base = answer.retry || backoff.base;
        if (!steps.length) heard.beat();
        move(steps);
        if (rests() || asking || stream) return; // a listener has changed the line
        if (!crowded && !memory.polls()) {
          bursts = 1; // it has to be heard of soon
          return open("trying the stream again");
        }
        if (crowded && !answer.more) return after(2000 + Math.random() * 1000, run);
        // An empty answer that comes at once may be from a cache, so wait. After events, wait a little for more.
        if (!answer.more && now() - began < (steps.length ? 100 : 500)) return after(steps.length ? 100 : 1000, poll);
        return poll();
      });
      heard.state("polling", crowded || memory.get("why"), "poll");
    }

    function shorten(fault, hold) {
      var seconds = Math.floor(0.7 * fault.age / 1000);
      if (fault.broken || fault.age < SHORTEST * 1000 || (fault.status && fault.status !== 200 && fault.status < 500)) return;
      if (seconds >= hold) return;
      memory.keep("hold", Math.max(SHORTEST, seconds));
      memory.keep("held", date() + REMEMBERED);
    }

    return {
      places: places,
      ends: ends,
      start: function (why) {
        on = true;
        run(why);
      },
      stop: function () {
        on = false;
        halt();
        crowd.leave();
      },
      // Adds channels, or asks the view again. A line that waits for its next try includes them by itself.
      add: function (more) {
        Object.keys(service.view ? {} : more).forEach(function (channel) {
          put(places, ends, channel, more[channel]);
        });
        root.clearTimeout(restart);
        if (on && !waiting) restart = root.setTimeout(run, 100, "more channels");
      },
      drop: function (channels) {
        if (service.view) return;
        channels.forEach(function (channel) {
          delete places[channel];
          delete ends[channel];
        });
        if (rests()) halt();
      },
      // Tries again at once, because the network is back or the machine has woken.
      nudge: function (why) {
        backoff.reset();
        memory.stream();
        service.most = Infinity;
        run(why);
      },
      tick: function (time, asleep) {
        crowd.tick(time);
        if (stream && crowd.full()) run();
        if (action && time > due + 100) fire();
        if (live ? time - heardAt > period * 1500 + 1500 : asleep > 90000 || (asleep > 5000 && waiting)) {
          // Twice, no bytes came after the first burst: a proxy holds back the bytes behind it.
          bursts = live && asleep < 5000 && heardAt - opened < 1000 ? bursts + 1 : 0;
          if (bursts > 1) {
            memory.poll("the stream fell silent");
            run();
          } else this.nudge(live ? "nothing was heard" : "awake again");
        }
      }
    };
  }

  /*
   * A member is one of the tabs (and feeds of one page) that share a line. The member that has the lock leads: its
   * line has the channels of all members, and it posts each step to all. If a member's position is not where a step
   * begins, the member sends a poll of its own. If a channel has ended, its members leave. A leader that has left goes
   * on leading as long as others need its line.
   *
   *   newcomer   has posted `join` and queues for the lock          → follower, leader; FIRST_WORD without an answer: taker
   *   follower   hears the leader; if visible, it posts `knock`     → leader; WORD without an answer: taker
   *              after 0.3 s of quiet, if hidden after SILENT_LEADER
   *   taker      takes the lock without queueing                    → leader; LOCK without an answer: aside
   *   leader     answers `knock` with `here`                        → robbed, when another has taken the lock
   *   robbed     has stopped its line and queues again              → follower, leader; WORD without an answer: aside
   *   aside      has a line for itself, and queues                  → follower, leader
   *
   * Each message of a leader has the number of its term. A term lower than the highest heard comes from a former
   * leader that has just woken, so it is ignored. A leader that hears a higher term has been robbed. A page whose own
   * timers were late asks again.
   */
  var here = map(); // the members of this page: they do not ask each other, for they stand still together

  function canShare() {
    return Boolean(root.navigator.locks && root.BroadcastChannel && root.AbortController);
  }

  function Member(feed, service) {
    var user = identity(service.token);
    var name = ["sse", VERSION, service.url, service.query, service.credentials, user, service.view].join(" ");
    var me = unique(), bus = new root.BroadcastChannel(name), round = 0, closed = false;
    var leader = "", term = 0, seat = "", heardAt = 0, told = map(), joinedAt = 0;
    var line = null, aside = null, release = noop, members = map(), shown = [];
    var suspicion = 0, asking = null, doubt = 0, consequence = null, patience = new root.AbortController();

    here[me] = 1;

    function post(kind, message) {
      message.kind = kind;
      message.by = me;
      if (line) message.term = term;
      bus.postMessage(message);
    }

    /* Leading */

    function elect(steal) {
      var mine = round += 1, options = steal ? { steal: true } : { signal: patience.signal };
      root.navigator.locks.request(name, options, function () {
        if (closed || mine !== round) return;
        return new root.Promise(function (resolve) {
          release = resolve;
          lead();
        });
      }).then(noop, function () { // it was taken from us; or this page may have no locks
        if (closed || mine !== round) return;
        if (line) yieldLead();
        else feed.alone();
      });
    }

    // A robbed leader does not take the lead back: if tabs do not hear each other, two of them would do that for ever.
    function yieldLead() {
      line.stop();
      line = null;
      leader = "";
      release();
      elect(false);
      join();
      expect(stepAside, WORD);
    }

    // No tab leads, and no lock comes: this tab connects alone until it hears a leader or gets the lock.
    function stepAside() {
      elect(false);
      aside = feed.ownLine(2);
      aside.start("no other tab answers");
    }

    function lead() {
      var crowd;
      leader = me;
      term = Math.max(date(), term + 1);
      members = map();
      shown = ["connecting", "connecting for all tabs", ""];
      stopAsking();
      heard();
      crowd = Crowd(service.host, 4, seat);
      seat = crowd.seat;
      line = Line(service, map(feed.places), map(feed.ends), crowd, {
        steps: function (steps) {
          post("steps", { steps: steps });
          feed.take(steps);
        },
        state: function () {
          shown = arguments;
          tell();
        },
        beat: tell,
        channels: function (names) {
          feed.choose(names);
          tell(); // before the steps of the new ones
        },
        sources: function (states) {
          post("sources", { states: states });
          feed.hear(states);
        },
        auth: function (told) {
          post("auth", { told: told });
          feed.auth(told);
        },
        refused: refused
      });
      tell();
      root.setTimeout(function () { // the others say first what they need
        if (line) line.start(shown[1]);
      }, 50);
    }

    function tell() {
      var tabs = isEmpty(feed.places) ? 0 : 1;
      if (!line) return;
      Object.keys(members).forEach(function (id) {
        if (members[id].at < now() - 2 * SILENT_LEADER) leave(id);
        else tabs += 1;
      });
      heardAt = now();
      post("lead", {
        places: both(line.places, line.ends),
        shown: [shown[0], shown[1], shown[2]],
        tabs: tabs,
        seat: seat
      });
      feed.show(shown[0], shown[1], shown[2], true, tabs);
    }

    // A newcomer may know less than this line: that a channel has ended. Or more: that it was begun anew since. Then it
    // has asked the service after it had heard of the end.
    function admit(id, places, asked) {
      var known = id in members, more = map(), missing = false;
      members[id] = { at: now(), places: map(places) };
      Object.keys(places).forEach(function (channel) {
        if (channel in line.places || (channel in line.ends && !asked)) return;
        more[channel] = places[channel];
        missing = true;
      });
      if (missing) line.add(more);
      if (!known || missing) tell();
    }

    function leave(id) {
      delete members[id];
      line.drop(Object.keys(both(line.places, line.ends)).filter(function (channel) {
        return !(channel in feed.places) && !Object.keys(members).some(function (other) {
          return channel in members[other].places;
        });
      }));
    }

    // If the service refuses a channel to the common line, the feeds that need it connect alone, and the others stay.
    function refused(fault) {
      var listed = fault.channels, mine = false;
      var others = Object.keys(line.places).filter(function (channel) {
        var out = !listed || listed.indexOf(channel) >= 0;
        if (out && channel in feed.places) mine = true;
        return out && !(channel in feed.places);
      });
      if (others.length) {
        line.drop(others);
        post("out", { channels: others });
      }
      if (mine && (listed || !others.length)) feed.finish(fault);
      else line.start("a channel was refused to another tab");
    }

    /* Following */

    function join(asked) {
      joinedAt = now();
      post("join", { places: feed.places, asked: asked });
    }

    // Calls `what` if no message of the leader comes in time. If the timer is late, the tab asks once more, because
    // this page itself may have been stopped.
    function expect(what, wait, again) {
      var late = now() + wait + 500;
      root.clearTimeout(doubt);
      consequence = what;
      doubt = root.setTimeout(function () {
        doubt = 0;
        if (now() > late && !again) knock(what, wait, true);
        else what();
      }, wait);
    }

    function knock(what, wait, again) {
      post("knock", {});
      expect(what, wait, again);
    }

    function heard() {
      root.clearTimeout(doubt);
      doubt = 0;
      heardAt = now();
      if (aside) aside.stop();
      aside = null;
    }

    function takeLead() {
      elect(true);
      expect(stepAside, LOCK); // a browser whose locks never answer
    }

    // Another tab has asked the leader, and one question is enough. If two tabs ask at once, the tab with the smaller
    // name continues.
    function standBack(other) {
      if (!document.hidden && !aside && (!doubt || (consequence === takeLead && other < me))) expect(takeLead, WORD + 500);
    }

    function follow(message) {
      var fresh = leader !== message.by, stands = map(message.places);
      if (fresh) told = map();
      leader = message.by;
      seat = message.seat;
      if (service.view) feed.choose(Object.keys(stands));
      if (fresh || now() - joinedAt > SILENT_LEADER) join();
      Object.keys(feed.places).forEach(function (channel) {
        if (channel in stands) told[channel] = stands[channel];
        else if (!fresh && now() - joinedAt > 1000) join();
      });
      shown = message.shown;
      feed.show(shown[0], shown[1], shown[2], true, message.tabs);
      suspect();
    }

    function differs() {
      return Object.keys(feed.places).some(function (channel) {
        return told[channel] && told[channel] !== feed.places[channel];
      });
    }

    // The leader has another position. Either the next step brings this tab there, or a step was missed.
    function suspect() {
      if (!closed && !suspicion && !asking && differs()) suspicion = root.setTimeout(repair, 300);
    }

    function repair() {
      var before;
      suspicion = 0;
      if (!differs()) return;
      before = formatId(told);
      asking = ask(service, feed.getPlaces(), 1, 0, function (fault, steps, answer) {
        asking = null;
        if (!fault) feed.take(steps);
        else if (fault.final) feed.finish(fault);
        if ((answer && answer.more) || formatId(told) !== before) suspect();
        else if (!closed && !fault && differs()) join(true);
      });
    }

    function stopAsking() {
      root.clearTimeout(suspicion);
      if (asking) asking();
      asking = null;
      suspicion = 0;
    }

    elect(false);
    bus.onmessage = function (event) {
      var message = event.data, kind = message.kind;
      if (message.term) {
        if (line ? message.term <= term : message.term < term) return; // a former leader, which has just woken
        if (message.term > term) leader = ""; // it leads anew, and knows nobody
        term = message.term;
        if (line) yieldLead();
        heard();
      }
      if (line) {
        if (kind === "join") admit(message.by, message.places, message.asked);
        else if (kind === "leave" && message.by in members) {
          leave(message.by);
          tell();
        } else if (kind === "knock") {
          post("here", {});
          line.tick(now(), 0); // the timers of a page out of sight are held back
        }
      } else if (kind === "knock") standBack(message.by);
      else if (kind === "lead") follow(message);
      else if (kind === "auth") feed.auth(message.told);
      else if (kind === "sources") feed.hear(message.states);
      else if (kind === "steps") {
        message.steps.forEach(function (step) {
          if (step.channel in feed.places) told[step.channel] = step.to;
        });
        feed.take(message.steps);
        suspect();
      } else if (kind === "out" && message.channels.some(function (channel) {
        return channel in feed.places;
      })) feed.alone();
    };

    join();
    knock(takeLead, FIRST_WORD);
    return {
      stay: function () {
        tell();
        return Boolean(line);
      },
      isNeeded: function () {
        return line && !isEmpty(line.places) && !isEmpty(members);
      },
      nudge: function (why) {
        if (line || aside) (line || aside).nudge(why);
      },
      tick: function (time, asleep) {
        if (line) {
          line.tick(time, asleep);
          if (line && time - heardAt > SILENT_LEADER / 3) tell();
        } else if (aside) aside.tick(time, asleep);
        else if (!doubt && !(leader in here) && time - heardAt > (document.hidden ? SILENT_LEADER : 300)) knock(takeLead, WORD);
      },
      stop: function () {
        closed = true;
        delete here[me]; // the next leader may be in another page
        stopAsking();
        heard();
        post("leave", {});
        if (line) line.stop();
        line = null;
        bus.close();
        patience.abort(); // a page that waits for a lock is not kept to come back to
        release();
      }
    };
  }

  /* A feed: what the page holds. Inside, `feed`; the page gets its `face` */

  function Feed(url, options) {
    var link = absolute(url), view = Boolean(options.view), credentials = Boolean(options.credentials);
    var service = {
      url: link.href.replace(view ? /[?#].*$/ : /\/*([?#].*)?$/, ""),
      view: view,
      query: link.search.slice(1),
      token: options.token,
      renew: null, // gets a new token, for a callback
      renewedAt: 0,
      credentials: credentials,
      heartbeat: options.heartbeat,
      bytes: 4096, // of the next poll's answer
      growth: 4, // of that from one answer to the next, at the most
      cut: 0, // the length at which an answer broke off
      most: Infinity, // of an answer, where two broke off at the same length
      host: link.host,
      memory: Memory(link.host)
    };
    var places = map(), ends = map(), texts = map(), sources = map(), listeners = map();
    var backoff = Backoff(), share = options.share !== false;
    var keeper = null, asking = null, timer = 0, settled = false, closed = false, tickedAt = now(), shown = "";
    var face = { on: on, off: off, close: close, text: getText, lastEventId: "" };
    var feed = {
      places: places,
      ends: ends,
      getPlaces: getPlaces,
      take: take,
      choose: choose,
      hear: hear,
      show: show,
      finish: finish,
      alone: alone,
      ownLine: ownLine,
      auth: auth
    };
    var began = parseId(options.lastEventId);

    /* Telling the page */

    function on(type, listener) {
      (listeners[type] = listeners[type] || []).push(listener);
      return face;
    }

    function off(type, listener) {
      listeners[type] = (listeners[type] || []).filter(function (other) {
        return other !== listener;
      });
      return face;
    }

    function emit(type, event) {
      (listeners[type] || []).forEach(function (listener) {
        call(listener, event);
      });
    }

    function auth(told) {
      if (!closed) emit("sse.auth", told);
    }

    function getText(channel) {
      return texts[channel] || "";
    }

    function getPlaces() {
      return view ? both(places, ends) : places;
    }

    function show(state, reason, transport, shared, tabs) {
      var told = { state: state, reason: reason || "", transport: transport, shared: shared, tabs: tabs };
      var channels = view ? Object.keys(both(places, ends)) : options.channels;
      var text = JSON.stringify([told, channels]), name;
      if (closed || text === shown) return;
      shown = text;
      for (name in told) face[name] = told[name];
      told.channels = channels;
      emit("sse.state", told);
    }

    // Takes only the steps that begin at this feed's position.
    function take(steps) {
      if (steps.channels) choose(steps.channels);
      hear(steps.sources);
      steps.forEach(function (step) {
        var channel = step.channel;
        if ((view && channel in ends ? ends : places)[channel] !== step.from) return;
        step.items.forEach(function (item) {
          var over = item.type === "sse.end";
          if (closed || (over && channel in ends)) return;
          put(places, ends, channel, item.id.slice(channel.length + 1), over);
          face.lastEventId = formatId(both(places, ends), channel);
          if (item.type === "sse.reset") texts[channel] = "";
          if (over || item.type === "sse.reset") return emit(item.type, item);
          if (item.type === PIECE) keepPiece(channel, item.data);
          item.json = parse(item.data);
          emit("sse.event", item);
          return emit(item.type, item);
        });
        if (!closed) put(places, ends, channel, step.to, channel in ends);
      });
      face.lastEventId = formatId(both(places, ends));
      if (!closed && isEmpty(places) && !isEmpty(ends)) end();
    }

    // Tells the page of sources that have changed.
    function hear(states) {
      Object.keys(states || {}).forEach(function (channel) {
        if (closed || !(channel in places) || sources[channel] === states[channel]) return;
        sources[channel] = states[channel];
        emit("sse.source", { channel: channel, state: states[channel] });
      });
    }

    function keepPiece(channel, piece) {
      var text = getText(channel) + piece;
      texts[channel] = text.length > MOST_TEXT ? text.slice(-MOST_TEXT / 2) : text;
    }

    // The view has these channels.
    function choose(names) {
      if (closed || !adopt(places, ends, names)) return;
      Object.keys(texts).forEach(function (channel) {
        if (names.indexOf(channel) < 0) delete texts[channel];
      });
      if (face.state) show(face.state, face.reason, face.transport, face.shared, face.tabs);
    }

    // All channels have ended. A tab that leads goes on until the others have heard that, and while they need its line.
    function end() {
      show("closed", "ended", "", false, 1);
      closed = true;
      if (!keeper || !keeper.stay || !keeper.stay()) close();
    }

    /* How it is kept going */

    // The first poll shows if the channels may be read and gives their positions, and it works on any network.
    function settle() {
      asking = ask(service, getPlaces(), 1, options.replay, function (fault, steps, answer) {
        asking = null;
        if (fault) return unsettled(fault);
        backoff.reset();
        take(steps);
        if (closed || asking || keeper) return; // a listener has changed the feed
        settled = true;
        if (answer.more && answer.quick) return settle(); // over a slow line, the stream brings the rest bit by bit
        return begin();
      });
      show("connecting", "asking for the first events", "poll", false, 1);
    }

    function unsettled(fault) {
      if (fault.final) return finish(fault);
      timer = root.setTimeout(begin, Math.max(backoff.next(), fault.after));
      return show("waiting", fault.reason, "", false, 1);
    }

    function begin() {
      if (!settled) return settle();
      try {
        if (share && canShare()) keeper = Member(feed, service);
      } catch (error) {
        // a page without an origin of its own
      }
      if (!keeper) alone();
    }

    function alone() {
      halt();
      keeper = ownLine(share ? 2 : 4);
      keeper.start("opening a stream");
    }

    // A line for this feed alone.
    function ownLine(most) {
      return Line(service, map(places), map(ends), Crowd(link.host, most), {
        steps: take,
        channels: choose,
        sources: hear,
        beat: noop,
        auth: auth,
        refused: finish,
        state: function (state, reason, transport) {
          show(state, reason, transport, false, 1);
        }
      });
    }

    function halt() {
      root.clearTimeout(timer);
      if (asking) asking();
      if (keeper) keeper.stop();
      asking = keeper = null;
    }

    function finish(fault) {
      halt();
      warn(fault.reason);
      show("closed", fault.reason, "", false, 1);
      close();
    }

    function close() {
      halt();
      if (face.state !== "closed") show("closed", "closed by the page", "", false, 1);
      closed = true;
      root.clearInterval(ticker);
      events.forEach(function (event) {
        event[0].removeEventListener(event[1], event[2]);
      });
    }

    function nudge() {
      if (keeper) keeper.nudge("the network is back");
      else retry();
    }

    function retry() {
      root.clearTimeout(timer);
      if (!keeper && !asking && !closed) begin();
    }

    function tick() {
      var time = now(), asleep = time - tickedAt - 1000;
      tickedAt = time;
      if (closed && !(keeper && keeper.isNeeded())) close();
      else if (keeper) keeper.tick(time, asleep);
      else if (asleep > 5000) retry();
    }

    if (typeof options.token === "function") {
      service.token = "";
      service.renew = function (use) {
        call(options.token, function (token) {
          root.setTimeout(use, 0, token, 401, 0, true); // never before it is waited for
        });
      };
    } else if (options.tokenUrl) {
      service.renew = function (use) {
        return get(options.tokenUrl, true, 10000, function (status, text, after) {
          var given = parse(text) || { token: text.trim() };
          use(status === 200 && (given.token || given.ticket), status, after, given.error);
        });
      };
    }

    var ticker = root.setInterval(tick, 1000);
    var events = [
      [root, "online", nudge],
      [root, "pagehide", function () { // it may come back from the browser's cache
        halt();
        show("waiting", "the page is hidden", "", false, 1);
      }],
      [root, "pageshow", function (event) {
        if (!event.persisted) return;
        service.memory.stream();
        retry();
      }],
      [document, "visibilitychange", function () {
        tick();
      }]
    ];
    events.forEach(function (event) {
      event[0].addEventListener(event[1], event[2]);
    });
    (view ? Object.keys(began) : options.channels).forEach(function (channel) {
      places[channel] = channel in began ? began[channel] || "-" : ""; // an entry that is empty is told as a reset
    });
    face.lastEventId = formatId(places);
    timer = root.setTimeout(settle, 0); // whoever made it listens from the start
    return face;
  }

  function SSE(url, options) {
    var given = (url && url.view ? url : options) || {}, channels = given.channels || [], chosen = {}, name;
    if (typeof channels === "string") channels = channels.split(/[\s,]+/);
    if (!Array.isArray(channels)) throw new TypeError("SSE: the channels are " + channels + ": give a list such as ['news']");
    for (name in given) chosen[name] = given[name];
    chosen.channels = channels.filter(function (channel, index) {
      return channel && channels.indexOf(channel) === index;
    });
    if (url && url.view) url = given.view;
    else delete chosen.view;
    if (typeof url !== "string") throw new TypeError("SSE: the service's address is " + url + ": give a text such as '/sse'");
    if (!chosen.view && !chosen.channels.length) throw new TypeError("SSE: no channel is named: give {channels: ['news']}");
    return Feed(url, chosen);
  }

  /* The standard interface (WHATWG HTML 9.2.2) */

  function Source(url, options) {
    var source = this, link = absolute(String(url)), listeners = map(), chosen = { channels: [] }, rest = [], feed;
    link.search.slice(1).split("&").forEach(function (pair) {
      var at = pair.indexOf("="), name = pair.slice(0, at), value = decode(pair.slice(at + 1));
      if (name === "channel") chosen.channels.push(value);
      else if (name === "last_event_id") chosen.lastEventId = value;
      else if (/^(replay|heartbeat|token|lastEventId)$/.test(name)) chosen[name] = value;
      else if (pair && !/^(ids|types)$/.test(name)) rest.push(pair);
    });
    chosen.credentials = Boolean(options && options.withCredentials);
    this.url = link.href;
    this.withCredentials = chosen.credentials;
    this.readyState = 0;
    this.onopen = this.onmessage = this.onerror = null;

    function fire(type, data) {
      var event = {
        type: type,
        data: data,
        lastEventId: feed.lastEventId,
        origin: link.protocol + "//" + link.host,
        target: source,
        currentTarget: source
      };
      var handler = type === "open" || type === "message" || type === "error" ? source["on" + type] : null;
      if (typeof handler === "function") call(handler, event, source);
      (listeners[type] || []).slice().forEach(function (added) {
        if (added.once) source.removeEventListener(type, added.listener);
        call(added.listener, event, source);
      });
    }

    function without(type, listener) {
      return (listeners[type] || []).filter(function (added) {
        return added.listener !== listener;
      });
    }

    this.addEventListener = function (type, listener, given) {
      var list = listeners[type] = listeners[type] || [];
      if (!listener || without(type, listener).length < list.length) return;
      list.push({ listener: listener, once: Boolean(given && given.once) });
    };
    this.removeEventListener = function (type, listener) {
      listeners[type] = without(type, listener);
    };
    this.close = function () {
      source.readyState = 2;
      feed.close();
    };

    feed = SSE(link.href.replace(/\/stream\/?([?#].*)?$|[?#].*$/, "") + "?" + rest.join("&"), chosen);
    feed.on("sse.event", function (event) {
      if (source.readyState === 0) open();
      fire(event.type, event.data);
    });
    feed.on("sse.reset", function (reset) {
      if (source.readyState === 0) open();
      fire("sse.reset", JSON.stringify({ channel: reset.channel, reason: reset.reason, missed: reset.missed }));
    });
    feed.on("sse.end", function (told) {
      fire("sse.end", JSON.stringify({ channel: told.channel, reason: told.reason }));
    });
    feed.on("sse.state", function (told) {
      if (told.state === "live" || told.state === "polling") {
        if (source.readyState === 0) open();
      } else if (source.readyState !== 2 && (told.state === "waiting" || told.state === "closed")) {
        source.readyState = told.state === "closed" ? 2 : 0;
        fire("error");
      }
    });

    function open() {
      source.readyState = 1;
      fire("open");
    }
  }
  Source.CONNECTING = Source.prototype.CONNECTING = 0;
  Source.OPEN = Source.prototype.OPEN = 1;
  Source.CLOSED = Source.prototype.CLOSED = 2;

  /* The tag */

  var known = map(), oldest = [], warned = map();
  var missing = 0, found = 0; // members of JSON data that `fill` has looked for

  function each(list, act) {
    Array.prototype.forEach.call(list, act);
  }

  function attached(tag) {
    return document.documentElement.contains(tag);
  }

  function announce(target, type, detail) {
    var event = document.createEvent("CustomEvent");
    event.initCustomEvent(type, false, false, detail);
    target.dispatchEvent(event);
  }

  // `document` is told once of each event that several tags bring, at the same time or later by a replay.
  function isKnown(name) {
    if (known[name]) return true;
    known[name] = true;
    if (oldest.push(name) > MOST_KNOWN) delete known[oldest.shift()];
    return false;
  }

  // Where JSON data has a member of the same name as the event, the data's member is taken.
  function fill(text, event) {
    return text.replace(/\{([^{}\s]+)\}/g, function (_, path) {
      var names = path.split("."), has = Object.prototype.hasOwnProperty;
      var start = has.call(Object(event.json), names[0]) || !has.call(event, names[0]) ? event.json : event;
      var value = names.reduce(function (object, name) {
        return has.call(Object(object), name) ? object[name] : undefined;
      }, start);
      if (value === undefined) missing += 1;
      else if (start !== event) found += 1;
      return value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
    });
  }

  // Fills the template's texts into its copy. The server may have made the copy, and the page may have changed it, so
  // texts without a placeholder are left alone. Only texts are filled in: nothing in an event becomes markup.
  function refill(template, copy, event) {
    var at = copy.firstChild, before, text;
    if (CODE.test(template.nodeName)) return;
    if (!template.firstElementChild) {
      before = template.textContent;
      text = fill(before, event);
      if (/\{/.test(before) && copy.textContent !== text) copy.textContent = text;
      return;
    }
    each(template.childNodes, function (node) {
      if (node.nodeType === 1) while (at && at.nodeName !== node.nodeName) at = at.nextSibling;
      else if (node.nodeType !== 3) return;
      else if (!at || at.nodeType !== 3) {
        if (!/\S/.test(node.nodeValue)) return;
        at = copy.insertBefore(document.createTextNode(""), at);
      }
      if (!at) return;
      refill(node, at, event);
      at = at.nextSibling;
    });
  }

  // Shows events in data-into. Returns a function that shows an event or, without an event, all that still wait. An
  // element without a template has the text of the channel whose piece came last. Each piece becomes a text node of its
  // own, so what the reader has selected stays selected, and a live region has only additions.
  function Display(tag, data) {
    var lacking = "this event lacks it, so it is not shown: if other types come here, list yours in data-types";
    var into = data("into"), template = data("template"), key = data("key"), order = data("order");
    var keep = Number(data("keep") || 100), types = list("types"), removing = list("remove"), held = [];
    var copies = /^#[\w-]+$/.test(template), item = document.createElement("li");
    var written = "", length = 0, last = null; // the channel of the text that is shown, its length, its last node

    function list(name) {
      return (data(name) || "").split(/[\s,]+/).filter(Boolean);
    }

    function wrong(name, why) {
      var text = "data-" + name + " is '" + data(name) + "': " + why;
      if (!warned[text]) warn(text);
      warned[text] = true;
    }

    function getTarget() {
      try {
        return document.querySelector(into);
      } catch (error) { // no selector
        return null;
      }
    }

    // Returns the element that a row copies. An item of a list, and a text that is replaced, are made from one, too.
    function getSource() {
      var element = copies ? document.getElementById(template.slice(1)) : item;
      return copies && element ? (element.content || element).firstElementChild : element;
    }

    // An event's own id is no key: no other event has it.
    function getKey(event) {
      var text;
      missing = 0;
      text = fill(key, event);
      return missing || text.indexOf(event.id) >= 0 ? "" : text;
    }

    function getRows(target) {
      return Array.prototype.filter.call(target.children, function (child) {
        return !CODE.test(child.nodeName) && (!key || child.hasAttribute("data-key"));
      });
    }

    function empty(target) {
      if (target.contains(tag)) target.parentNode.insertBefore(tag, target); // or it would go with the old text
      target.textContent = "";
    }

    // Appends what is new of the channel's text. A screen reader waits for the end of a text that is written.
    function write(event, target) {
      var channel = event.channel || written, text = tag.sse.text(channel), same = channel === written && last, more;
      if (event.type !== PIECE && !same) return;
      if (!same || last.parentNode !== target || text.length < length || event.type === "sse.reset") {
        empty(target);
        length = 0;
        last = null;
      }
      more = text.length - length;
      if (more) { // a slice of a long text costs more than the piece
        last = document.createTextNode(event.data && event.data.length === more ? event.data : text.slice(length));
        target.appendChild(last);
      }
      written = channel;
      length = text.length;
      if (event.type === "sse.end") target.removeAttribute("aria-busy");
      else if (target.hasAttribute("aria-live")) target.setAttribute("aria-busy", "true");
    }

    function put(event, target, source) {
      var text = !copies && !/^[uo]l$/i.test(target.tagName), rows = getRows(target);
      var copy = source.cloneNode(true), own = /^sse\./.test(event.type), value, row;
      if (own || (text && !template && event.type === PIECE)) return write(event, target);
      if (key && !text) {
        value = getKey(event);
        if (!value) return wrong("key", lacking);
        row = rows.filter(function (row) {
          return row.getAttribute("data-key") === value;
        })[0];
      }
      if (removing.indexOf(event.type) >= 0) return row && target.removeChild(row);
      if (!template) event = { data: event.data };
      missing = found = 0;
      refill(source, copy, event);
      if (missing && !found) return wrong("template", lacking);
      if (text) {
        if (last && last.parentNode === target) return; // it has pieces
        empty(target);
        target.textContent = copy.textContent;
        return;
      }
      if (row) return refill(source, row, event);
      if (value) copy.setAttribute("data-key", value);
      target.insertBefore(copy, order === "prepend" && rows[0] || null);
      while (rows.length >= keep) target.removeChild(order === "prepend" ? rows.pop() : rows.shift());
    }

    item.textContent = template || "{data}";
    if (order && !/^(ap|pre)pend$/.test(order)) wrong("order", "give append or prepend");
    if (!(keep >= 1)) keep = wrong("keep", "give a number such as 100") || 100;
    if (key && !/\{/.test(key)) key = wrong("key", "give a {member} of the data");
    if (key && !template) key = wrong("key", "give data-template as well");
    if (removing[0] && !key) wrong("remove", "give data-key as well");
    ["template", "key", "types", "order", "keep"].forEach(function (name) {
      if (data(name) && !into) wrong(name, "give data-into as well");
    });

    return function (event) {
      var target, source, own = event && /^sse\./.test(event.type);
      var wanted = own ? last || held.length : !types.length || types.concat(removing).indexOf(event && event.type) >= 0;
      if (into && event && wanted) held.push(event);
      if (held.length > keep + 1000) held.shift();
      while (held.length && attached(tag)) {
        target = getTarget();
        source = target && getSource();
        if (!source && document.readyState !== "complete") return;
        event = held.shift();
        if (source) put(event, target, source);
        else wrong(target ? "template" : "into", "it finds no element");
      }
    };
  }

  function begin(tag) {
    function data(name) {
      return tag.getAttribute("data-" + name);
    }

    var credentials = data("credentials"), away = 0, display = Display(tag, data), view = data("view");
    var service = absolute(view || data("url") || tag.src.replace(/[^\/]*$/, "")).href.replace(/\/*$/, "");
    var options = {
      view: view,
      channels: data("channels"),
      token: data("token"),
      tokenUrl: data("token-url"),
      replay: data("replay"),
      heartbeat: data("heartbeat"),
      credentials: credentials !== null && credentials !== "off" && credentials !== "omit",
      share: data("share") !== "off"
    };
    var feed = tag.sse = SSE(view ? options : service, options);

    function tell(type, detail, name) {
      announce(tag, type, detail);
      if (!name || !isKnown(name + service)) announce(document, type, detail);
    }

    // Checks each second if the tag has been removed. A tag that is only moved is in the document at the next check.
    function look() {
      call(display);
      away = attached(tag) ? 0 : away + 1;
      if (away < 2) return root.setTimeout(look, 1000);
      feed.ended = true;
      return feed.close();
    }

    feed.on("sse.event", function (event) {
      tell("sse:" + event.type, event, event.id);
    }).on("sse.event", display);
    ["reset", "end", "source", "state", "auth"].forEach(function (kind) {
      feed.on("sse." + kind, function (told) {
        tell("sse-" + kind, told, told.id && kind + " " + told.id);
        if (told.id) display(told);
        else if (told.state === "closed") display({ type: "sse.end" });
      });
    });
    look();
  }

  function start() {
    each(document.querySelectorAll("script[data-channels], script[data-view]"), function (tag) {
      if (!tag.sse || tag.sse.ended) call(begin, tag);
    });
  }

  // Gives the name SSE back to its owner.
  function noConflict() {
    if (root.SSE === SSE) root.SSE = before;
    return SSE;
  }

  SSE.version = VERSION;
  SSE.start = start; // tags that were added later, or are back
  SSE.noConflict = noConflict;
  SSE.EventSource = Source;
  SSE.Parser = Parser;
  if (global === root) {
    document.documentElement.sse = SSE;
    if (!before || before.nodeType) root.SSE = SSE;
    start();
  }
  return SSE;
})(typeof window === "undefined" ? {} : window, this);
