#!lua flags=no-writes
-- Returns the entries after a position of a ring.
-- KEYS: 1 ring
-- ARGV: 1 id of the position, 2 the most entries, 3 the most bytes of data, 4 entries that are returned whatever their
-- size, 5 bytes of the largest event: another program wrote a larger entry, so its data is not returned
-- A piece of a run counts with its text alone, because very many pieces may be joined to one block.
-- Returns {1, whether there are more (1 or 0), bytes of data, id, data, id, data, …} for the entries; {0, oldest id,
-- newest id} if the ring does not have the position; and {0} if there is no ring.
local from = ARGV[1]
if not redis.call('XRANGE', KEYS[1], from, from)[1] then
  local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if not oldest then return {0} end
  return {0, oldest[1], redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1]}
end
local most, bytes, least = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local reply, count, size, step, most_at_once = {1, 0, 0}, 0, 0, 2, 64
local piece = ',"piece":true}'
local around = #'{"type":"text","data":""' + #piece
while count < most do
  local want = math.min(step, most - count)
  local entries = redis.call('XRANGE', KEYS[1], '(' .. from, '+', 'COUNT', want)
  for _, entry in ipairs(entries) do
    local data = ''
    for index = 1, #entry[2], 2 do
      if entry[2][index] == 'd' then data = entry[2][index + 1] end
    end
    if #data > tonumber(ARGV[5]) then data = '' end
    local length = #data
    if entry[2][3] == 'r' then   -- the ring of a run is bounded in bytes
      most_at_once = 512
      if string.sub(data, -#piece) == piece then length = math.max(length - around, 0) end
    end
    if count >= least and size + length > bytes then
      reply[2], reply[3] = 1, size
      return reply
    end
    count, size, from = count + 1, size + length, entry[1]
    reply[#reply + 1], reply[#reply + 2] = from, data
  end
  if #entries < want then
    reply[3] = size
    return reply
  end
  -- Next, as many as may fit, by the average size of those so far.
  step = math.max(1, math.min(math.floor((bytes - size) * count / math.max(size, 1)) + 1, most_at_once))
end
reply[2], reply[3] = 1, size
return reply
