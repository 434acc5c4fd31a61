#!/bin/busybox sh
# The guest with redis: process 1. Keys are set at random for ever; every other second the values of
# keys that nobody sets are compared with what they were at the start.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/null >/dev/console 2>&1
/bin/busybox mkdir -p /tmp

SOCKET=/tmp/redis
KEYS=50000
ask() { redis-cli -s "$SOCKET" "$@"; }

redis-server --port 0 --unixsocket "$SOCKET" --save "" --appendonly no --enable-debug-command yes >/tmp/log &
until [ "$(ask ping 2>/dev/null)" = PONG ]; do /bin/busybox sleep 0.2; done
# All that will be set, so that the guest's memory grows no more.
ask eval "for i = 0, ARGV[1] - 1 do
    redis.call('set', string.format('key:%012d', i), string.rep('x', 700))
end" 0 "$KEYS" >/dev/null
ask debug populate 5000 still 4000 >/dev/null

kept=
number=0
while [ "$number" -lt 200 ]; do
    kept="$kept still:$((number * 25))"
    number=$((number + 1))
done
# shellcheck disable=SC2086
first=$(ask debug digest-value $kept)
# At a pace that an emulated machine keeps, however busy its host is: some 800 keys a second.
script=$(ask script load "math.randomseed(ARGV[1])
for i = 1, 75 do
    local key = string.format('key:%012d', math.random(0, ARGV[2] - 1))
    redis.call('set', key, string.rep(string.char(97 + ARGV[1] % 26), 700))
end")
number=0
while :; do
    number=$((number + 1))
    echo "evalsha $script 0 $number $KEYS"
    /bin/busybox usleep 50000
done | redis-cli -s "$SOCKET" >/dev/null &

while :; do
    /bin/busybox sleep 2
    wrong=0
    # shellcheck disable=SC2086
    [ "$(ask debug digest-value $kept)" = "$first" ] || wrong=1
    writes=$(ask info stats | /bin/busybox sed -n 's/^total_commands_processed:\([0-9]*\).*/\1/p')
    echo "{\"event\":\"progress\",\"writes\":${writes:-0},\"wrong\":$wrong}"
done
