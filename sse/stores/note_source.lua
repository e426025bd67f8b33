#!lua
-- Notes and announces a new state of a source.
-- KEYS: 1 record of the source, 2 lease
-- ARGV: 1 token, 2 state, 3 seconds that the record lives, 4 PUBLISH or SPUBLISH, 5 pub/sub channel
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return end
local is_same = redis.call('HMGET', KEYS[1], 'state')[1] == ARGV[2]
if not is_same then
  local time = redis.call('TIME')
  local since = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('HSET', KEYS[1], 'state', ARGV[2], 'since', string.format('%.0f', since))
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
if not is_same then redis.pcall(ARGV[4], ARGV[5], 'state') end
