#!/bin/busybox sh
# First program in the box: loads what it takes to see the disk, and starts the system on it.
# With "redirty=hello" on the kernel's command line it only says that it runs (see accel.py).
/bin/busybox --install -s /bin
PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
exec </dev/null >/dev/console 2>&1

fail() {
    echo "redirty: $*"
    poweroff -f
}

case " $(cat /proc/cmdline) " in
*" redirty=hello "*) fail hello ;;
esac
for module in /modules/*.ko; do
    insmod "$module" || fail "cannot load $module"
done
tries=0
while ! [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ "$tries" -le 300 ] || fail "no disk /dev/vda"
    sleep 0.1
done
mount -t ext4 /dev/vda /new || fail "cannot mount /dev/vda"
umount /proc
umount /sys
exec switch_root /new /sbin/init
