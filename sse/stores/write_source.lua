#!lua
-- Stores and announces an event of a source, and trims the ring. With the first event of a runner, the next attempt
-- comes as soon as after one that is ARGV[10] attempts earlier.
-- KEYS: 1 ring, 2 record of the source, 3 lease
-- ARGV: 1 nonce, 2 token, 3 key of this write, 4 payload, 5 entries that the ring keeps, with the one before the oldest
-- event, 6 seconds that the ring lives, 7 seconds that the record lives, 8 PUBLISH or SPUBLISH, 9 pub/sub channel,
-- 10 attempts that do not count for a runner that has stored an event
-- Returns {id, outcome, error}. The outcome is 'new', 'again', or 'lost' if the lease does not hold the token.
local source = redis.call('HMGET', KEYS[2], 'key', 'last', 'writer', 'attempts')
if source[1] == ARGV[3] then return {source[2], 'again', ''} end
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return {'', 'lost', ''} end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local prev, id = append(KEYS[1], last, ARGV[1], ARGV[4], ARGV[5])
if type(id) == 'table' then return redis.error_reply(id.err) end
redis.call('EXPIRE', KEYS[1], ARGV[6])
local time = redis.call('TIME')
redis.call('HSET', KEYS[2], 'key', ARGV[3], 'last', id, 'writer', ARGV[2], 'written', time[1])
if source[3] ~= ARGV[2] then
  local counted = math.max(tonumber(source[4] or 0) - tonumber(ARGV[10]), 1)
  local due = 1000 * (tonumber(time[1]) + math.min(2 ^ math.min(counted - 1, 6), 60))
  redis.call('HSET', KEYS[2], 'due', string.format('%.0f', due))
end
redis.call('EXPIRE', KEYS[2], ARGV[7])
local sent = redis.pcall(ARGV[8], ARGV[9], prev .. ' ' .. id .. '\n' .. ARGV[4])
return {id, 'new', type(sent) == 'table' and sent.err or ''}
