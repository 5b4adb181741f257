#!/bin/sh
# Boots the Debian in the folder $1 with systemd as process 1, in the namespaces that tests/debian.py made; $2 is a block
# device that it sees. What it may not touch of the real machine is read-only or not there: the kernel's settings, and all
# control groups but its own. These are of version 2 whatever the real machine has: in version 1 a systemd that is not the
# real machine's often misses that a service's last process has ended.
set -eu
cd "$1"
mount --make-rprivate /
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    : >dev/$node
    mount --bind /dev/$node dev/$node
done
: >dev/drive
mount --bind "$2" dev/drive
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for folder in dev/shm run tmp; do mount -t tmpfs tmpfs $folder; done
mount -t cgroup2 cgroup2 sys/fs/cgroup
# Not chroot: the kernel makes no user namespaces in one.
mkdir -p .before
pivot_root . .before
umount -l .before
rmdir .before
exec env -i container=memu-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --show-status=false
