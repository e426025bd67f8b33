#!lua
-- Gives up the lease of a source. Without a wait, the attempt that took it does not count.
-- KEYS: 1 record of the source, 2 lease
-- ARGV: 1 token, 2 milliseconds before which the lease cannot be taken, 3 seconds that the record lives
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return end
redis.call('DEL', KEYS[2])
local time = redis.call('TIME')
local due = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'due', string.format('%.0f', due))
if ARGV[2] == '0' then
  local attempts = tonumber(redis.call('HMGET', KEYS[1], 'attempts')[1] or 0)
  redis.call('HSET', KEYS[1], 'attempts', string.format('%.0f', math.max(attempts - 1, 0)))
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
