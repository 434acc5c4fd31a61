#!/bin/busybox sh
# First program in the test VM: makes a root file system out of the machine's own, then runs the
# commands that the runner puts into the control directory (see machine.py), one after the other.
# It runs twice: as /init of the initramfs, and again, as "serve", in the root it has made.

PRIVATE=/run/redirty-vm
CONTROL=$PRIVATE/control

fail() {
    echo "redirty-vm: $*"
    # The runner sees the VM end and shows these lines.
    poweroff -f
}

# 9p NAME DIRECTORY OPTIONS: mount a directory that the runner shares.
mount_9p() {
    mkdir -p "$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" ||
        fail "cannot mount $1 on $2"
}

# share NAME DIRECTORY: a directory that both sides write, at the same path.
share() { mount_9p "$1" "/new$2" cache=mmap; }

# expose FROM TO: a directory of the machine, read-only, for what the guest's own mounts hide.
expose() {
    mkdir -p "/new$2"
    mount -o bind "/lower$1" "/new$2" || fail "cannot show $1 at $2"
}

build_root() {
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev 2>/dev/null
    exec </dev/null >/dev/console 2>&1
    for module in /modules/*.ko; do
        insmod "$module" || fail "cannot load $module"
    done
    # The machine's files do not change during a test, so they may be cached.
    mount_9p root /lower ro,cache=loose
    mount -t tmpfs -o mode=0755 upper /upper
    mkdir /upper/files /upper/work
    mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new ||
        fail "cannot make the root file system"

    mount -t proc proc /new/proc
    mount -t sysfs sysfs /new/sys
    mount -t securityfs securityfs /new/sys/kernel/security
    mount -t debugfs debugfs /new/sys/kernel/debug
    mount -t tracefs tracefs /new/sys/kernel/tracing
    mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
    mount -t bpf bpf /new/sys/fs/bpf
    mount -t devtmpfs devtmpfs /new/dev
    mkdir -p /new/dev/pts /new/dev/shm /new/dev/hugepages
    mount -t devpts -o mode=0620,ptmxmode=0666 devpts /new/dev/pts
    mount -t tmpfs -o mode=1777 shm /new/dev/shm
    mount -t hugetlbfs hugetlbfs /new/dev/hugepages
    ln -sf /proc/self/fd /new/dev/fd
    for number in 0:stdin 1:stdout 2:stderr; do
        ln -sf "/proc/self/fd/${number%:*}" "/new/dev/${number#*:}"
    done
    mount -t tmpfs -o mode=1777 tmp /new/tmp
    mount -t tmpfs -o mode=0755 run /new/run
    mkdir -p /new/run/lock "/new$PRIVATE"
    # After the mounts above: what it adds may lie below one of them.
    . /setup.sh
    mount_9p control "/new$CONTROL" cache=none
    ip link set lo up
    hostname redirty-vm
    cp /bin/busybox /init "/new$PRIVATE/"
    exec switch_root /new "$PRIVATE/busybox" sh "$PRIVATE/init" serve
}

# For command N the runner makes N.run; the answer is N.out and N.err, and then N.exit.
serve() {
    number=1
    : >"$CONTROL/ready"
    while :; do
        if [ -e "$CONTROL/$number.run" ]; then
            # The inner shell keeps this one's "Killed" out of the command's stderr.
            (exec setsid sh "$CONTROL/$number.run" >"$CONTROL/$number.out" 2>"$CONTROL/$number.err")
            echo $? >"$CONTROL/$number.code"
            sync
            mv "$CONTROL/$number.code" "$CONTROL/$number.exit"
            number=$((number + 1))
        elif [ -e "$CONTROL/stop" ]; then
            sync
            poweroff -f
        else
            sleep 0.1
        fi
    done
}

if [ "$1" = serve ]; then
    # Programs of busybox come first in this script only: commands get a PATH of their own.
    mkdir "$PRIVATE/bin"
    "$PRIVATE/busybox" --install -s "$PRIVATE/bin"
    PATH=$PRIVATE/bin
    serve
else
    /bin/busybox --install -s /bin
    PATH=/bin
    build_root
fi
fail "guest-init.sh ended"
