#!lua
-- Stores several events of one call in one step, each as publish.lua does, or none of them. publish.lua is the function
-- `publish` here.
-- KEYS: the keys of each event, as for publish.lua
-- ARGV: for each event: 1 number of its keys, 2 to 8 its arguments, as for publish.lua, 9 1 if its publisher has given
-- the idempotency key, else 0
-- Returns the reply of publish.lua for each event. If nothing is stored, it returns {outcome, number of the event}: the
-- outcome is 'conflict' if the event's key was used for another event, and 'ended' if its channel has ended.
local events, markers = {}, {}
local first = 1
for start = 1, #ARGV, 9 do
  local count = tonumber(ARGV[start])
  local event = {keys = {unpack(KEYS, first, first + count - 1)}, argv = {unpack(ARGV, start + 1, start + 7)}}
  event.is_keyed = ARGV[start + 8] == '1'
  events[#events + 1], markers[#markers + 1] = event, event.keys[1] .. ':run'
  first = first + count
end
local used = {}   -- the digests of events that are to be stored, by their keys
for index, event in ipairs(events) do
  if event.is_keyed then
    local digest, key = redis.sha1hex(event.argv[7]), event.keys[2]
    local known, done = used[key], redis.call('GET', key)
    if done then known = string.match(done, ' (%S+)$') or '' end
    if known and known ~= digest then return {'conflict', index} end
    used[key] = digest
  end
end
for start = 1, #markers, 1000 do   -- Lua cannot unpack very many
  if redis.call('EXISTS', unpack(markers, start, math.min(start + 999, #markers))) > 0 then
    for index = start, math.min(start + 999, #markers) do
      local has_ended = redis.call('HMGET', markers[index], 'end')[1]
      if has_ended and not redis.call('GET', events[index].keys[2]) then return {'ended', index} end
    end
  end
end
local replies = {}
for index, event in ipairs(events) do
  local is_good, reply = pcall(publish, event.keys, event.argv)
  if not is_good and type(reply) ~= 'table' then reply = {err = tostring(reply)} end
  replies[index] = reply
end
return replies
