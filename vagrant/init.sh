#!/bin/busybox sh
# The init of the initramfs: loads the modules for the root disk and starts the system on it.
# With "redirty=hello" on the kernel's command line it only prints that it runs (see accel.py).
/bin/busybox --install -s /bin
PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
exec </dev/null >/dev/console 2>&1

stop() {
    echo "redirty: $*"
    poweroff -f
}

case " $(cat /proc/cmdline) " in
*" redirty=hello "*) stop hello ;;
esac
for module in /modules/*.ko; do
    insmod "$module" || stop "cannot load $module"
done
tries=0
while ! [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ "$tries" -le 300 ] || stop "no disk /dev/vda"
    sleep 0.1
done
mount -t ext4 /dev/vda /new || stop "cannot mount /dev/vda"
umount /proc
umount /sys
exec switch_root /new /sbin/init
