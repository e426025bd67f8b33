// The types of sse.js and sse.mjs. docs/embedding.md says what everything does.

/** Follow channels of the service at `url`, such as "/sse" or "https://push.example/sse". */
declare function SSE(url: string, options: SSE.Options): SSE.Feed;
/** Follow the channels that a view of the app chooses, which answers with `sse.subscribe`. */
declare function SSE(options: SSE.ViewOptions): SSE.Feed;

declare namespace SSE {
  interface Options extends CommonOptions {
    /** The names of the channels, as a list or as a text with spaces between them. */
    channels: readonly string[] | string;
  }

  interface ViewOptions extends CommonOptions {
    /** The view's address, such as "/inbox/events". Its query is kept. */
    view: string;
  }

  interface CommonOptions {
    /** Sent with each request; or a function that gives each new ticket to `use`. An empty text closes the feed. */
    token?: string | ((use: (token: string) => void) => void);
    /** Where a ticket is fetched, as text or as JSON with the member `token` or `ticket`. */
    tokenUrl?: string;
    /** How many of the newest events of each channel to begin with. */
    replay?: number | string;
    /** Send cookies to a service on another origin, too. */
    credentials?: boolean;
    /** false: a connection of its own, instead of one for all tabs. */
    share?: boolean;
    /** Seconds of quiet before a heartbeat, 3 at the least. */
    heartbeat?: number | string;
    /** Where an earlier page stood: its feed's `lastEventId`. */
    lastEventId?: string;
  }

  type State = "connecting" | "live" | "polling" | "waiting" | "closed";
  type Transport = "eventsource" | "xhr" | "poll" | "";

  /** The members of a feed that "sse.state" tells, too. */
  interface Status {
    readonly state: State;
    /** Why it is in this state, in words. */
    readonly reason: string;
    readonly transport: Transport;
    /** Whether tabs share the connection. */
    readonly shared: boolean;
    /** How many tabs and feeds share it. */
    readonly tabs: number;
  }

  interface StateChange extends Status {
    readonly channels: readonly string[];
  }

  interface Event {
    readonly channel: string;
    /** A last event id whose first entry is this event's channel. */
    readonly id: string;
    readonly type: string;
    /** The text. */
    readonly data: string;
    /** The parsed data; undefined where it is not JSON. */
    readonly json: any;
  }

  /** Events may be missing here: fetch the state again. */
  interface Reset {
    readonly channel: string;
    readonly id: string;
    readonly reason: "trimmed" | "unknown" | "diverged" | "invalid" | "missing";
    /** How many events are gone; null where that cannot be known. */
    readonly missed: number | null;
  }

  /** The last word of a channel: its text, or whatever wrote there, has ended. */
  interface End {
    readonly channel: string;
    readonly id: string;
    readonly reason: "done" | "stopped" | "failed" | "lost" | "interrupted";
  }

  /** Whether what fills a channel while someone listens works now. */
  interface Source {
    readonly channel: string;
    readonly state: "up" | "down";
  }

  interface Expiry {
    /** The seconds that the token is still good for. */
    readonly expires: number;
  }

  interface OwnEvents {
    /** Each event, whatever its type. */
    "sse.event": Event;
    "sse.state": StateChange;
    "sse.reset": Reset;
    "sse.end": End;
    "sse.source": Source;
    "sse.auth": Expiry;
  }

  interface Feed extends Status {
    /** The positions of all channels, from which a later page can go on. */
    readonly lastEventId: string;
    /** The pieces of the channel so far: its events of type "text", joined. A reset empties it. */
    text(channel: string): string;
    on<K extends keyof OwnEvents>(type: K, listener: (event: OwnEvents[K]) => void): this;
    on(type: string, listener: (event: Event) => void): this;
    off<K extends keyof OwnEvents>(type: K, listener: (event: OwnEvents[K]) => void): this;
    off(type: string, listener: (event: Event) => void): this;
    close(): void;
  }

  /** The content of a block of text/event-stream (WHATWG HTML 9.2.6). */
  interface Block {
    readonly type: string;
    readonly data: string;
    readonly id: string;
  }

  const version: string;
  /** Start tags that were added after the script. */
  function start(): void;
  /** Give the global `SSE` back to whatever had it before, and return this one. */
  function noConflict(): typeof SSE;
  /** The standard interface of an EventSource (WHATWG HTML 9.2.2), on everything that a feed does. */
  const EventSource: {
    new (url: string | URL, options?: EventSourceInit): globalThis.EventSource;
    readonly CONNECTING: 0;
    readonly OPEN: 1;
    readonly CLOSED: 2;
  };
  /** A parser of text/event-stream, fed with decoded text. */
  class Parser {
    constructor(dispatch: (block: Block) => void, retry?: (milliseconds: number) => void);
    feed(text: string): void;
  }
}

export default SSE;

declare global {
  interface HTMLScriptElement {
    /** The feed of a tag with data-channels or data-view. */
    sse?: SSE.Feed;
  }
  interface HTMLHtmlElement {
    /** `SSE`, where sse.js was loaded by a tag, whatever `window.SSE` is. */
    sse?: typeof SSE;
  }
  /** On `document`, and on the element of each tag. */
  interface TagEventMap {
    "sse-state": CustomEvent<SSE.StateChange>;
    "sse-reset": CustomEvent<SSE.Reset>;
    "sse-end": CustomEvent<SSE.End>;
    "sse-source": CustomEvent<SSE.Source>;
    "sse-auth": CustomEvent<SSE.Expiry>;
    [event: `sse:${string}`]: CustomEvent<SSE.Event>;
  }
  interface DocumentEventMap extends TagEventMap {}
  interface HTMLElementEventMap extends TagEventMap {}
  interface Window {
    /** Where sse.js was loaded by a tag. */
    SSE: typeof SSE;
  }
}
