/*
 * The doctor in a browser: measures what is between this page and a service, and shows what its judge says.
 *
 * The page has its address and pass from the part behind the #, and begins when its button is pressed. Every text goes
 * in as text. The judge is the one of the page's own service, never that of the service that is measured.
 *
 * A stream is read by fetch, or else by XMLHttpRequest, or else by EventSource, so that old browsers measure, too. What
 * a browser cannot tell is left out: several values of one header, and why an answer of another origin is not shown.
 * `sse/doctor/shape.py` has the form of what is measured. ES5.
 */
(function () {
  "use strict";

  var QUIET = 8; // seconds without a request
  var LATER = 3; // seconds after the silent stream at which the active one begins
  var LEAVING = 2; // seconds of a stream before this page leaves it
  var NOTICED = 6; // seconds in which the service has to notice that
  var ANSWER = 10; // seconds for a short answer
  var PATIENCE = 5; // seconds beyond the time that an answer should take
  var MOST_BLOCKS = 400;
  var LAST_EVENT_ID = "doctor=58-2893";
  var STATUSES = [204, 400, 401, 403, 404, 409, 410, 413, 429, 503];
  var DOCS = "https://git.example/throughline/docs/troubleshooting.md#";
  var STEPS = [
    ["meet", "Ask the service who is there"],
    ["statuses", "Ask for each status"],
    ["short", "Watch events as they come"],
    ["quiet", "Be quiet, and see if the server stands still"],
    ["long", "Watch long streams and a long poll"],
    ["judge", "Judge"]
  ];

  function byId(id) {
    return document.getElementById(id);
  }

  function seconds() {
    return window.performance && performance.now ? performance.now() / 1000 : new Date().getTime() / 1000;
  }

  function rounded(value) {
    return Math.round(value * 1000) / 1000;
  }

  function random() {
    var text = "";
    while (text.length < 20) {
      text += Math.random().toString(36).slice(2).replace(/[^a-z0-9]/g, "");
    }
    return text.slice(0, 20);
  }

  function parsed(text) {
    try {
      var value = JSON.parse(text);
      return value && typeof value === "object" ? value : {};
    } catch (_) {
      return {};
    }
  }

  function errorCode(answer) {
    var error = parsed(answer.text).error;
    return error && typeof error === "object" && "hint" in error ? String(error.code) : "";
  }

  /* Return an answer's headers that this page may read, in the form of "name: value" lines, by their names. */
  function headersOf(lines) {
    var headers = {};
    lines.split(/\r?\n/).slice(0, 100).forEach(function (line) {
      var at = line.indexOf(":"), name = line.slice(0, at).toLowerCase();
      if (at > 0 && name.length < 100) {
        headers[name] = (headers[name] || []).concat(line.slice(at + 1).replace(/^\s+|\s+$/g, "").slice(0, 1000));
      }
    });
    return headers;
  }

  function origin(address) {
    var parts = /^(https?:\/\/[^/?#]+)/i.exec(address);
    return parts ? parts[1].toLowerCase() : "";
  }

  function ownOrigin() {
    return window.location.origin || origin(window.location.href);
  }

  // ---- One run

  function Run(url, pass, wait, shown) {
    this.url = url;
    this.pass = pass;
    this.wait = wait;
    this.shown = shown;
    this.own = ownOrigin();
    this.isOther = origin(url) !== this.own;
    this.began = seconds();
    this.open = []; // functions that end what is open
    this.isOver = false;
    this.found = { client: "page", url: url, wait: wait || 12, skipped: [], tls: /^https:/i.test(url), streams: {} };
    if (this.isOther) {
      this.found.origin = this.own;
    }
  }

  Run.prototype.address = function (path, query, mark) {
    var text = this.url + path, name, parts = [];
    query = query || {};
    for (name in query) {
      parts.push(name + "=" + encodeURIComponent(query[name]));
    }
    if (this.pass) {
      parts.push("pass=" + encodeURIComponent(this.pass));
    }
    parts.push("_=" + (mark || random()));
    return text + "?" + parts.join("&");
  };

  /* Ask for a short answer. `then` gets {status, text, took, header(name)}; the status is 0 if there was none. */
  Run.prototype.ask = function (path, options, then) {
    var run = this, request = new XMLHttpRequest(), began = seconds(), isDone = false, name;
    var address = options.address || this.address(path, options.query, options.mark);
    function done(status) {
      if (isDone) {
        return;
      }
      isDone = true;
      run.forget(end);
      if (!run.isOver) {
        then({
          status: status,
          text: status ? request.responseText || "" : "",
          took: seconds() - began,
          url: request.responseURL || "",
          headers: status ? headersOf(request.getAllResponseHeaders() || "") : {},
          address: address,
          header: function (name) {
            return status ? request.getResponseHeader(name) || "" : "";
          }
        });
      }
    }
    function end() {
      isDone = true;
      request.abort();
    }
    this.open.push(end);
    request.open(options.body === undefined ? "GET" : "POST", address, true);
    request.setRequestHeader("Accept", "application/json");
    for (name in options.headers || {}) {
      request.setRequestHeader(name, options.headers[name]);
    }
    request.timeout = 1000 * (options.timeout || ANSWER);
    request.onload = function () {
      done(request.status);
    };
    request.onerror = request.ontimeout = request.onabort = function () {
      done(0);
    };
    request.send(options.body === undefined ? null : options.body);
  };

  Run.prototype.echo = function (options, then) {
    options.headers = this.hidesId ? {} : { "Last-Event-ID": LAST_EVENT_ID };
    this.ask("/doctor/echo", options, function (answer) {
      answer.told = parsed(answer.text);
      answer.isOurs = answer.told.service === "throughline";
      then(answer);
    });
  };

  Run.prototype.forget = function (end) {
    var at = this.open.indexOf(end);
    if (at >= 0) {
      this.open.splice(at, 1);
    }
  };

  Run.prototype.stop = function () {
    this.isOver = true;
    while (this.open.length) {
      this.open.pop()();
    }
  };

  Run.prototype.later = function (wait, then) {
    var run = this, timer = window.setTimeout(function () {
      run.forget(end);
      then();
    }, 1000 * wait);
    function end() {
      window.clearTimeout(timer);
    }
    this.open.push(end);
  };

  /* Call functions that each take a callback, side by side or one after another, and then `then`. */
  Run.prototype.all = function (tasks, isTogether, then) {
    var left = tasks.length, run = this;
    function next(index) {
      tasks[index].call(run, function () {
        left -= 1;
        if (!left) {
          then();
        } else if (!isTogether) {
          next(index + 1);
        }
      });
    }
    if (!left) {
      then();
    }
    for (var index = 0; index < (isTogether ? tasks.length : Math.min(tasks.length, 1)); index += 1) {
      next(index);
    }
  };

  Run.prototype.skip = function (reason) {
    this.found.skipped.push(reason);
  };

  // ---- Short requests

  Run.prototype.meet = function (then) {
    var run = this, mark = random();
    this.echo({ mark: mark }, function (first) {
      if (!first.status && run.isOther && !run.hidesId) {
        // Without this header the browser asks for no permission before (Fetch, 4.8).
        run.hidesId = true;
        return run.meet(then);
      }
      if (!first.isOurs) {
        return run.meetOthers(first, then);
      }
      run.echo({ mark: mark }, function (second) {
        if (!second.isOurs) {
          return run.meetOthers(second, then);
        }
        run.found.same_nonce = first.told.nonce === second.told.nonce;
        run.found.echo_headers = second.headers;
        run.noteEcho(second);
        if (run.isOther) {
          // The browser has shown the answer, so its headers allow this origin.
          run.found.cors = { allow_origin: [run.own] };
          if (run.hidesId) {
            run.found.cors.preflight_status = 0;
          }
        }
        if (!run.hidesId) {
          run.found.sent = { last_event_id: LAST_EVENT_ID };
        }
        run.noteProtocol(second.address);
        run.timeEchoes(3, then);
      });
    });
  };

  Run.prototype.noteEcho = function (answer) {
    var echo = {}, name;
    for (name in answer.told) {
      if (!/^(service|nonce|ticks|method)$/.test(name)) {
        echo[name] = answer.told[name];
      }
    }
    this.found.echo = echo;
  };

  Run.prototype.noteProtocol = function (address) {
    var list = window.performance && performance.getEntriesByName ? performance.getEntriesByName(address) : [];
    var protocol = list.length && list[list.length - 1].nextHopProtocol;
    if (protocol) {
      this.found.http = /^http\/1/.test(protocol) ? "1.1" : "2";
    } else {
      this.skip("the version of HTTP, which this browser does not tell here");
    }
  };

  Run.prototype.timeEchoes = function (left, then) {
    var run = this, ours = new Date().getTime() / 1000;
    if (!left) {
      return then(true);
    }
    this.echo({}, function (answer) {
      if (answer.isOurs && !(run.found.rtt < answer.took)) {
        run.found.rtt = rounded(answer.took);
        run.found.skew = rounded(answer.told.now - ours - answer.took / 2);
        run.noteEcho(answer);
      }
      run.timeEchoes(left - 1, then);
    });
  };

  /* Note what answers in place of the service. */
  Run.prototype.meetOthers = function (answer, then) {
    var run = this, code = errorCode(answer), title;
    if (!answer.status) {
      return this.meetNobody(then);
    }
    if (answer.status === 401 && /^pass_/.test(code)) {
      this.found.closed = { status: 401, code: code };
      return then(false);
    }
    if (code && answer.status !== 404) {
      this.found.unreachable = "The service refuses the first request: " + answer.status + " " + code + ".";
      return then(false);
    }
    this.ask("/stream", { address: this.url + "/stream?_=" + random() }, function (stream) {
      if (answer.status === 404 && errorCode(stream)) {
        run.found.closed = { status: 404, code: code };
        return then(false);
      }
      run.found.error_headers = answer.headers;
      run.found.not_ours = { status: answer.status, type: answer.header("Content-Type").slice(0, 200) };
      title = /<title[^>]*>([^<]{1,200})/i.exec(answer.text);
      if (title) {
        run.found.not_ours.title = title[1].replace(/\s+/g, " ");
      }
      if (answer.url && answer.url.split("?")[0] !== answer.address.split("?")[0]) {
        run.found.not_ours.location = answer.url.split("?")[0].slice(0, 1000);
      }
      then(false);
    });
  };

  /*
   * An answer that may not be shown looks like none: one of another origin, or a redirection to one, as to a login.
   * Only a fetch that wants to see nothing of it tells them apart.
   */
  Run.prototype.meetNobody = function (then) {
    var run = this, address = this.address("/doctor/echo"), host = origin(this.url).replace(/^.*\/\//, "");
    function nobody() {
      run.found.unreachable = run.found.tls || window.location.protocol !== "https:"
        ? host + " does not answer, or this browser does not trust its certificate."
        : "A page of https:// may not ask " + host + " by http://.";
      then(false);
    }
    if (!window.fetch) {
      return nobody();
    }
    if (this.isOther) {
      window.fetch(address, { mode: "no-cors", credentials: "omit" }).then(function () {
        run.found.cors = { blocked: true };
        then(false);
      }, nobody);
      return;
    }
    window.fetch(address, { redirect: "manual", credentials: "same-origin" }).then(function (answer) {
      if (answer.type !== "opaqueredirect") {
        return nobody();
      }
      run.found.not_ours = { location: "another site" };
      then(false);
    }, nobody);
  };

  Run.prototype.statuses = function (then) {
    var run = this, found = {}, after = {};
    function next(index) {
      var status = STATUSES[index];
      if (index === STATUSES.length) {
        run.found.statuses = found;
        run.found.retry_after = after;
        return then();
      }
      run.ask("/doctor/status/" + status, {}, function (answer) {
        var code = errorCode(answer);
        if (code && code !== "doctor") {
          run.skip("the status " + status + ", because the service refused to send it: " + code);
        } else {
          found[status] = answer.status === 1223 ? 204 : answer.status; // old browsers' number for 204
          if (answer.status === 429 || answer.status === 503) {
            after[status] = !!answer.header("Retry-After");
          }
        }
        next(index + 1);
      });
    }
    next(0);
  };

  /* See whether the process stands still while nobody asks anything. */
  Run.prototype.quiet = function (then) {
    var run = this;
    if (this.found.same_nonce) {
      return then();
    }
    this.echo({}, function (first) {
      var before = first.told.ticks || {}, began = seconds();
      run.later(QUIET, function () {
        (function again(left) {
          run.echo({}, function (last) {
            var ticks = last.told.ticks || {}, elapsed = seconds() - began, ran = ticks.since - before.since;
            if (last.told.worker !== first.told.worker || !(ran >= 0)) {
              if (left) {
                return again(left - 1); // other workers may answer
              }
              run.found.ticks = { quiet: QUIET, same_worker: false };
              return then();
            }
            run.found.ticks = {
              quiet: QUIET,
              longest_gap: ticks.ago < elapsed ? ticks.longest_gap : 0,
              same_worker: true,
              lost: rounded(Math.max(elapsed - ran, 0))
            };
            then();
          });
        })(8);
      });
    });
  };

  // ---- Streams

  /* Read a stream of the doctor. `then` gets {seen, nonce} once it has ended, or `until` seconds have passed. */
  Run.prototype.watch = function (query, options, then) {
    var run = this, began = seconds(), text = "", nonce = "", isDone = false, timer;
    var asked = query.every * query.count, most = options.until || asked + PATIENCE;
    var seen = { started_at: rounded(began - this.streamsBegan), asked: asked, blocks: [] };
    var address, stop;

    function finish(isOpen, isClean) {
      if (isDone) {
        return;
      }
      isDone = true;
      window.clearTimeout(timer);
      run.forget(end);
      if (!isOpen) {
        seen.ended_at = rounded(seconds() - began);
        seen.clean = isClean;
      }
      stop();
      if (!run.isOver) {
        then({ seen: seen, nonce: nonce });
      }
    }
    function end() {
      isDone = true;
      window.clearTimeout(timer);
      stop();
    }
    function block(type, data, size) {
      var told = parsed(data);
      if (type === "doctor.open") {
        nonce = String(told.nonce);
      }
      if (type === "doctor.end") {
        if (told.reason === "done") {
          seen.finished = true;
        } else {
          seen.refused = String(told.reason);
        }
      } else if (/^doctor\./.test(type) && typeof told.now === "number" && seen.blocks.length < MOST_BLOCKS) {
        seen.blocks.push([told.n || 0, told.now, rounded(seconds() - began), size]);
      }
    }
    query.probe = 1;
    address = this.address("/stream", query, options.mark);
    var reader = {
      head: function (status, lines) {
        seen.status = status;
        seen.headers = headersOf(lines);
      },
      text: function (more) {
        var parts, index, type, data;
        if (isDone) {
          return;
        }
        if (seen.first_byte === undefined) {
          seen.first_byte = rounded(seconds() - began);
        }
        text = (text + more).replace(/\r\n?/g, "\n");
        parts = text.split("\n\n");
        text = parts.pop();
        for (index = 0; index < parts.length; index += 1) {
          type = /(?:^|\n)event: ?(.*)/.exec(parts[index]);
          data = /(?:^|\n)data: ?(.*)/.exec(parts[index]);
          block(type ? type[1] : "", data ? data[1] : "", parts[index].length + 2);
        }
      },
      refused: function (body) {
        var code = errorCode({ text: body });
        if (code) {
          seen.refused = code;
        }
      },
      block: block,
      end: function (isClean) {
        finish(false, isClean);
      }
    };
    timer = window.setTimeout(function () {
      finish(true);
    }, 1000 * most);
    this.open.push(end);
    stop = options.way(address, reader);
  };

  /* Each way to read a stream calls the reader's functions, and returns a function that leaves the stream. */
  var WAYS = {
    fetch: function (address, reader) {
      var control = new AbortController(), body = "";
      window.fetch(address, {
        cache: "no-store",
        credentials: "same-origin",
        headers: { Accept: "text/event-stream" },
        signal: control.signal
      }).then(function (answer) {
        var source = answer.body.getReader(), decoder = new TextDecoder(), lines = [];
        answer.headers.forEach(function (value, name) {
          lines.push(name + ": " + value);
        });
        reader.head(answer.status, lines.join("\n"));
        return source.read().then(function more(part) {
          var text = part.value ? decoder.decode(part.value, { stream: true }) : "";
          if (answer.status === 200) {
            reader.text(text);
          } else {
            body += text;
          }
          if (!part.done) {
            return source.read().then(more);
          }
          if (answer.status !== 200) {
            reader.refused(body);
          }
          reader.end(true);
        });
      }).then(null, function () {
        reader.end(false);
      });
      return function () {
        control.abort();
      };
    },
    xhr: function (address, reader) {
      var request = new XMLHttpRequest(), taken = 0;
      function take() {
        var text = request.responseText || "";
        if (request.status === 200 && text.length > taken) {
          reader.text(text.slice(taken));
          taken = text.length;
        }
      }
      request.open("GET", address, true);
      request.setRequestHeader("Accept", "text/event-stream");
      request.onreadystatechange = function () {
        if (request.readyState === 2) {
          reader.head(request.status, request.getAllResponseHeaders() || "");
        } else if (request.readyState === 3) {
          take();
        }
      };
      request.onprogress = take;
      request.onload = function () {
        take();
        if (request.status !== 200) {
          reader.refused(request.responseText);
        }
        reader.end(true);
      };
      request.onerror = function () {
        reader.end(false);
      };
      request.send(null);
      return function () {
        request.onload = request.onerror = request.onprogress = request.onreadystatechange = null;
        request.abort();
      };
    },
    eventsource: function (address, reader) {
      var source = new EventSource(address);
      ["doctor.open", "doctor.tick", "doctor.end"].forEach(function (type) {
        source.addEventListener(type, function (event) {
          reader.block(type, event.data, event.data.length + 40);
          if (type === "doctor.end") {
            source.close();
            reader.end(true);
          }
        });
      });
      source.onerror = function () {
        source.close(); // else it would connect again
        reader.end(false);
      };
      return function () {
        source.close();
      };
    }
  };

  function bestWay() {
    var canFetch = window.fetch && window.AbortController && window.TextDecoder && window.Response &&
      "body" in window.Response.prototype;
    return canFetch ? WAYS.fetch : WAYS.xhr;
  }

  Run.prototype.stream = function (name, query, options) {
    options.way = options.way || bestWay();
    return function (then) {
      var run = this;
      this.later(options.delay || 0, function () {
        run.watch(query, options, function (result) {
          if (name) {
            run.found.streams[name] = result.seen;
          }
          options.nonce = result.nonce;
          then();
        });
      });
    };
  };

  /* Return the longest time, in seconds, that a block of a stream was late; Infinity if there are none. */
  function lateness(seen) {
    var least = Infinity, most = -Infinity;
    seen.blocks.forEach(function (block) {
      least = Math.min(least, block[2] - block[1]);
      most = Math.max(most, block[2] - block[1]);
    });
    return seen.blocks.length ? most - least : Infinity;
  }

  Run.prototype.short = function (then) {
    var run = this, holds = this.found.echo.holds, mark = random();
    var small = { every: 1, count: 5, size: 0 };
    // Some old browsers give one answer to two equal requests, as a cache would.
    var isSure = bestWay() === WAYS.fetch, first = { mark: mark }, twin = { mark: isSure ? mark : random() };
    var pair = [
      this.stream("fast", { every: 0.1, count: 40, size: 2048 }, first),
      this.stream("", { every: 0.1, count: 40, size: 2048 }, twin)
    ];
    // The real thing for the small one: an EventSource is what pages listen by.
    var bySource = { way: window.EventSource ? WAYS.eventsource : bestWay() };
    this.streamsBegan = seconds();
    if (holds === "one") {
      pair.pop();
    }
    this.all(holds === "many"
      ? pair.concat([this.stream("small", small, bySource), this.meanwhile, this.leave])
      : [this.stream("small", small, bySource), function (then) {
        this.all(pair, true, then);
      }], holds === "many", function () {
      if (!isSure) {
        run.skip("whether two clients get one stream, because this browser has no fetch");
      } else if (first.nonce && twin.nonce) {
        run.found.shared = first.nonce === twin.nonce;
      }
      run.again(small, function () {
        if (holds === "many") {
          return then();
        }
        run.leave(then);
      });
    });
  };

  /* Watch the small stream a second time if it looks bad, and keep the better one: a network may have stalled. */
  Run.prototype.again = function (small, then) {
    var before = this.found.streams.small, run = this;
    if (lateness(before) < 0.4) {
      return then();
    }
    this.stream("small", small, {}).call(this, function () {
      if (lateness(run.found.streams.small) > lateness(before)) {
        run.found.streams.small = before;
      }
      then();
    });
  };

  Run.prototype.meanwhile = function (then) {
    var run = this;
    this.later(1, function () {
      run.echo({ timeout: 8 }, function (answer) {
        run.found.while_streaming = { answered: answer.isOurs, after: rounded(answer.took) };
        then();
      });
    });
  };

  Run.prototype.long = function (then) {
    var wait = this.wait, holds = this.found.echo.holds, timeout = (this.found.echo.settings || {}).poll_timeout;
    if (holds === "one") {
      this.skip("long streams and polls, because the server answers one request at a time");
      return then();
    }
    var tasks = [
      this.stream("silent", { every: wait, count: 1, size: 0 }, {}),
      this.stream("active", { every: 1, count: wait, size: 0 }, { delay: LATER })
    ];
    if (holds === "threads") {
      this.skip("a long poll, because the server holds few requests at a time");
    } else {
      tasks.push(this.poll(Math.min(timeout >= 0 ? timeout : 25, wait)));
    }
    this.streamsBegan = seconds();
    this.all(tasks, true, then);
  };

  Run.prototype.poll = function (asked) {
    return function (then) {
      var run = this;
      this.ask("/poll", { query: { probe: 1, wait: asked }, timeout: asked + PATIENCE }, function (answer) {
        var poll = { asked: asked }, code = errorCode(answer);
        if (answer.status) {
          poll.status = answer.status;
        }
        if (answer.took < asked + PATIENCE - 0.2) {
          poll.answered_at = rounded(answer.took);
        }
        if (code) {
          poll.refused = code;
        }
        run.found.poll = poll;
        then();
      });
    };
  };

  /* Leave a stream, and ask the service until it has noticed that. */
  Run.prototype.leave = function (then) {
    var run = this, id = random(), options = { way: bestWay(), until: LEAVING };
    this.watch({ every: 0.5, count: 60, size: 0, id: id }, options, function (result) {
      var left = seconds();
      if (!result.seen.blocks.length) {
        run.skip("whether the service notices that a client leaves, because the stream for it did not come");
        return then();
      }
      (function ask() {
        run.ask("/doctor/left", { query: { id: id } }, function (answer) {
          var told = parsed(answer.text), waited = seconds() - left;
          if (!("ended" in told)) {
            run.skip("whether the service notices that a client leaves");
          } else if (told.ended) {
            run.found.left = { noticed: true, after: rounded(waited) };
          } else if (waited >= NOTICED) {
            run.found.left = { noticed: false, after: NOTICED };
          } else {
            return run.later(0.5, ask);
          }
          then();
        });
      })();
    });
  };

  // ---- The whole

  Run.prototype.judge = function (then) {
    var home = ownPrefix(), address = home + "/doctor/judge?pass=" + encodeURIComponent(this.pass);
    this.ask("", {
      address: address,
      body: JSON.stringify(this.found),
      headers: { "Content-Type": "application/json" }
    }, then);
  };

  Run.prototype.measure = function (then) {
    var run = this, names = ["statuses", "short", "quiet", "long"], gap = 0, last = seconds();
    var pulse = window.setInterval(function () {
      var now = seconds();
      gap = Math.max(gap, now - last - 0.1);
      last = now;
    }, 100);
    this.open.push(function () {
      window.clearInterval(pulse);
    });
    function finish() {
      window.clearInterval(pulse);
      run.found.client_gap = rounded(gap);
      run.shown.step("judge", "running");
      run.judge(function (answer) {
        run.shown.step("judge", answer.status === 200 ? "done" : "failed");
        then(answer);
      });
    }
    function next(index) {
      var name = names[index];
      if (index === names.length) {
        return finish();
      }
      if (!run.wait && (name === "quiet" || name === "long")) {
        run.shown.step(name, "left out");
        if (name === "long") {
          run.skip("long streams and polls, and a server that nobody asks: this was the quick form");
        }
        return next(index + 1);
      }
      run.shown.step(name, "running");
      run[name](function () {
        run.shown.step(name, "done");
        next(index + 1);
      });
    }
    this.shown.step("meet", "running");
    this.meet(function (isThere) {
      run.shown.step("meet", isThere ? "done" : "failed");
      if (isThere) {
        return next(0);
      }
      names.forEach(function (name) {
        run.shown.step(name, "left out");
      });
      finish();
    });
  };

  // ---- The page

  function ownPrefix() {
    return ownOrigin() + window.location.pathname.replace(/\/doctor\/?$/, "");
  }

  function element(name, className, text) {
    var made = document.createElement(name);
    if (className) {
      made.className = className;
    }
    if (text !== undefined) {
      made.textContent = text;
    }
    return made;
  }

  function tell(text) {
    byId("told").textContent = text;
  }

  function copyButton(from) {
    var button = element("button", "plain", "Copy");
    button.type = "button";
    button.addEventListener("click", function () {
      copy(from, button);
    });
    return button;
  }

  function copy(from, button) {
    var range, selection = window.getSelection();
    function done() {
      button.textContent = "Copied";
      tell("Copied");
    }
    range = document.createRange();
    range.selectNodeContents(from);
    selection.removeAllRanges();
    selection.addRange(range);
    if (navigator.clipboard && navigator.clipboard.writeText) {
      navigator.clipboard.writeText(from.textContent).then(done, function () {});
    } else if (document.execCommand && document.execCommand("copy")) {
      done();
    }
  }

  var steps = {}, timers = {}, run = null, ticking = 0;
  var LENGTHS = { meet: 1, statuses: 1, short: 6, quiet: QUIET, long: 95, judge: 1 };

  function showSteps() {
    var list = byId("steps");
    list.textContent = "";
    STEPS.forEach(function (step) {
      var item = element("li"), state = element("span", "state", "waiting");
      item.setAttribute("data-state", "waiting");
      item.appendChild(element("span", "", step[1]));
      item.appendChild(state);
      list.appendChild(item);
      steps[step[0]] = { item: item, state: state, title: step[1], name: "waiting", began: 0 };
    });
  }

  function setStep(name, state) {
    var step = steps[name];
    step.name = state;
    step.item.setAttribute("data-state", state);
    step.state.textContent = state;
    step.began = seconds();
    if (state === "running") {
      tell(step.title);
    }
  }

  function showTime() {
    var passed = 0, all = 0, name, step, length, spent;
    for (name in steps) {
      step = steps[name];
      length = step.name === "left out" ? 0 : LENGTHS[name];
      all += length;
      if (step.name === "running") {
        spent = seconds() - step.began;
        passed += Math.min(spent, length);
        if (length > 2) {
          step.state.textContent = Math.round(spent) + " of " + length + " s";
        }
      } else if (step.name !== "waiting") {
        passed += length;
      }
    }
    byId("bar").value = all ? passed / all : 0;
  }

  function articleOf(finding) {
    var level = /^(fault|warning|note)$/.test(finding.level) ? finding.level : "note";
    var article = element("article", "card"), paste, pre, link, more;
    article.setAttribute("data-level", level);
    article.appendChild(element("p", "level", level));
    article.appendChild(element("h3", "", finding.summary));
    article.appendChild(element("p", "evidence", finding.evidence));
    if (finding.remedy) {
      article.appendChild(element("p", "remedy", finding.remedy));
    }
    if (finding.paste) {
      paste = element("div", "paste");
      pre = element("pre", "", finding.paste);
      paste.appendChild(pre);
      paste.appendChild(copyButton(pre));
      article.appendChild(paste);
    }
    if (/^[a-z0-9_]{1,40}$/.test(finding.code)) {
      more = element("p", "help");
      link = element("a", "", "More about this");
      link.href = DOCS + finding.code;
      link.rel = "noreferrer";
      more.appendChild(link);
      more.appendChild(document.createTextNode(" (" + finding.code + ")"));
      article.appendChild(more);
    }
    return article;
  }

  function count(number, word) {
    return number + " " + word + (number === 1 ? "" : "s");
  }

  function showFindings(findings) {
    var verdict = byId("verdict"), of = { fault: 0, warning: 0, note: 0 }, place = byId("findings"), parts = [];
    place.textContent = "";
    findings.forEach(function (finding) {
      of[finding.level] += 1;
      place.appendChild(articleOf(finding));
    });
    verdict.setAttribute("data-level", of.fault ? "fault" : of.warning ? "warning" : "good");
    verdict.textContent = of.fault ? count(of.fault, "fault") + " found" : "No fault found";
    if (of.warning) {
      parts.push(count(of.warning, "warning"));
    }
    if (of.note) {
      parts.push(count(of.note, "note"));
    }
    byId("summary").textContent = (of.fault ? "" : "Streams and polls get through to this browser. ") +
      (parts.length ? "Also " + parts.join(" and ") + "." : "");
    // A person who cannot be helped by the judge still has what was measured.
    showResult();
  }

  function showRefusal(answer) {
    var verdict = byId("verdict"), error = parsed(answer.text).error || {};
    byId("findings").textContent = "";
    verdict.setAttribute("data-level", "note");
    verdict.textContent = "Measured, but not judged";
    byId("summary").textContent = "The judge of " + ownPrefix() + " " + (answer.status
      ? "answered " + answer.status + (error.message ? ": " + error.message + "." : ".")
      : "does not answer.") + " The operator of the service can read what was measured.";
    showResult();
  }

  function showResult() {
    byId("measured").textContent = JSON.stringify(run.found, null, 1);
    byId("result").hidden = false;
    byId("progress").hidden = true;
    byId("verdict").focus();
    tell(byId("verdict").textContent);
  }

  function setRunning(isRunning) {
    byId("start").disabled = byId("url").disabled = byId("pass").disabled = isRunning;
    byId("stop").hidden = !isRunning;
    window.clearInterval(ticking);
    if (isRunning) {
      byId("result").hidden = true;
      byId("progress").hidden = false;
      ticking = window.setInterval(showTime, 250);
    }
  }

  function start() {
    var address = byId("url").value.replace(/^\s+|[\s/]+$/g, "").replace(/[?#].*$/, "");
    var wait = document.querySelector("input[name=long]:checked").value;
    if (!origin(address)) {
      byId("where").textContent = "The address has to begin with https:// or http://, such as https://push.example/sse";
      byId("url").focus();
      return;
    }
    byId("where").textContent = "";
    if (run) {
      run.stop();
    }
    showSteps();
    setRunning(true);
    byId("stop").focus();
    run = new Run(address, byId("pass").value.replace(/\s/g, ""), Number(wait), { step: setStep });
    run.measure(function (answer) {
      var told = parsed(answer.text);
      setRunning(false);
      if (answer.status === 200 && told.findings instanceof Array) {
        showFindings(told.findings);
      } else {
        showRefusal(answer);
      }
    });
  }

  function readAddress() {
    var given = {}, isOther;
    window.location.hash.replace(/^#/, "").split("&").forEach(function (part) {
      var at = part.indexOf("=");
      try {
        given[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1));
      } catch (_) {
        return;
      }
    });
    byId("url").value = given.url || ownPrefix();
    byId("pass").value = given.pass || "";
    isOther = origin(byId("url").value) !== origin(ownPrefix());
    byId("where").textContent = isOther
      ? "This link asks another site than the one of this page. Press Start if you mean it."
      : "";
  }

  byId("form").addEventListener("submit", function (event) {
    event.preventDefault();
    start();
  });
  byId("stop").addEventListener("click", function () {
    run.stop();
    setRunning(false);
    byId("progress").hidden = true;
    byId("start").focus();
    tell("Stopped");
  });
  byId("copy").addEventListener("click", function () {
    copy(byId("measured"), byId("copy"));
  });
  window.addEventListener("hashchange", function () {
    if (byId("stop").hidden) {
      readAddress();
    }
  });
  readAddress();
})();
