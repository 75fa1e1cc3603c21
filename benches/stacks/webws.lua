-- The handler that webws replaces, as such handlers are written with lua-resty-websocket and
-- lua-resty-redis; ours, for comparison, with the same work per message as the original:
--
--   * one Redis connection per client for SUBSCRIBE, read by a light thread;
--   * a new Redis connection for each message of a client, for PUBLISH;
--   * the channel's name behind every payload; a ping after 5 s of silence.
--
-- In the original's place it is kinder where the original wastes: a dead Redis ends the client instead
-- of spinning, a close is answered and its connections are closed, and reads from Redis wait as long as
-- nginx' default (60 s), where a shorter timeout would wake each idle client more often.

local server = require "resty.websocket.server"
local redis = require "resty.redis"
local cjson = require "cjson"

local PREFIX = "chat:"
local PING_AFTER_MS = 5000
local redis_port = tonumber(ngx.var.redis_port)

local decoded, channel = pcall(cjson.decode, ngx.var.arg_channel and ngx.unescape_uri(ngx.var.arg_channel) or "")
if not decoded or (type(channel) ~= "string" and type(channel) ~= "number") then
    return ngx.exit(400)
end
channel = tostring(channel)

local function connect()
    local link = redis:new()
    local ok, err = link:connect("127.0.0.1", redis_port)
    if not ok then
        ngx.log(ngx.ERR, "redis: ", err)
        return nil
    end
    return link
end

local socket, err = server:new { timeout = PING_AFTER_MS, max_payload_len = 65535 }
if not socket then
    ngx.log(ngx.ERR, "websocket: ", err)
    return ngx.exit(400)
end

local subscriber = connect()
if not subscriber or not subscriber:subscribe(PREFIX .. channel) then
    socket:send_close(1013)
    return
end

local function deliver()
    while true do
        local reply, err = subscriber:read_reply()
        if reply then
            if reply[1] == "message" and not socket:send_text(reply[3] .. channel) then
                return
            end
        elseif err ~= "timeout" then
            socket:send_close(1013)
            return
        end
    end
end

local function publish(payload)
    local publisher = connect()
    if publisher then
        publisher:publish(PREFIX .. channel, payload)
        publisher:close()
    end
end

local thread = ngx.thread.spawn(deliver)
while true do
    local payload, kind, err = socket:recv_frame()
    if kind == "text" then
        publish(payload)
    elseif kind == "close" then
        socket:send_close()
        break
    elseif kind == "ping" then
        if not socket:send_pong(payload) then break end
    elseif not kind then
        -- A timeout is a silent client; anything else is its end.
        if not err or not err:find("timeout", 1, true) or not socket:send_ping() then break end
    end
end
ngx.thread.kill(thread)
subscriber:close()
