#!lua
-- Notes whether a worker listens to a source, and renews or takes the source's lease.
-- KEYS: 1 record of the source, 2 workers that listen, with the times at which they are forgotten, 3 lease, 4 marker
-- ARGV: 1 worker, 2 1 if it listens, else 0, 3 token of the lease, empty if it is not wanted, 4 milliseconds that the
-- lease and the worker's entry live, 5 seconds that the record lives, 6 milliseconds after which attempts are forgotten,
-- 7 milliseconds that are the longest wait
-- Returns {whether the lease is held by the token, workers that listen, attempts, state or '', whether it is held by any}.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function ms(number) return string.format('%.0f', number) end
-- A time that is too far ahead is one of a clock that was set back since.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ms(now))
redis.call('ZREMRANGEBYSCORE', KEYS[2], ms(now + 2 * tonumber(ARGV[4])), '+inf')
if ARGV[2] == '1' then
  redis.call('ZADD', KEYS[2], ms(now + tonumber(ARGV[4])), ARGV[1])
  redis.call('EXPIRE', KEYS[2], math.ceil(tonumber(ARGV[4]) / 500))
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
local source = redis.call('HMGET', KEYS[1], 'attempts', 'due', 'since', 'state')
local attempts, holder = tonumber(source[1] or 0), redis.call('GET', KEYS[3])
local wait = tonumber(source[2] or 0) - now
if ARGV[3] ~= '' and not redis.call('HMGET', KEYS[4], 'token')[1] then
  if holder == ARGV[3] then
    if attempts > 0 and source[4] == 'up' and now - tonumber(source[3] or now) >= tonumber(ARGV[6]) then
      attempts = 0
      redis.call('HSET', KEYS[1], 'attempts', '0', 'due', '0')
    end
    redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
  elseif not holder and (wait <= 0 or wait > tonumber(ARGV[7])) then
    attempts, holder = attempts + 1, ARGV[3]
    local due = now + 1000 * math.min(2 ^ math.min(attempts - 1, 6), 60)
    redis.call('HSET', KEYS[1], 'attempts', ms(attempts), 'due', ms(due), 'since', ms(now))
    redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {holder == ARGV[3] and 1 or 0, redis.call('ZCARD', KEYS[2]), attempts, source[4] or '', holder and 1 or 0}
