-- Functions of all scripts that store an event. `scripts.py` puts them before the script's own text.
--
-- An entry of a ring has a field `d`, the event. In the ring of a run it has a second field `r`: `e` in the entry that
-- ends the channel, `1` in any other, the anchor included. So a script that has read the newest entry of an ordinary
-- ring knows that there is no marker to look at.

-- Adds an entry after the one with the id `prev`; after '', it is the anchor of a new ring. A ring with a `mark` is not
-- trimmed; any other keeps `max` entries. Returns the entry's id, or an error.
local function add(ring, prev, nonce, payload, max, mark)
  local tag = tonumber(string.sub(redis.sha1hex(prev .. ' ' .. nonce), 1, 13), 16) + 1
  local id = string.format('%.0f-%.0f', tonumber(string.match(prev, '^%d+') or -1) + 1, tag)
  if mark then return redis.pcall('XADD', ring, id, 'd', payload, 'r', mark) end
  return redis.pcall('XADD', ring, 'MAXLEN', '=', max, id, 'd', payload)
end

-- Adds an entry after the newest one, `last`, and begins the ring if there is none (`last` is nil). Returns the ids of
-- the entry before it and of its own, or an error in place of the latter; and whether the ring is new.
local function append(ring, last, nonce, payload, max, mark)
  local prev = last and last[1]
  local id = prev and add(ring, prev, nonce, payload, max, mark)
  if prev and (type(id) ~= 'table' or not string.find(id.err, 'equal or smaller', 1, true)) then
    return prev, id, false
  end
  -- There is no ring, or it was emptied by hand, so a new one begins. No other error may get here.
  redis.call('DEL', ring)
  prev = add(ring, '', nonce, '', max, mark and '1')
  if type(prev) == 'table' then return '', prev, true end
  return prev, add(ring, prev, nonce, payload, max, mark), true
end
