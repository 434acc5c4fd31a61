#!/bin/sh
# Runs in the guest, as root, with the checkout in /vagrant: sets up every kind of memory that the tests
# need, then installs redirty as the README says. Safe to run again.
set -eu

# swap
if ! [ -e /swapfile ]; then
    fallocate -l 512M /swapfile
    chmod 600 /swapfile
    mkswap /swapfile >/dev/null
    echo "/swapfile none swap sw 0 0" >>/etc/fstab
fi
swapon --all

# huge pages of hugetlbfs, spread over the NUMA nodes
echo "vm.nr_hugepages = 64" >/etc/sysctl.d/60-redirty.conf
sysctl --quiet --load /etc/sysctl.d/60-redirty.conf

# Large folios (multi-size THP) for programs that request huge pages. Before Linux 6.8 the file does not
# exist, and nothing is written.
cat >/etc/tmpfiles.d/redirty.conf <<'EOF'
w /sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled - - - - madvise
EOF
systemd-tmpfiles --create /etc/tmpfiles.d/redirty.conf

# redirty. Compiling all of pandas takes minutes in emulation; modules are compiled when imported.
export PIP_NO_COMPILE=1
if [ -n "${REDIRTY_OFFLINE:-}" ]; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=/var/cache/redirty/wheels
fi
cd /vagrant
make setup
make test-setup
