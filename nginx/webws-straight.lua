-- webws-straight.lua: gives a client's own socket to webws, and takes nginx out of the connection.
-- webws-straight-location.conf runs this file as its content handler, after the rewrite, limit and access phases.
--
-- One datagram carries the request's head, as the proxied location would have sent it, and the client's socket
-- (SCM_RIGHTS). Then nginx forgets the socket. What cannot be handed off is proxied: TLS, HTTP/2, a request with a body,
-- bytes read ahead, and every request while webws is away or busy. So are long-polls: webws answers a poll once and
-- closes the connection, which nginx keeps for the client's next poll.
--
-- ngx_lua has no call for that, so the file reads two structs of nginx. It asks the kernel before it follows a pointer,
-- and checks what it finds: a signature, two pointers that lead back, and the client's address. If one of these is
-- wrong, nginx logs one error, and proxies from then on. Tried: nginx 1.22 with ngx_lua 0.10.23. The structs are the
-- same from nginx 1.18 to 1.31. Needs Linux on x86-64 or arm64, and "lua_code_cache on" (the default).

local NAME = "webws-straight"
local loaded = package.loaded[NAME]
if loaded then return loaded() end

local ffi = require "ffi"
local bit = require "bit"
local C, cast, new, errno = ffi.C, ffi.cast, ffi.new, ffi.errno
local ngx = ngx

-- Once in each worker: in code that runs per request, LuaJIT's table of types would be full after some 1,400.
local is_declared, fault = pcall(ffi.cdef, [[
typedef struct { const void *base; size_t len; } webws_iovec;
typedef struct {
    void *name; uint32_t name_len; webws_iovec *iov; size_t iov_len; void *control; size_t control_len; int flags;
} webws_msghdr;
typedef struct { size_t len; int level, type, fd, padding; } webws_cmsg;
typedef struct { uint16_t family; char path[108]; } webws_unix_address;
typedef struct { uint16_t family; uint8_t port[2]; uint8_t v4[4]; uint8_t v6[16]; uint8_t more[104]; } webws_address;
typedef struct {
    void *add, *del, *enable, *disable, *add_conn; intptr_t (*del_conn)(void *, uintptr_t);
} webws_event_actions;

extern webws_event_actions ngx_event_actions;
int webws_socket(int, int, int) __asm__("socket");
int webws_connect(int, const void *, uint32_t) __asm__("connect");
int webws_close(int) __asm__("close");
int webws_pipe(int *, int) __asm__("pipe2");
int webws_getpeername(int, void *, uint32_t *) __asm__("getpeername");
int webws_inet_pton(int, const char *, void *) __asm__("inet_pton");
intptr_t webws_sendmsg(int, const webws_msghdr *, int) __asm__("sendmsg");
intptr_t webws_write(int, const void *, size_t) __asm__("write");
intptr_t webws_read(int, void *, size_t) __asm__("read");
]])

-- Linux on x86-64 and arm64.
local AF_UNIX, AF_INET, AF_INET6, SOL_SOCKET, SCM_RIGHTS = 1, 2, 10, 1, 1
local SOCK_DGRAM, SOCK_CLOEXEC, SOCK_NONBLOCK, O_CLOEXEC, O_NONBLOCK = 2, 0x80000, 0x800, 0x80000, 0x800
local MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000
local EAGAIN, ENOMEM, ENOBUFS, ENOTCONN, ETOOMANYREFS, ECONNREFUSED = 11, 12, 105, 107, 109, 111

-- The headers of the proxied location, in its order: an allow-list, and what nginx adds.
local HEADERS = {
    { "Host", "http_host" },
    { "Connection", "http_connection" },
    { "Upgrade", "http_upgrade" },
    { "Accept", "http_accept" },
    { "Last-Event-ID", "http_last_event_id" },
    { "Sec-WebSocket-Key", "http_sec_websocket_key" },
    { "Sec-WebSocket-Version", "http_sec_websocket_version" },
    { "Sec-WebSocket-Protocol", "http_sec_websocket_protocol" },
    { "Sec-WebSocket-Extensions", "http_sec_websocket_extensions" },
    { "Origin", "http_origin" },
    { "Access-Control-Request-Method", "http_access_control_request_method" },
    { "User-Agent", "http_user_agent" },
    { "X-Real-IP", "remote_addr" },
    { "X-Forwarded-For", "remote_addr" },
    { "X-Forwarded-Proto", "scheme" },
    { "X-Request-ID", "request_id" },
    { "X-Webws-Endpoint", "webws_path" },
    { "X-Webws-User", "webws_user" },
    { "X-Webws-Channels", "webws_channels" },
    { "X-Webws-Expires", "webws_expires" },
    { "Cookie", "webws_cookie" },
}

-- For a webws that is busy for a moment: how long to wait before another attempt, in seconds.
local PAUSES = { 0.001, 0.004, 0.016 }

-- This worker's.
local handoff           -- the descriptor of its datagram socket
local is_known = false  -- whether the structs were found as expected
local is_broken = false -- whether they were not
local logged = {}       -- when a reason was logged last

-- Logs a reason once a minute: there may be thousands of requests.
local function complain(reason, text)
    local now = ngx.now()
    if now - (logged[reason] or -60) >= 60 then
        logged[reason] = now
        ngx.log(ngx.WARN, NAME, ": ", text, "; requests are proxied (this line comes once a minute)")
    end
end

-- Proxies from now on, because this nginx is not as expected.
local function give_up(why)
    if not is_broken then
        is_broken = true
        ngx.log(ngx.ERR, NAME, ": ", why, ": this worker proxies all requests from now on")
    end
    return nil, "layout"
end

local pipe

-- Whether memory can be read. The kernel answers with an error where reading it here would be a crash.
local function is_readable(address, len)
    if not pipe then
        local ends = new("int[2]")
        if C.webws_pipe(ends, bit.bor(O_CLOEXEC, O_NONBLOCK)) ~= 0 then return false end
        pipe = ends
    end
    local sink = new("char[?]", len)
    return C.webws_write(pipe[1], address, len) == len and C.webws_read(pipe[0], sink, len) == len
end

local function pointer(at, offset)
    return cast("const uint8_t **", at + offset)[0]
end

-- Whether both structs are as expected; true is found once in each worker.
local function is_as_expected(r, at)
    if not is_readable(r, 104) or cast("uint32_t *", r)[0] ~= 0x50545448 then return false end
    local c, header = pointer(r, 8), pointer(r, at)
    if not is_readable(c, 32) or pointer(c, 0) ~= r then return false end
    if not is_readable(header, 48) then return false end
    local pos, last, start, stop = pointer(header, 0), pointer(header, 8), pointer(header, 32), pointer(header, 40)
    return start < pos and pos <= last and last <= stop and stop - start < 0x1000000
        and is_readable(pos - 1, 1) and pos[-1] == 10
end

-- Whether `fd` is the connection of the client that nginx says is there.
local function is_the_client(fd, var)
    local address, len = new("webws_address"), new("uint32_t[1]", ffi.sizeof("webws_address"))
    if C.webws_getpeername(fd, address, len) ~= 0 then return false, errno() == ENOTCONN end
    -- With the realip module, $remote_addr may be another client's.
    local text, port = var.realip_remote_addr or var.remote_addr, var.realip_remote_port or var.remote_port
    if address.port[0] * 256 + address.port[1] ~= tonumber(port) then return false end
    local is_v6 = address.family == AF_INET6
    if not is_v6 and address.family ~= AF_INET then return false end
    local expected = new("uint8_t[16]")
    -- v4 is where IPv6 has its flow label, before the address.
    if C.webws_inet_pton(address.family, text, expected) ~= 1 then return false end
    local size = is_v6 and 16 or 4
    return ffi.string(expected, size) == ffi.string(is_v6 and address.v6 or address.v4, size)
end

-- The request's connection and its descriptor; or nil and why it cannot be handed off.
local function connection_of(var)
    if is_broken then return nil, "layout" end
    local r = cast("const uint8_t *", require("resty.core.base").get_request())
    -- Without its cache, nginx has one pointer less in front.
    local at = ngx.config.nginx_configure():find("--without-http-cache", 1, true) and 88 or 96
    if not is_known and not is_as_expected(r, at) then
        return give_up("the structs of this nginx are not where they should be")
    end
    local c, header = pointer(r, 8), pointer(r, at)
    if cast("uint32_t *", r)[0] ~= 0x50545448 or pointer(c, 0) ~= r then return nil, "other" end
    local fd = cast("int *", c + 24)[0]
    local is_right, is_gone = is_the_client(fd, var)
    if not is_right then
        if is_gone or is_known then return nil, "other" end
        return give_up("the socket found for a client is not that client's")
    end
    is_known = true
    if pointer(header, 0) ~= pointer(header, 8) then return nil, "ahead" end
    return c, fd
end

-- As nginx writes a path that a rewrite has changed.
local function escape(path)
    return (path:gsub('[%z\1- "#%%<>?\\^`{|}\127-\255]', function(char) return ("%%%02X"):format(char:byte()) end))
end

-- The head of the request, as the proxied location would send it.
local function head_of(var)
    local args = var.args
    local lines = { "GET " .. escape(var.uri) .. ((args and args ~= "") and "?" .. args or "") .. " HTTP/1.1" }
    for _, header in ipairs(HEADERS) do
        local value = var[header[2]]
        if value and value ~= "" then lines[#lines + 1] = header[1] .. ": " .. value end
    end
    lines[#lines + 1] = "\r\n"
    return table.concat(lines, "\r\n")
end

local function connect(path)
    local fd = C.webws_socket(AF_UNIX, bit.bor(SOCK_DGRAM, SOCK_CLOEXEC, SOCK_NONBLOCK), 0)
    if fd < 0 then return errno() end
    local address = new("webws_unix_address", AF_UNIX, path)
    if C.webws_connect(fd, address, ffi.sizeof(address)) ~= 0 then
        local failed = errno()
        C.webws_close(fd)
        return failed
    end
    handoff = fd
end

-- Sends the head and the client's socket in one datagram. Returns nothing, or an errno when nothing was sent.
local function send(fd, head)
    local control = new("webws_cmsg", 20, SOL_SOCKET, SCM_RIGHTS, fd)
    local iov = new("webws_iovec[1]", { { cast("const char *", head), #head } })
    local message = new("webws_msghdr", nil, 0, iov, 1, control, ffi.sizeof(control), 0)
    if C.webws_sendmsg(handoff, message, bit.bor(MSG_DONTWAIT, MSG_NOSIGNAL)) < 0 then return errno() end
end

-- The same, on a new socket if another process listens by now.
local function send_to(path, fd, head)
    if handoff then
        local failed = send(fd, head)
        if failed ~= ECONNREFUSED and failed ~= ENOTCONN then return failed end
        C.webws_close(handoff)
        handoff = nil
    end
    return connect(path) or send(fd, head)
end

local function is_busy(failed)
    return failed == EAGAIN or failed == ENOBUFS or failed == ENOMEM or failed == ETOOMANYREFS
end

-- The connection that webws has now; or nil and why it was not handed off.
local function hand_off(var)
    if var.webws_asked == "poll" then return nil, "poll" end
    if var.scheme ~= "http" then return nil, "tls" end
    if var.server_protocol ~= "HTTP/1.1" then return nil, "protocol" end
    if (var.http_content_length or "0") ~= "0" or var.http_transfer_encoding then return nil, "body" end
    if (var.realip_remote_addr or var.remote_addr):sub(1, 5) == "unix:" then return nil, "unix" end
    local c, fd = connection_of(var)
    if not c then return nil, fd end
    local head, path = head_of(var), var.webws_handoff
    local failed = send_to(path, fd, head)
    for _, pause in ipairs(PAUSES) do
        if not is_busy(failed) then break end
        ngx.sleep(pause)
        failed = send_to(path, fd, head)
    end
    if not failed then return c end
    local why = "webws takes no clients at " .. path .. " (errno " .. failed .. ")"
    local reason = is_busy(failed) and "full" or "away"
    complain(reason, why)
    return nil, reason
end

local function run()
    local var = ngx.var
    local asked = var.webws_asked
    if asked == "websocket" or asked == "events" or asked == "poll" then
        local c, reason = hand_off(var)
        if c then
            -- Before nginx closes the descriptor: the open file lives on in webws, so its registration in epoll would
            -- live on as well, and nginx would take its events for those of the next client in the same place.
            C.ngx_event_actions.del_conn(cast("void *", c), 0)
            -- nginx closes the connection: no answer, no lingering.
            return ngx.exit(444)
        end
        var.webws_straight = "no; reason=" .. reason
    end
    return ngx.exec(var.webws_proxied)
end

if not is_declared then
    give_up(tostring(fault))
elseif ffi.os ~= "Linux" or not (ffi.arch == "x64" or ffi.arch == "arm64") then
    give_up(ffi.os .. " on " .. ffi.arch .. " is not known here")
elseif not pcall(function() return C.ngx_event_actions.del_conn end) or C.ngx_event_actions.del_conn == nil then
    give_up("nginx has no way to forget a connection (epoll)")
end
package.loaded[NAME] = run
return run()
