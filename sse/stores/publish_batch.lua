#!lua
-- Stores several events of one call in one step, each as publish.lua does, or none of them. publish.lua is the function
-- `publish` here.
-- KEYS: the keys of each event, as for publish.lua
-- ARGV: for each event: 1 number of its keys, 2 to 8 its arguments, as for publish.lua, 9 1 if its publisher has given
-- the idempotency key, else 0
-- Returns the reply of publish.lua for each event. If nothing is stored, it returns {outcome, number of the event}: the
-- outcome is 'conflict' if the event's key was used for another event, and 'ended' if its channel has ended.
local keys, arguments, markers = {}, {}, {}   -- of each event
local used = {}   -- the digests of events that are to be stored, by their keys
local first, number = 1, 0
for start = 1, #ARGV, 9 do
  local last = first + tonumber(ARGV[start]) - 1
  number = number + 1
  keys[number], arguments[number] = {unpack(KEYS, first, last)}, {unpack(ARGV, start + 1, start + 7)}
  markers[number] = KEYS[first] .. ':run'
  if ARGV[start + 8] == '1' then
    local digest, key = redis.sha1hex(ARGV[start + 7]), KEYS[first + 1]
    local known, done = used[key], redis.call('GET', key)
    if done then known = string.match(done, ' (%S+)$') or '' end
    if known and known ~= digest then return {'conflict', number} end
    used[key] = digest
  end
  first = last + 1
end
for start = 1, number, 1000 do   -- Lua cannot unpack very many
  local last = math.min(start + 999, number)
  if redis.call('EXISTS', unpack(markers, start, last)) > 0 then
    for index = start, last do
      local has_ended = redis.call('HMGET', markers[index], 'end')[1]
      if has_ended and not redis.call('GET', keys[index][2]) then return {'ended', index} end
    end
  end
end
local replies = {}
for index = 1, number do
  local is_good, reply = pcall(publish, keys[index], arguments[index])
  if not is_good and type(reply) ~= 'table' then reply = {err = tostring(reply)} end
  replies[index] = reply
end
return replies
