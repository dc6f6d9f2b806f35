#!/bin/bash
# Process 1 of a host of the laboratory, in namespaces of its own.
# Arguments: MARKER ROOT HOSTNAME ADDRESS CAPABILITIES. Says its process id, awaits a line (the cables are laid), says "ready".
set -eu
marker=$1 root=$2 name=$3 address=$4 capabilities=$5
read -r pid _ </proc/self/stat # as numbered outside: /proc is not yet this host's own
echo "$pid"
read -r _ # without a line the laboratory is gone, and so are we

umask 0
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
[ ! -e "$root/proc/sysrq-trigger" ] || mount --bind "$root/proc/sysrq-trigger" "$root/proc/sysrq-trigger"
[ ! -e "$root/proc/sysrq-trigger" ] || mount -o remount,bind,ro "$root/proc/sysrq-trigger"
mount --bind "$root/proc/sys" "$root/proc/sys" # the kernel is shared; only the network's settings are the host's own
mount -o remount,bind,ro "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,rw "$root/proc/sys/net"
mount -t sysfs -o ro,nosuid,nodev,noexec sys "$root/sys"
mount -t tmpfs -o mode=755,nosuid,size=1m dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mknod "$root/dev/null" c 1 3
mknod "$root/dev/zero" c 1 5
mknod "$root/dev/full" c 1 7
mknod "$root/dev/random" c 1 8
mknod "$root/dev/urandom" c 1 9
mknod "$root/dev/tty" c 5 0
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount -t tmpfs -o mode=755,nosuid,nodev run "$root/run"
umask 022
mkdir -p "$root/run/sshd"
mkdir -m 1777 "$root/run/lock"

ip -batch - <<LINKS
link set lo up
address add $address dev wifi0
link set wifi0 up
LINKS
tc qdisc add dev wifi0 root tbf rate 100mbit burst 64kb latency 50ms

cd "$root"
pivot_root . .
umount -l .
cd /
hostname "$name"
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  setpriv --bounding-set "$capabilities" bash -c '
    /usr/sbin/sshd
    if [ -x /etc/rc.local ]; then /etc/rc.local </dev/null >/var/log/rc.local.log 2>&1; fi
    echo ready
    exec </dev/null >/dev/null 2>&1
    while :; do # bash takes in every orphan that ends
      sleep infinity &
      wait
    done' "$marker" "$marker"
