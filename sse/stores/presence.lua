#!lua
-- Takes a worker's report on a channel's presence, or tells how many connections the channel has. `presence.py` says
-- what a record is, and why each step is safe.
-- KEYS: 1 the sums: a hash with the connections of each subject under '=SUBJECT', of all under '#count', and '#origin';
--   2 the records: a sorted set, each with the time when it ends; 3 the subjects that have no connection any more: a
--   sorted set, each with the time when it has left. The key of a record is that of the sums, ':at:' and its name: a
--   hash of numbers by connection, and '#' with the number of its last report, or -1 once it is being removed.
-- ARGV: 1 name of the record, empty to ask for the count alone; 2 number of the report; 3 origin that the worker knows;
--   4 a new origin; 5 and 6 milliseconds that a record lasts, and after which a subject has left; 7 seconds that the
--   keys live; 8 connections of lost records to remove at once; 9 '1' to remove the record; then connection, number, …
-- Returns {1, origin, whether there is more, subjects that are leaving, {joined}, {left}}; {0, origin} for a report
-- that is not known; {count, whether there is more} if asked.
local sums, records, leaving = KEYS[1], KEYS[2], KEYS[3]
local record, number, known = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local names = redis.call('ZRANGE', records, 0, -1, 'WITHSCORES')
local last = (tonumber(names[#names] or 0)) - tonumber(ARGV[5])   -- when the last report came
local joined, left, quiet = {}, {}, false

local function key_of(name) return sums .. ':at:' .. name end

local function add(subject, by)
  redis.call('HINCRBY', sums, '#count', by)
  local sum = redis.call('HINCRBY', sums, '=' .. subject, by)
  if sum <= 0 then
    redis.call('HDEL', sums, '=' .. subject)
    if subject ~= '' then redis.call('ZADD', leaving, now + tonumber(ARGV[6]), subject) end
  elseif sum == by and subject ~= '' and redis.call('ZREM', leaving, subject) == 0 and not quiet then
    joined[#joined + 1] = subject
  end
end

local function is_elsewhere(name, connection)
  for index = 1, #names, 2 do
    if names[index] ~= name and redis.call('HEXISTS', key_of(names[index]), connection) == 1 then return true end
  end
end

local function set(name, connection, value)
  local before = tonumber(redis.call('HGET', key_of(name), connection) or 0)
  if value == before then return end
  if value == 0 then redis.call('HDEL', key_of(name), connection)
  else redis.call('HSET', key_of(name), connection, value) end
  local client, subject = string.match(connection, '^([^=]*)=(.*)$')
  if client == '' or not is_elsewhere(name, connection) then add(subject, value - before) end
end

-- Takes no further report for a record, of which a part may be removed already.
local function shut(name)
  redis.call('HSET', key_of(name), '#', -1)
  redis.call('EXPIRE', key_of(name), ARGV[7])
end

-- Removes some connections of a record, and the record once it has none. Returns how many it has removed.
local function remove(name, most)
  shut(name)
  local found = redis.call('HRANDFIELD', key_of(name), most)
  for _, connection in ipairs(found) do
    if connection ~= '#' then set(name, connection, 0) end
  end
  if redis.call('HLEN', key_of(name)) <= 1 then
    redis.call('DEL', key_of(name))
    redis.call('ZREM', records, name)
  end
  return #found
end

-- Removes some connections of the records that have ended. Returns 1 if there are more.
local function sweep()
  local room = tonumber(ARGV[8])
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', records, '-inf', now)) do
    if name ~= record then
      if room <= 0 then return 1 end
      room = room - remove(name, room)
      if redis.call('ZSCORE', records, name) then return 1 end
    end
  end
  return 0
end

if record == '' then
  local more = sweep()
  return {tonumber(redis.call('HGET', sums, '#count') or 0), more}
end

local origin = redis.call('HGET', sums, '#origin')
local done = origin and tonumber(redis.call('HGET', key_of(record), '#') or 0)
local worker, count = string.match(record, '^(.*)%.(%d+)$')
if number > 1 and done ~= number and done ~= number - 1 then return {0, origin or ''} end
if number == 1 and origin then
  if done ~= 0 and done ~= 1 then return {0, origin} end
  for index = 1, #names, 2 do
    local other, version = string.match(names[index], '^(.*)%.(%d+)$')
    if other == worker and tonumber(version) > tonumber(count) then return {0, origin} end   -- this one comes too late
    if other == worker and version ~= count then
      redis.call('ZADD', records, 0, names[index])
      shut(names[index])
    end
  end
end
if not origin then
  for index = 1, #names, 2 do redis.call('DEL', key_of(names[index])) end
  redis.call('DEL', sums, records, leaving)
  names, origin = {}, ARGV[4]
  redis.call('HSET', sums, '#origin', origin, '#count', 0)
end
quiet = known ~= '' and known ~= origin
redis.call('HSET', key_of(record), '#', number)
if number == 1 then names[#names + 1], names[#names + 2] = record, '' end
redis.call('ZADD', records, now + tonumber(ARGV[5]), record)
for index = 10, #ARGV, 2 do   -- first the connections that have come, so that nobody leaves who only changes
  if ARGV[index + 1] ~= '0' then set(record, ARGV[index], tonumber(ARGV[index + 1])) end
end
for index = 10, #ARGV, 2 do
  if ARGV[index + 1] == '0' then set(record, ARGV[index], 0) end
end
if ARGV[9] == '1' then
  remove(record, tonumber(ARGV[8]))
  if redis.call('ZSCORE', records, record) then redis.call('ZADD', records, 0, record) end   -- the rest is swept
  record = ''
end
local more = sweep()
local due = redis.call('ZRANGEBYSCORE', leaving, '-inf', now, 'LIMIT', 0, 1000)
if now - last > tonumber(ARGV[5]) / 2 then
  -- Nobody has reported for so long, so Redis was away. Workers that are about to report again may have these.
  for _, subject in ipairs(due) do redis.call('ZADD', leaving, now + tonumber(ARGV[5]), subject) end
else
  left = due
  for _, subject in ipairs(due) do redis.call('ZREM', leaving, subject) end
  if #due == 1000 then more = 1 end
end
for _, name in ipairs({sums, records, leaving, key_of(ARGV[1])}) do redis.call('EXPIRE', name, ARGV[7]) end
return {1, origin, more, redis.call('ZCARD', leaving), joined, left}
