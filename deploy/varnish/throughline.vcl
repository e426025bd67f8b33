vcl 4.1;
# Throughline behind Varnish 7.1 or newer. README.md beside this file has the commands, with
# the parameters that varnishd needs (-p), and says what each line is for. Varnish speaks no
# TLS: put hitch, HAProxy or nginx before it.

backend throughline {
    .host = "127.0.0.1";
    .port = "8000";
    .connect_timeout = 5s;
    # A poll waits for 60 s at most.
    .first_byte_timeout = 90s;
    .between_bytes_timeout = 90s;
}

sub vcl_recv {
    # If SSE_PREFIX is not /sse, change this line and the one below. A view of the app may answer
    # with a stream at any address: an EventSource asks for one with this header.
    if (req.url ~ "^/sse/stream([?]|$)" || req.http.Accept ~ "text/event-stream") {
        # A pipe: every event goes through at once, nothing is shared or compressed, and the
        # service learns at once that a client has gone.
        return (pipe);
    }
    if (req.url ~ "^/sse/") {
        # Nothing else of the service is looked up or kept, and no request waits for the
        # answer to an equal one.
        return (pass);
    }
}

sub vcl_pipe {
    # One request on each connection. Otherwise a second request would go into the pipe,
    # past these rules.
    set bereq.http.Connection = "close";
}
